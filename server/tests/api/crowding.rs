//! Crowding: who asks for more than others takes nothing from them. Counted, never timed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::task::JoinSet;
use undertone_wire::{ErrorCode, FetchResponse, Limits, SendResponse, Session, path};

use crate::support::{Account, Backend, Device, Message, Reply, TestRelay, both, log_in, scaled, until};

both! {
    a_session_has_so_many_requests_open_and_gets_its_places_back,
    a_flood_of_acks_and_repeated_posts_leaves_anothers_posts_answered,
    a_flood_of_wide_direct_messages_holds_nobody_up_for_long,
}

/// Asks for what comes into the queue, and waits for it.
fn long_polls(device: &Device, count: u64) -> JoinSet<Reply> {
    let one = |_| {
        let device = device.clone();
        async move { device.long_poll(0).await }
    };
    (0..count).map(one).collect()
}

async fn a_session_has_so_many_requests_open_and_gets_its_places_back(on: Backend) {
    let relay = TestRelay::start(on).await;
    let max = Limits::default().session_requests_max;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let elsewhere = alice.logged_in_again().await;
    let mut polls = long_polls(&alice, max + 5);
    for _ in 0..5 {
        polls.join_next().await.unwrap().unwrap().no(ErrorCode::Unavailable);
    }
    alice.get(path::KEYS).await.no(ErrorCode::Unavailable);
    assert_eq!(elsewhere.fetch(0).await.next_seq, 1, "another session of the same device");
    bob.tells(&[&alice.account], b"hello").await;
    for poll in polls.join_all().await {
        assert_eq!(poll.yes::<FetchResponse>().deliveries.len(), 1);
    }
    alice.ack(1).await.done();

    // Who does not wait for the answer gives its place back too.
    let mut polls = long_polls(&alice, max + 1);
    polls.join_next().await.unwrap().unwrap().no(ErrorCode::Unavailable);
    drop(polls);
    until("all places are free", async || {
        let at_once: JoinSet<_> = (0..max).map(|_| served(alice.clone())).collect();
        at_once.join_all().await.into_iter().all(|served| served)
    })
    .await;
}

async fn served(device: Device) -> bool {
    device.get(path::KEYS).await.status.is_success()
}

async fn a_flood_of_acks_and_repeated_posts_leaves_anothers_posts_answered(on: Backend) {
    let relay = TestRelay::start(on).await;
    let (alice, bob, flooder) = (relay.device().await, relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let own_group = flooder.create_group().await;
    let repeated = Message::at(own_group, 0);
    flooder.send_message(&repeated).await.yes::<SendResponse>();
    let mut sessions = vec![flooder.clone()];
    for _ in 1..Limits::default().device_sessions_max {
        sessions.push(flooder.logged_in_again().await);
    }

    let stop = Arc::new(AtomicBool::new(false));
    let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let mut flood = JoinSet::new();
    for nth in 0..500 {
        let (device, message) = (sessions[nth % sessions.len()].clone(), repeated.clone());
        let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
        flood.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let reply = if nth % 2 == 0 { device.ack(1).await } else { device.send_message(&message).await };
                let refused = !reply.status.is_success();
                if refused {
                    reply.no(ErrorCode::Unavailable);
                }
                counts[usize::from(refused)].fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let count = |nth: usize| counts[nth].load(Ordering::SeqCst);
    until("the flood is there", async || count(0) > 100 && count(1) > 100).await;
    for _ in 0..scaled(5, 100) {
        alice.says(group, 1).await;
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(each) = flood.join_next().await {
        each.unwrap();
    }
    assert_eq!(flooder.fetch(0).await.next_seq, 2, "the repeated message is there once");
}

async fn a_flood_of_wide_direct_messages_holds_nobody_up_for_long(on: Backend) {
    const AT_ONCE: u64 = 32;
    const WIDE: i64 = 256;
    let limits = Limits {
        session_requests_max: 2 * AT_ONCE,
        queue_direct_entries_max: 1_000_000,
        queue_entries_max: 2_000_000,
        ..Limits::default()
    };
    let relay = TestRelay::with_limits(on, limits).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let group = alice.create_group_with(&[&bob]).await;
    let api = relay.api();
    let mut accounts = Vec::new();
    for _ in 0..16 {
        let account = Account::new(16);
        account.try_register(&api).await.yes::<undertone_wire::Account>();
        accounts.push(account);
    }
    let own = accounts.pop().unwrap();
    let session: Session = log_in(&api, &own.keys[0]).await.yes();
    let flooder = Device { api: api.with_token(&session.token), keys: own.keys[0].clone(), account: own };

    let stop = Arc::new(AtomicBool::new(false));
    let accounts = Arc::new(accounts);
    let mut flood = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (flooder, accounts, stop) = (flooder.clone(), Arc::clone(&accounts), Arc::clone(&stop));
        flood.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let mut request = flooder.direct(&accounts.iter().collect::<Vec<_>>(), b"");
                for to in request.accounts.iter_mut().flat_map(|to| &mut to.ciphertexts) {
                    to.ciphertext = b""[..].into();
                }
                flooder.send_direct(&request).await.yes::<SendResponse>();
            }
        });
    }
    until("the flood is there", async || relay.rows("envelopes WHERE kind = 5").await >= WIDE).await;
    let newest: Vec<(i64,)> = relay.select("SELECT MAX(envelope_id) FROM envelopes").await;
    alice.says(group, 1).await;
    stop.store(true, Ordering::SeqCst);
    while let Some(each) = flood.join_next().await {
        each.unwrap();
    }

    let before = format!(
        "envelopes WHERE envelope_id > {} AND envelope_id < (SELECT envelope_id FROM envelopes WHERE kind = 1)",
        newest[0].0
    );
    let before = relay.rows(&before).await / WIDE;
    let after = relay.rows("envelopes WHERE envelope_id > (SELECT envelope_id FROM envelopes WHERE kind = 1)").await;
    assert!(before <= 64, "{before} wide messages were taken before it");
    assert!(after > 0, "the flood went on");
    if on == Backend::Postgres {
        let longest: Vec<(i64,)> = relay
            .select("SELECT COUNT(*) FROM envelopes WHERE kind = 5 GROUP BY xmin::text ORDER BY COUNT(*) DESC LIMIT 1")
            .await;
        assert!(longest[0].0 < 2_000 + WIDE, "{longest:?} in one transaction");
    }
}
