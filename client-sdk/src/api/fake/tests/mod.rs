//! The fake relay's rules and faults, by small devices made by hand.

mod scene;

use futures_util::FutureExt as _;
use openmls::prelude::Lifetime;
use undertone_wire::{ByeReason, Envelope, ErrorCode, GroupPosition, PublicKey, Span, UnackedCommit, suite};

use self::scene::*;
use super::*;

#[tokio::test]
async fn registering_is_idempotent_and_names_are_unique() {
    let relay = FakeRelay::new();
    let api = relay.connect();
    let description = api.relay().await.unwrap();
    let (alice, bob) = (Person::new(1, 2), Person::new(2, 1));
    let request = alice.registration(&description, Some("alice"));
    let account = api.register(&request).await.unwrap();
    assert_eq!(api.register(&request).await.unwrap(), account);
    assert_eq!(code(api.register(&alice.registration(&description, Some("ally"))).await), ErrorCode::AccountExists);
    assert_eq!(code(api.register(&bob.registration(&description, Some("alice"))).await), ErrorCode::UsernameTaken);

    let other_relay = FakeRelay::new().connect().relay().await.unwrap();
    assert_eq!(code(api.register(&bob.registration(&other_relay, None)).await), ErrorCode::BadSignature);
    let mut unsigned = bob.registration(&description, None);
    unsigned.device_list.signature = unsigned.signature;
    assert_eq!(code(api.register(&unsigned).await), ErrorCode::BadSignature);
    let empty = Person { devices: vec![], ..Person::new(3, 0) };
    assert_eq!(code(api.register(&empty.registration(&description, None)).await), ErrorCode::BadDeviceList);

    let token = alice.login(&*api, 1).await.unwrap();
    assert_eq!(api.account(&token, alice.account()).await.unwrap(), account);
    assert_eq!(api.account_by_username(&token, &"alice".parse().unwrap()).await.unwrap(), account);
    assert_eq!(code(api.account(&token, bob.account()).await), ErrorCode::NotFound);
}

#[tokio::test]
async fn a_log_in_needs_a_live_challenge_signed_by_the_device() {
    let (Scene { relay, api, .. }, alice, alices, bob, _) = scene().await;
    let nonce = api.challenge().await.unwrap().nonce;
    let request = alice.signed_login(&*api, 0, nonce).await.unwrap();
    assert!(api.login(&request).await.is_ok());
    assert_eq!(code(api.login(&request).await), ErrorCode::Unauthenticated, "a challenge serves once");

    let nonce = api.challenge().await.unwrap().nonce;
    let forged = LoginRequest { device_id: alice.device(0), ..bob.signed_login(&*api, 0, nonce).await.unwrap() };
    assert_eq!(code(api.login(&forged).await), ErrorCode::BadSignature);

    let late = alice.signed_login(&*api, 0, api.challenge().await.unwrap().nonce).await.unwrap();
    relay.set_time_ms(relay.time_ms() + 60_000);
    assert_eq!(code(api.login(&late).await), ErrorCode::Unauthenticated);

    assert!(api.groups(&alices[0]).await.is_ok());
    api.logout(&alices[0]).await.unwrap();
    assert_eq!(code(api.groups(&alices[0]).await), ErrorCode::Unauthenticated);
    relay.set_time_ms(relay.time_ms() + 31 * 24 * 3_600_000);
    assert_eq!(code(api.groups(&alices[1]).await), ErrorCode::Unauthenticated, "sessions end");
}

#[tokio::test]
async fn the_oldest_session_makes_room() {
    let (Scene { api, .. }, alice, alices, ..) = scene().await;
    for _ in 0..8 {
        alice.login(&*api, 0).await.unwrap();
    }
    assert_eq!(code(api.groups(&alices[0]).await), ErrorCode::Unauthenticated);
    assert!(api.groups(&alices[1]).await.is_ok(), "each device has its own");
}

#[tokio::test]
async fn each_key_package_is_claimed_once_and_then_the_last_resort() {
    let (scene, alice, alices, _, bobs) = scene().await;
    let now_s = scene.relay.time_ms() / 1_000;
    let day = 86_400;
    let fresh = || Lifetime::init(now_s - day, now_s + 90 * day);
    let (one, two) = (alice.key_package(0, fresh(), false), alice.key_package(0, fresh(), false));
    let last = alice.key_package(0, fresh(), true);
    let publish =
        |key_packages: Vec<Bytes>, last_resort| PublishRequest { message_id: scene.id(), key_packages, last_resort };
    let request = publish(vec![one.clone(), two.clone()], Some(last.clone()));
    scene.api.publish(&alices[0], &request).await.unwrap();
    assert_eq!(scene.relay.key_packages(&alice.device(0)), (2, true));

    let claim = ClaimRequest { account_id: alice.account(), suite: suite::DEFAULT };
    let mut claimed = Vec::new();
    for _ in 0..4 {
        let answer = scene.api.claim(&bobs, &claim).await.unwrap().key_packages;
        assert_eq!(answer.iter().map(|key| key.device_id).collect::<Vec<_>>(), [alice.device(0), alice.device(1)]);
        assert_eq!(answer[1].key_package, None, "it has published none");
        claimed.push((answer[0].key_package.clone().unwrap(), answer[0].last_resort));
    }
    assert_eq!(claimed, [(one, false), (two, false), (last.clone(), true), (last, true)]);
    let told = scene.relay.queue(&alice.device(0));
    let told: Vec<_> = told.into_iter().map(|delivery| delivery.envelope).collect();
    let suite = suite::DEFAULT;
    let once = [Envelope::KeysLow { suite, one_time: 1 }, Envelope::LastResortUsed { suite }];
    assert_eq!(told, once, "one of each kind waits at a time");
    scene.api.publish(&alices[0], &request).await.unwrap();
    assert_eq!(scene.relay.key_packages(&alice.device(0)), (0, true), "a claimed key does not come back");

    let refusals = [
        (alice.key_package(0, Lifetime::init(now_s - day, now_s + 30 * day), false), ErrorCode::BadLifetime),
        (alice.key_package(0, Lifetime::init(now_s - day, now_s + 100 * day), false), ErrorCode::BadLifetime),
        (alice.key_package(0, fresh(), true), ErrorCode::BadKeyPackage),
        (alice.key_package(1, fresh(), false), ErrorCode::BadKeyPackage),
        (vec![0, 1, 0, 3, 9].into(), ErrorCode::BadKeyPackage),
        (vec![0, 1, 0, 1, 9].into(), ErrorCode::UnsupportedSuite),
        (vec![0; 30_000].into(), ErrorCode::TooLarge),
    ];
    for (key_package, expected) in refusals {
        assert_eq!(code(scene.api.publish(&alices[0], &publish(vec![key_package], None)).await), expected);
    }
    scene.relay.set_time_ms(scene.relay.time_ms() + 60 * 24 * 3_600_000);
    assert_eq!(scene.relay.key_packages(&alice.device(0)), (0, false), "too little of its lifetime is left");
}

#[tokio::test]
async fn a_commit_moves_the_group_and_tells_each_device_what_it_needs() {
    let (mut scene, alice, alices, bob, bobs) = scene().await;
    let (a0, a1, b0) = (alice.device(0), alice.device(1), bob.device(0));
    let members = |scene: &Scene| scene.relay.group_members(&scene.pen.group_id);
    assert_eq!(scene.commit(&alices[0], &[a1, b0], &[]).await.unwrap().commit_seq, 1);
    assert_eq!(members(&scene), [a0, a1, b0]);
    scene.send(&bobs).await.unwrap();
    assert_eq!(scene.commit(&bobs, &[], &[a1]).await.unwrap().commit_seq, 2);
    assert_eq!(scene.kinds(&a0), ["commit", "message", "commit"], "own copies too");
    assert_eq!(scene.kinds(&a1), ["welcome", "message", "commit"], "its removal is the last it hears");
    assert_eq!(scene.kinds(&b0), ["welcome", "message", "commit"]);
    scene.send(&bobs).await.unwrap();
    assert_eq!(scene.relay.queue_len(&a1), 3);

    let position = GroupPosition { epoch: 2, commit_seq: 2, members_version: 2 };
    assert_eq!(scene.relay.group_position(&scene.pen.group_id), Some(position));
    assert_eq!(scene.api.groups(&bobs).await.unwrap().groups[0].position, position);
    let listed = scene.api.group_members(&bobs, scene.pen.group_id).await.unwrap();
    assert_eq!((listed.position, listed.members.len()), (position, 2));
    assert_eq!(code(scene.api.group_members(&alices[1], scene.pen.group_id).await), ErrorCode::NotFound);
    let commits = scene.api.group_commits(&bobs, scene.pen.group_id, 1).await.unwrap().commits;
    assert_eq!(commits.iter().map(|commit| commit.commit_seq).collect::<Vec<_>>(), [2]);
    let Envelope::Welcome { group_info, secrets, commit_seq: 1, .. } = &scene.relay.queue(&b0)[0].envelope else {
        panic!("not a Welcome");
    };
    assert_eq!((group_info.as_slice(), secrets.as_slice()), (&[8][..], &[9][..]));
}

#[tokio::test]
async fn a_stale_post_is_told_where_its_commits_are() {
    let (mut scene, alice, alices, bob, bobs) = scene().await;
    scene.commit(&alices[0], &[bob.device(0)], &[]).await.unwrap();
    scene.send(&bobs).await.unwrap();
    let late = SendRequest { message_id: scene.id(), message: scene.pen.message(), ttl_s: None };
    scene.commit(&alices[0], &[], &[]).await.unwrap();
    let refused = stale(scene.api.send(&bobs, scene.pen.group_id, &late).await);
    assert!(refused.member);
    assert_eq!(refused.position.commit_seq, 2);
    assert_eq!(refused.unacked, [UnackedCommit { commit_seq: 2, seq: 3 }]);
    scene.api.ack(&bobs, &AckRequest { up_to: 3 }).await.unwrap();
    assert_eq!(stale(scene.api.send(&bobs, scene.pen.group_id, &late).await).unacked, []);
    assert_eq!(stale(scene.api.send(&alices[0], scene.pen.group_id, &late).await).unacked.len(), 2);

    let stranger = Person::new(3, 1);
    let token = stranger.join(&*scene.api).await.remove(0);
    assert_eq!(code(scene.send(&token).await), ErrorCode::NotFound, "never a member");
    scene.commit(&alices[0], &[], &[bob.device(0)]).await.unwrap();
    assert!(!stale(scene.send(&bobs).await).member);
    assert_eq!(code(scene.send(&alices[1]).await), ErrorCode::NotFound);
    assert_eq!(scene.relay.group_members(&scene.pen.group_id), [alice.device(0)]);
}

#[tokio::test]
async fn commits_and_messages_that_break_a_rule_change_nothing() {
    let (mut scene, alice, alices, bob, _) = scene().await;
    let (a0, b0) = (alice.device(0), bob.device(0));
    let unknown = DeviceId::from_random([99; 16]);
    for (added, removed, expected) in [
        (vec![unknown], vec![], ErrorCode::UnknownDevice),
        (vec![a0], vec![], ErrorCode::BadMessage),
        (vec![], vec![b0], ErrorCode::BadMessage),
        (vec![], vec![a0], ErrorCode::BadMessage),
        (vec![b0, a0], vec![], ErrorCode::BadMessage),
        ((0..101).map(|i| DeviceId::from_random([i; 16])).collect(), vec![], ErrorCode::LimitReached),
    ] {
        assert_eq!(code(scene.commit(&alices[0], &added, &removed).await), expected, "{added:?} {removed:?}");
    }
    let (api, group_id, id) = (Arc::clone(&scene.api), scene.pen.group_id, scene.id());
    let request = scene.pen.commit_request(id, &[b0], &[]);
    let (relay, token) = (&*api, &alices[0]);
    let commit = async |request: CommitRequest| code(relay.commit(token, group_id, &request).await);
    let bad = ErrorCode::BadMessage;
    assert_eq!(commit(CommitRequest { welcome: None, ..request.clone() }).await, bad);
    assert_eq!(commit(CommitRequest { commit: scene.pen.message(), ..request.clone() }).await, bad);
    assert_eq!(commit(CommitRequest { commit: vec![1].into(), ..request.clone() }).await, bad);
    let large = Bytes::from(vec![0; 2 * 1024 * 1024 + 1]);
    let refused = api.commit(&alices[0], group_id, &CommitRequest { commit: large, ..request }).await;
    assert_eq!(problem(refused).limit.unwrap().name, "commit_bytes_max");
    let other = Pen::new(&alice, 51).message();
    let request = SendRequest { message_id: scene.id(), message: other, ttl_s: None };
    assert_eq!(code(api.send(&alices[0], group_id, &request).await), bad, "another group's");
    assert_eq!(scene.relay.queue_len(&a0), 0);
    assert_eq!(scene.relay.group_position(&group_id).unwrap().members_version, 0);
}

#[tokio::test]
async fn a_group_belongs_to_the_device_that_created_it() {
    let (scene, _, alices, _, bobs) = scene().await;
    let request = CreateGroupRequest { group_id: scene.pen.group_id, sealed_group_info: vec![1].into() };
    let again = scene.api.create_group(&alices[0], &request).await.unwrap();
    assert_eq!(again.sealed_group_info.as_slice(), [7], "the first one");
    assert_eq!(code(scene.api.create_group(&bobs, &request).await), ErrorCode::GroupExists);
}

#[tokio::test]
async fn the_same_request_has_one_effect_and_one_answer() {
    let (mut scene, alice, alices, bob, _) = scene().await;
    let (api, group, id) = (Arc::clone(&scene.api), scene.pen.group_id, scene.id());
    let commit = scene.pen.commit_request(id, &[bob.device(0)], &[]);
    scene.relay.drop_answers(1);
    assert!(unreachable(api.commit(&alices[0], group, &commit).await));
    for _ in 0..2 {
        assert_eq!(api.commit(&alices[0], group, &commit).await.unwrap().commit_seq, 1);
    }
    assert_eq!(scene.relay.queue_len(&alice.device(0)), 1);

    scene.pen.turn_page();
    let message = SendRequest { message_id: scene.id(), message: scene.pen.message(), ttl_s: None };
    let other = SendRequest { message: scene.pen.message(), ..message.clone() };
    api.send(&alices[0], group, &message).await.unwrap();
    api.send(&alices[0], group, &message).await.unwrap();
    assert_eq!(code(api.send(&alices[0], group, &other).await), ErrorCode::MessageIdReused);
    assert_eq!(scene.relay.queue_len(&bob.device(0)), 2);

    let now_ms = scene.relay.time_ms();
    scene.relay.set_time_ms(now_ms + 24 * 3_600_000 + 1);
    let refused = problem(api.send(&alices[0], group, &message).await);
    assert_eq!((refused.code, refused.time_ms), (ErrorCode::OutcomeUnknown, Some(now_ms + 24 * 3_600_000 + 1)));
    scene.relay.set_time_ms(now_ms - 600_001);
    let refused = problem(api.send(&alices[0], group, &message).await);
    assert_eq!((refused.code, refused.time_ms), (ErrorCode::ClockSkew, Some(now_ms - 600_001)));
}

#[tokio::test]
async fn leaving_takes_the_whole_account_out_and_a_commit_may_still_remove_it() {
    let (mut scene, alice, alices, bob, bobs) = scene().await;
    scene.commit(&alices[0], &[alice.device(1), bob.device(0)], &[]).await.unwrap();
    let (api, group) = (Arc::clone(&scene.api), scene.pen.group_id);
    let leave = LeaveRequest { message_id: scene.id(), notice: scene.pen.message() };
    api.leave(&alices[1], group, &leave).await.unwrap();
    api.leave(&alices[1], group, &leave).await.unwrap();
    assert_eq!(scene.relay.group_members(&group), [bob.device(0)]);
    assert_eq!(scene.relay.group_position(&group).unwrap().members_version, 2);
    assert_eq!(scene.kinds(&alice.device(0)), ["commit", "message"]);
    assert!(!stale(scene.send(&alices[0]).await).member);
    assert_eq!(code(scene.commit(&bobs, &[alice.device(0)], &[]).await), ErrorCode::BadMessage, "its leaf is there");
    scene.commit(&bobs, &[], &[alice.device(0), alice.device(1)]).await.unwrap();
    assert_eq!(scene.kinds(&alice.device(0)), ["commit", "message"], "the gone hear no more");
    assert_eq!(code(scene.commit(&bobs, &[], &[alice.device(0)]).await), ErrorCode::BadMessage);
    scene.commit(&bobs, &[alice.device(0)], &[]).await.unwrap();
    assert_eq!(scene.relay.group_members(&group), [alice.device(0), bob.device(0)]);
}

#[tokio::test]
async fn a_deleted_account_is_gone_everywhere_and_its_groups_are_told() {
    let (mut scene, alice, alices, bob, bobs) = scene().await;
    scene.commit(&alices[0], &[bob.device(0)], &[]).await.unwrap();
    let mut stream = scene.api.open_stream(&bobs, 0).await.unwrap();
    scene.api.delete_account(&bobs).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), ServerFrame::Bye { reason: ByeReason::Unauthenticated });
    assert_eq!(code(scene.api.groups(&bobs).await), ErrorCode::Unauthenticated);
    assert_eq!(code(scene.api.account(&alices[0], bob.account()).await), ErrorCode::NotFound);
    assert_eq!(scene.relay.next_seq(&bob.device(0)), None);
    assert_eq!(scene.kinds(&alice.device(0)), ["commit", "gone"]);
    scene.commit(&alices[0], &[], &[bob.device(0)]).await.unwrap();
    scene.api.delete_account(&alices[0]).await.unwrap();
    assert_eq!(scene.relay.group_position(&scene.pen.group_id), None, "nobody is left");
}

#[tokio::test]
async fn a_stream_greets_delivers_and_says_when_it_has_caught_up() {
    let (mut scene, alice, alices, ..) = scene().await;
    scene.send(&alices[0]).await.unwrap();
    let mut stream = scene.api.open_stream(&alices[0], 0).await.unwrap();
    let ServerFrame::Hello { stream: 1, next_seq: 2, oldest_available: 1, time_ms, .. } = stream.next().await.unwrap()
    else {
        panic!("not hello")
    };
    assert_eq!(time_ms, scene.relay.time_ms());
    let seq = |frame: ServerFrame| if let ServerFrame::Delivery { delivery } = frame { delivery.seq } else { 0 };
    assert_eq!(seq(stream.next().await.unwrap()), 1);
    assert_eq!(stream.next().await.unwrap(), ServerFrame::CaughtUp { next_seq: 2 });
    assert!(stream.next().now_or_never().is_none(), "there is no more, and cancelling loses nothing");

    let (frame, sent) = tokio::join!(stream.next(), scene.send(&alices[0]));
    sent.unwrap();
    assert_eq!(seq(frame.unwrap()), 2);
    assert_eq!(stream.next().await.unwrap(), ServerFrame::CaughtUp { next_seq: 3 });
    stream.send(ClientFrame::Ack { up_to: 1 }).await.unwrap();
    assert_eq!((scene.relay.queue_len(&alice.device(0)), scene.relay.acked_seq(&alice.device(0))), (1, Some(1)));
    scene.api.ack(&alices[0], &AckRequest { up_to: 1 }).await.unwrap();
}

#[tokio::test]
async fn numbers_go_on_far_above_what_a_restored_relay_or_its_devices_know() {
    const JUMP: u64 = 1 << 32;
    let (mut scene, alice, alices, ..) = scene().await;
    let a0 = alice.device(0);
    scene.send(&alices[0]).await.unwrap();
    let mut stream = scene.api.open_stream(&alices[0], 7).await.unwrap();
    stream.next().await.unwrap();
    let missed = |from, to| ServerFrame::Missed { span: Span { from, to } };
    assert_eq!(stream.next().await.unwrap(), missed(8, 7 + JUMP), "what it has taken is below its numbers again");
    scene.api.ack(&alices[0], &AckRequest { up_to: 9 + JUMP }).await.unwrap();
    assert_eq!(scene.relay.next_seq(&a0), Some(10 + 2 * JUMP));

    let before = scene.api.relay().await.unwrap().incarnation;
    scene.relay.restore();
    assert_ne!(scene.api.relay().await.unwrap().incarnation, before);
    assert!(unreachable(stream.next().await));
    assert_eq!(code(scene.api.open_stream(&alices[0], 0).await), ErrorCode::Unauthenticated);
    let token = alice.login(scene.api.as_ref(), 0).await.unwrap();
    let mut stream = scene.api.open_stream(&token, 9 + JUMP).await.unwrap();
    stream.next().await.unwrap();
    assert_eq!(stream.next().await.unwrap(), missed(10 + JUMP, 9 + 3 * JUMP));
}

#[tokio::test]
async fn a_node_that_stops_says_bye_and_one_that_is_killed_does_not() {
    let (mut scene, alice, alices, ..) = scene().await;
    let relay = Arc::clone(&scene.relay);
    let nodes = [relay.connect_to(0), relay.connect_to(1)];
    let mut stream = nodes[1].open_stream(&alices[0], 0).await.unwrap();
    assert_eq!(relay.node_of_stream(&alice.device(0)), Some(1));
    stream.next().await.unwrap();
    relay.stop_node(1);
    assert_eq!(stream.next().await.unwrap(), ServerFrame::Bye { reason: ByeReason::Shutdown });
    assert!(unreachable(nodes[1].relay().await) && nodes[0].relay().await.is_ok());
    relay.start_node(1);
    let mut stream = nodes[1].open_stream(&alices[0], 0).await.unwrap();
    relay.kill_node(1);
    assert!(unreachable(stream.next().await) && unreachable(nodes[1].relay().await));
    assert!(scene.send(&alices[0]).await.is_ok(), "the other node goes on");
}

#[tokio::test]
async fn a_newer_stream_replaces_the_older_and_resumes() {
    let (mut scene, alice, alices, ..) = scene().await;
    for _ in 0..4 {
        scene.send(&alices[0]).await.unwrap();
    }
    let mut older = scene.api.open_stream(&alices[0], 0).await.unwrap();
    let mut newer = scene.api.open_stream(&alices[0], 1).await.unwrap();
    assert_eq!(scene.relay.streams_opened(&alice.device(0)), 2);
    older.send(ClientFrame::Ack { up_to: 1 }).await.unwrap();
    assert_eq!(scene.relay.queue_len(&alice.device(0)), 4, "it no longer speaks for the device");
    assert_eq!(older.next().await.unwrap(), ServerFrame::Bye { reason: ByeReason::Replaced });
    assert!(unreachable(older.next().await));

    scene.relay.expire_queue(&alice.device(0), 3);
    assert!(matches!(newer.next().await.unwrap(), ServerFrame::Hello { oldest_available: 4, .. }));
    assert_eq!(newer.next().await.unwrap(), ServerFrame::Missed { span: Span { from: 2, to: 3 } });
    assert!(matches!(newer.next().await.unwrap(), ServerFrame::Delivery { delivery } if delivery.seq == 4));
    scene.relay.until(|relay| relay.queue_len(&alice.device(0)) == 1).await;
    newer.send(ClientFrame::Ack { up_to: 4 }).await.unwrap();
    let mut behind = scene.api.open_stream(&alices[0], 0).await.unwrap();
    behind.next().await.unwrap();
    assert_eq!(behind.next().await.unwrap(), ServerFrame::CaughtUp { next_seq: 5 }, "what was acked is not missed");
}

#[tokio::test]
async fn faults_strike_as_they_say() {
    let (mut scene, alice, alices, ..) = scene().await;
    let (relay, api) = (Arc::clone(&scene.relay), Arc::clone(&scene.api));
    let a0 = alice.device(0);
    relay.drop_answers(1);
    relay.refuse_connections(1);
    assert!(unreachable(scene.send(&alices[0]).await));
    assert_eq!(relay.queue_len(&a0), 0, "it did not act");
    assert!(unreachable(scene.send(&alices[0]).await));
    assert_eq!(relay.queue_len(&a0), 1, "it acted");
    assert!(scene.send(&alices[0]).await.is_ok());

    let mut stream = api.open_stream(&alices[0], 2).await.unwrap();
    stream.next().await.unwrap();
    assert_eq!(stream.next().await.unwrap(), ServerFrame::CaughtUp { next_seq: 3 });
    relay.hold_deliveries();
    scene.send(&alices[0]).await.unwrap();
    assert!(stream.next().now_or_never().is_none());
    relay.release_deliveries();
    assert!(matches!(stream.next().await.unwrap(), ServerFrame::Delivery { delivery } if delivery.seq == 3));

    stream.next().await.unwrap();
    let (waiting, ()) = tokio::join!(stream.next(), async { relay.cut_streams() });
    assert!(unreachable(waiting));
    assert!(unreachable(stream.send(ClientFrame::Ack { up_to: 3 }).await));

    let mut stream = api.open_stream(&alices[0], 3).await.unwrap();
    relay.go_offline();
    assert!(unreachable(stream.next().await) && unreachable(api.relay().await));
    relay.come_back();
    assert!(api.relay().await.is_ok());
    assert!(unreachable(stream.next().await), "a stream that broke stays broken");
}

#[tokio::test]
async fn an_answer_tells_a_device_how_wrong_its_clock_is() {
    let relay = FakeRelay::new();
    let now_ms = relay.time_ms();
    let api = relay.connect_with_clock(Arc::new(move || now_ms + 5_000));
    assert_eq!(api.clock_offset_ms(), 0);
    relay.drop_answers(1);
    assert!(api.challenge().await.is_err());
    assert_eq!(api.clock_offset_ms(), 0, "it heard nothing");
    let unknown = AccountId::from_identity_key(&PublicKey::from([1; 32]));
    assert_eq!(code(api.account(&vec![1].into(), unknown).await), ErrorCode::Unauthenticated);
    assert_eq!(api.clock_offset_ms(), -5_000);
}
