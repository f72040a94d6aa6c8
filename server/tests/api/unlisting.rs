//! Unlisting a device that does everything at the same time. Once it is answered, the device is out.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use undertone_wire::{
    Account as WireAccount, ClaimRequest, Delivery, Envelope, ErrorCode, FetchResponse, GroupId, Limits, path, suite,
};

use crate::support::{Account, Backend, Device, Message, Reply, TestRelay, both, scaled, until};

both! {
    after_a_device_was_unlisted_nothing_of_it_succeeds_and_nothing_comes_of_it,
}

/// What the device does.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Message,
    Direct,
    Ack,
    Commit,
    Claim,
}

const KINDS: [Kind; 5] = [Kind::Message, Kind::Direct, Kind::Ack, Kind::Commit, Kind::Claim];

/// Where it does it, and what is known of it.
struct Scene {
    /// A group in which only messages are posted.
    chat: GroupId,
    /// A group in which only commits are posted, and the newest that is known.
    changing: GroupId,
    commit_seq: AtomicU64,
    /// Who gets direct messages.
    bob: Account,
    /// Whose keys are claimed.
    carol: Account,
    /// How often each kind was accepted.
    accepted: [AtomicU64; KINDS.len()],
    /// Whether the unlisting was answered.
    answered: AtomicBool,
}

impl Scene {
    async fn request(&self, kind: Kind, device: &Device) -> Reply {
        match kind {
            Kind::Message => device.send_message(&Message::at(self.chat, 1)).await,
            Kind::Direct => device.send_direct(&device.direct(&[&self.bob], b"hello")).await,
            Kind::Ack => {
                let fetched = device.get(&format!("{}?limit=1", path::QUEUE)).await;
                if !fetched.status.is_success() {
                    return fetched;
                }
                device.ack(fetched.yes::<FetchResponse>().next_seq - 1).await
            }
            Kind::Commit => {
                let at = self.commit_seq.load(Ordering::SeqCst);
                let reply = device.commit(&Message::at(self.changing, at)).await;
                if reply.status.is_success() {
                    self.commit_seq.fetch_max(at + 1, Ordering::SeqCst);
                }
                reply
            }
            Kind::Claim => {
                let request = ClaimRequest { account_id: self.carol.account_id, suite: suite::DEFAULT };
                device.post(path::CLAIM, &request).await
            }
        }
    }

    /// Does one thing again and again until the session has ended.
    async fn goes_on(&self, kind: Kind, device: &Device) {
        loop {
            let answered = self.answered.load(Ordering::SeqCst);
            let reply = self.request(kind, device).await;
            match reply.problem().map(|problem| problem.code) {
                Some(ErrorCode::Unauthenticated) => return,
                _ if answered => panic!("{kind:?} after the device was unlisted: {reply:?}"),
                Some(ErrorCode::StaleGroup) => assert!(matches!(kind, Kind::Commit), "{reply:?}"),
                Some(other) => panic!("{kind:?}: {other}"),
                None => drop(self.accepted[kind as usize].fetch_add(1, Ordering::SeqCst)),
            }
        }
    }
}

/// All that waits for a device.
async fn all_of(device: &Device) -> Vec<Delivery> {
    let mut all = Vec::<Delivery>::new();
    loop {
        let fetched = device.fetch(all.last().map_or(0, |delivery| delivery.seq)).await;
        assert_eq!(fetched.missed, []);
        if fetched.deliveries.is_empty() {
            return all;
        }
        all.extend(fetched.deliveries);
    }
}

/// Nothing of a group follows the word that a member of it is gone.
fn ends_with_the_members_change(all: &[Delivery], group: GroupId) {
    let of_group = |delivery: &&Delivery| match &delivery.envelope {
        Envelope::GroupMessage { group_id, .. }
        | Envelope::GroupCommit { group_id, .. }
        | Envelope::MembersGone { group_id, .. } => *group_id == group,
        _ => false,
    };
    let of_group: Vec<_> = all.iter().filter(of_group).collect();
    let told: Vec<_> =
        (0..of_group.len()).filter(|nth| matches!(of_group[*nth].envelope, Envelope::MembersGone { .. })).collect();
    assert!(of_group.len() > 1, "there was something before");
    assert_eq!(told, [of_group.len() - 1]);
}

async fn after_a_device_was_unlisted_nothing_of_it_succeeds_and_nothing_comes_of_it(on: Backend) {
    let limits = Limits {
        queue_direct_entries_max: 100_000,
        queue_entries_max: 1_000_000,
        claims_per_pair_hour_max: 10_000,
        claims_per_account_hour_max: 10_000,
        ..Limits::default()
    };
    let relay = TestRelay::with_limits(on, limits).await;
    let mut nodes = vec![];
    if on == Backend::Postgres {
        nodes.push(relay.second_node().await);
    }
    let nodes: Vec<_> = [&relay].into_iter().chain(&nodes).collect();
    let (bob, carol) = (relay.device().await, relay.device().await);
    carol.stock(30).await;
    for _ in 0..scaled(3, 30) {
        unlist_in_full_swing(&nodes, &bob, &carol).await;
    }
}

async fn unlist_in_full_swing(nodes: &[&TestRelay], bob: &Device, carol: &Device) {
    let own = nodes[0].account(2).await;
    let (kept, stolen) = (&own[0], &own[1]);
    let scene = Arc::new(Scene {
        chat: bob.create_group_with(&[kept, stolen]).await,
        changing: bob.create_group_with(&[kept, stolen]).await,
        commit_seq: AtomicU64::new(1),
        bob: bob.account.clone(),
        carol: carol.account.clone(),
        accepted: Default::default(),
        answered: AtomicBool::new(false),
    });
    let busy: Vec<_> = nodes
        .iter()
        .flat_map(|node| KINDS.map(|kind| (stolen.at(node), kind)))
        .flat_map(|each| vec![each; 3])
        .map(|(device, kind)| {
            let scene = Arc::clone(&scene);
            tokio::spawn(async move { scene.goes_on(kind, &device).await })
        })
        .collect();
    until("it does everything", async || {
        scene.accepted.iter().all(|count| count.load(Ordering::SeqCst) > 2)
            || busy.iter().any(|each| each.is_finished())
    })
    .await;

    let next = kept.account.next(vec![kept.keys.clone()]);
    kept.put_list(&next).await.yes::<WireAccount>();
    scene.answered.store(true, Ordering::SeqCst);
    let at_once = [all_of(bob).await, all_of(kept).await];
    for each in busy {
        each.await.unwrap();
    }
    for node in nodes {
        for kind in KINDS {
            scene.request(kind, &stolen.at(node)).await.no(ErrorCode::Unauthenticated);
        }
    }
    assert_eq!([all_of(bob).await, all_of(kept).await], at_once, "nothing came later");
    for all in &at_once {
        ends_with_the_members_change(all, scene.chat);
        ends_with_the_members_change(all, scene.changing);
    }
    bob.ack_all().await;
}
