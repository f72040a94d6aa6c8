//! Unlisting a device that does everything at the same time, or that others do something with. Once it is answered, the
//! device is out.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;
use undertone_wire::{
    Account as WireAccount, ClaimRequest, CommitResponse, Delivery, Envelope, ErrorCode, FetchResponse, GroupId,
    GroupMembers, Limits, path, suite,
};

use crate::support::{Account, Backend, Device, Message, Reply, TestRelay, both, scaled, until};

both! {
    after_a_device_was_unlisted_nothing_of_it_succeeds_and_nothing_comes_of_it,
    a_commit_that_adds_a_device_while_it_is_unlisted_is_refused_or_the_device_leaves,
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

async fn a_commit_that_adds_a_device_while_it_is_unlisted_is_refused_or_the_device_leaves(on: Backend) {
    const ROUNDS_MAX: u64 = 100;
    let relay = TestRelay::start(on).await;
    let mut nodes = vec![];
    if on == Backend::Postgres {
        nodes.push(relay.second_node().await);
    }
    let nodes: Vec<_> = [&relay].into_iter().chain(&nodes).collect();
    let bob = relay.device().await;
    let (mut added, mut refused, mut rounds) = (0, 0, 0);
    while rounds < scaled(3, 30) || added == 0 || refused == 0 {
        assert!(rounds < ROUNDS_MAX, "{added} were added, {refused} refused");
        let of_round = unlist_while_added(&nodes, &bob).await;
        added += of_round.iter().filter(|accepted| **accepted).count();
        refused += of_round.iter().filter(|accepted| !**accepted).count();
        rounds += 1;
    }
}

/// Adds a device to several groups, and unlists it once it is in the first; answers which commits were accepted.
async fn unlist_while_added(nodes: &[&TestRelay], bob: &Device) -> Vec<bool> {
    // All together fewer than unlisting has attempts.
    const GROUPS_OF_EACH: usize = 4;
    let own = nodes[0].account(2).await;
    let (kept, stolen) = (&own[0], &own[1]);
    let first_is_in = Notify::new();
    let adding = futures_util::future::join_all([nodes[0], nodes[nodes.len() - 1]].map(|node| {
        let (bob, first_is_in) = (bob.at(node), &first_is_in);
        async move {
            let mut tried = vec![];
            for _ in 0..GROUPS_OF_EACH {
                let group = bob.create_group().await;
                tried.push((group, bob.commit(&Message::at(group, 0).adding(&[stolen])).await));
                first_is_in.notify_one();
            }
            tried
        }
    }));
    let unlisting = async {
        first_is_in.notified().await;
        kept.put_list(&kept.account.next(vec![kept.keys.clone()])).await.yes::<WireAccount>();
    };
    let (tried, ()) = tokio::join!(adding, unlisting);
    let mut accepted = vec![];
    for (group, reply) in tried.into_iter().flatten() {
        let is_in = reply.status.is_success();
        let members: GroupMembers = bob.get(&path::fill(path::GROUP_MEMBERS, group)).await.yes();
        assert!(members.members.iter().all(|member| member.device_id == bob.id()), "the device is in no group");
        let mut commit = Message::at(group, u64::from(is_in));
        if is_in {
            assert_eq!(reply.yes::<CommitResponse>().commit_seq, 1);
            commit = commit.removing(&[stolen]);
        } else {
            reply.no(ErrorCode::UnknownDevice);
        }
        bob.commit(&commit).await.yes::<CommitResponse>();
        accepted.push(is_in);
    }
    let left = ["commits.added", "commits.removed", "envelopes.payload", "group_members.device_id"].map(String::from);
    let found: BTreeSet<_> = nodes[0].store.found(stolen.id().as_bytes()).await.into_keys().collect();
    assert!(found.is_subset(&left.into()), "{found:?}");
    accepted
}
