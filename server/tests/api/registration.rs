//! Who may register: everyone, whoever has an invite, or nobody.

use std::time::Duration;

use undertone_wire::{Account as WireAccount, ErrorCode, Registration, Relay, path};

use crate::support::{Account, Backend, TestRelay, both, random};

both! {
    with_an_invite_as_many_register_as_it_is_for,
    registering_again_uses_up_nothing,
    a_registration_that_is_refused_uses_up_nothing,
    invites_end_by_time,
    where_nobody_may_register_no_invite_helps,
    where_everyone_may_register_no_invite_is_used_up,
}

const DAY_S: u64 = 24 * 60 * 60;

async fn with_an_invite_as_many_register_as_it_is_for(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Invite).await;
    let api = relay.api();
    assert_eq!(api.get(path::RELAY).await.yes::<Relay>().registration, Registration::Invite);
    Account::new(1).try_register(&api).await.no(ErrorCode::InviteRequired);
    Account::new(1).invited(random().into()).try_register(&api).await.no(ErrorCode::InviteRequired);
    let code = relay.invite(2, DAY_S).await;
    for _ in 0..2 {
        Account::new(1).invited(code).try_register(&api).await.yes::<WireAccount>();
    }
    Account::new(1).invited(code).try_register(&api).await.no(ErrorCode::InviteRequired);
    assert_eq!((relay.rows("accounts").await, relay.rows("invites").await), (2, 0));
}

async fn registering_again_uses_up_nothing(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Invite).await;
    let code = relay.invite(1, DAY_S).await;
    let account = Account::new(1).invited(code);
    let first: WireAccount = account.try_register(&relay.api()).await.yes();
    let again: WireAccount = account.try_register(&relay.api()).await.yes();
    assert_eq!(first, again, "whoever lost the answer asks again");
    Account::new(1).invited(code).try_register(&relay.api()).await.no(ErrorCode::InviteRequired);
}

async fn a_registration_that_is_refused_uses_up_nothing(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Invite).await;
    let [one, two] = [relay.invite(1, DAY_S).await, relay.invite(1, DAY_S).await];
    Account::new(1).invited(one).named("alice").try_register(&relay.api()).await.yes::<WireAccount>();
    Account::new(1).invited(two).named("alice").try_register(&relay.api()).await.no(ErrorCode::UsernameTaken);
    Account::new(1).invited(one).named("bob").try_register(&relay.api()).await.no(ErrorCode::InviteRequired);
    Account::new(1).invited(two).named("bob").try_register(&relay.api()).await.yes::<WireAccount>();
}

async fn invites_end_by_time(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Invite).await;
    let code = relay.invite(9, DAY_S).await;
    relay.clock.advance(Duration::from_secs(DAY_S) - Duration::from_millis(1));
    Account::new(1).invited(code).try_register(&relay.api()).await.yes::<WireAccount>();
    relay.clock.advance(Duration::from_millis(1));
    Account::new(1).invited(code).try_register(&relay.api()).await.no(ErrorCode::InviteRequired);
    relay.upkeep.run().await.unwrap();
    assert_eq!(relay.rows("invites").await, 0);
}

async fn where_nobody_may_register_no_invite_helps(on: Backend) {
    let relay = TestRelay::with_registration(on, Registration::Closed).await;
    let code = relay.invite(1, DAY_S).await;
    Account::new(1).invited(code).try_register(&relay.api()).await.no(ErrorCode::RegistrationClosed);
    assert_eq!((relay.rows("accounts").await, relay.rows("invites").await), (0, 1));
}

async fn where_everyone_may_register_no_invite_is_used_up(on: Backend) {
    let relay = TestRelay::start(on).await;
    let code = relay.invite(1, DAY_S).await;
    Account::new(1).invited(code).try_register(&relay.api()).await.yes::<WireAccount>();
    assert_eq!(relay.rows("invites").await, 1);
}
