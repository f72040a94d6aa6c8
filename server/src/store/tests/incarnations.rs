//! Incarnations: what begins one, and what begins with it. What makes each database notice by itself stands in `sqlite`
//! and `postgres`.

use super::*;
use crate::store::{
    groups::Ending,
    invites::{self, Invite},
    keys,
    pipes::{self, Part},
    queue::{PageRequest, cursor, page},
    relay::{self, JUMP},
    sessions,
};
use undertone_wire::{KeyPackageCount, Span};

/// What an incarnation begins or ends, as it stands in a store with [`furnish`]ings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    relay: String,
    incarnation: String,
    /// The next numbers of devices 1 and 2.
    pub(super) next_seqs: [u64; 2],
    held: Vec<u64>,
    session: bool,
    challenge: bool,
    invite: bool,
    pipe: bool,
    one_time: u64,
    counted: Vec<KeyPackageCount>,
    last_resort: bool,
    members: Vec<DeviceId>,
}

fn token() -> Hash {
    Hash::of(b"token")
}

fn pipe() -> Part {
    Part { pipe_hash: Hash::of(b"pipe"), is_answer: false, number: 0 }
}

/// Gives a store something of everything.
pub(super) async fn furnish(db: &Db) {
    done(db, |tx| {
        Box::pin(async move {
            add_group(tx, &[1, 2]).await?;
            for _ in 0..3 {
                append(tx, b"x").await?;
            }
            ack(tx, 1, 1).await?;
            sessions::add(tx, &token(), &device_id(1), u64::MAX, 9).await?;
            sessions::add_challenge(tx, &nonce(1), u64::MAX).await?;
            let invite = Invite { code_hash: Hash::of(b"code"), uses_left: 1, expires_ms: u64::MAX };
            invites::add(tx, &invite).await?;
            pipes::begin(tx, &pipe().pipe_hash, b"request", u64::MAX, 1, room_for(9)).await?;
            let keys = [key_packages::key("once", false, 30), key_packages::key("last", true, 30)];
            keys::add(tx, &device_id(1), &keys).await
        })
    })
    .await;
}

pub(super) async fn standing(db: &Db) -> Standing {
    read_standing(db).await.unwrap()
}

/// The same where the database may be away.
pub(super) async fn read_standing(db: &Db) -> Result<Standing, StoreError> {
    let conn = &mut db.read().await?;
    let identity = relay::identity(conn).await?;
    let mut next_seqs = [0; 2];
    for (device, next_seq) in [1, 2].map(device_id).iter().zip(&mut next_seqs) {
        *next_seq = cursor(conn, device).await?.map_or(0, |cursor| cursor.next_seq);
    }
    let request =
        PageRequest { device: device_id(1), token_hash: token(), after: 0, entries_max: 99, bytes_max: 1 << 20 };
    let page = page(conn, &request, 1).await?.unwrap();
    let challenges = count(conn, "SELECT COUNT(*) FROM challenges").await;
    Ok(Standing {
        relay: identity.relay_id.to_string(),
        incarnation: identity.incarnation.to_string(),
        next_seqs,
        held: page.deliveries.iter().map(|delivery| delivery.seq).collect(),
        session: page.authenticated && sessions::holder(conn, &token(), 1).await?.is_some(),
        challenge: challenges == 1,
        invite: invites::count(conn).await? == 1,
        pipe: pipes::content(conn, &pipe(), 1).await?.is_some(),
        one_time: keys::one_time_left(conn, &device_id(1), key_packages::SUITE, 10).await?,
        counted: keys::counts(conn, &device_id(1), 10).await?,
        last_resort: keys::last_resort(conn, &device_id(1), key_packages::SUITE, 10).await?.is_some(),
        members: members(conn, &group_id()).await?,
    })
}

impl Standing {
    /// What becomes of it when so many incarnations begin. The last is `now`'s.
    fn begun_anew(&self, times: u64, now: &Self) -> Self {
        let suite = key_packages::SUITE;
        Self {
            incarnation: now.incarnation.clone(),
            next_seqs: self.next_seqs.map(|next_seq| next_seq + times * JUMP),
            session: false,
            challenge: false,
            invite: false,
            pipe: false,
            one_time: 0,
            counted: vec![KeyPackageCount { suite, one_time: 0, last_resort: true }],
            ..self.clone()
        }
    }
}

/// The store is furnished, and its numbers, sessions and keys are those of its first incarnation.
pub(super) fn assert_furnished(standing: &Standing) {
    assert_eq!((standing.next_seqs, &standing.held[..]), ([4, 4], &[2, 3][..]));
    let has_all = [standing.session, standing.challenge, standing.invite, standing.pipe, standing.last_resort];
    assert!(has_all == [true; 5] && standing.one_time == 1, "{standing:?}");
}

/// Since `before`, one new incarnation has begun.
pub(super) fn assert_begun_anew(before: &Standing, now: &Standing) {
    assert_begun_anew_times(1, before, now);
}

fn assert_begun_anew_times(times: u64, before: &Standing, now: &Standing) {
    assert_ne!(before.incarnation, now.incarnation);
    assert_eq!(*now, before.begun_anew(times, now));
}

/// A furnished store, as it stood when it was closed.
async fn closed(fresh: &Fresh) -> (Place, Standing) {
    let place = fresh.another_place();
    let (db, _) = open(&place).await;
    furnish(&db).await;
    let before = standing(&db).await;
    assert_furnished(&before);
    db.close().await.unwrap();
    (place, before)
}

async fn reopened(place: &Place) -> Standing {
    let (db, _) = open(place).await;
    let standing = standing(&db).await;
    db.close().await.unwrap();
    standing
}

/// The same store, opened by whom somebody tells what it is.
async fn declared(db: Result<Db, StoreError>) -> Standing {
    let db = db.unwrap();
    let standing = standing(&db).await;
    db.close().await.unwrap();
    standing
}

/// Makes the store one that is known by another mark than will be seen.
async fn displace(place: &Place) {
    let (db, _) = open(place).await;
    done(&db, |tx| Box::pin(async move { relay::mark_only(tx, "elsewhere").await })).await;
    drop(db);
}

pub(super) async fn a_store_that_is_opened_again_goes_on(fresh: &Fresh) {
    let (place, before) = closed(fresh).await;
    for _ in 0..3 {
        assert_eq!(reopened(&place).await, before);
    }
    let (db, _) = open(&place).await;
    for _ in 0..3 {
        db.look().await.unwrap();
        assert_eq!(standing(&db).await, before, "nothing has changed");
    }
    db.close().await.unwrap();
    drop(db);
    assert_eq!(reopened(&place).await, before);
}

pub(super) async fn a_restored_store_begins_anew(fresh: &Fresh) {
    let (place, before) = closed(fresh).await;
    let restored = declared(Db::open_restored(&place, Arc::new(SystemRandom)).await).await;
    assert_begun_anew(&before, &restored);
    assert_eq!(reopened(&place).await, restored, "once");
    let again = declared(Db::open_restored(&place, Arc::new(SystemRandom)).await).await;
    assert_ne!(again.incarnation, restored.incarnation);
    assert_begun_anew_times(2, &before, &again);
}

pub(super) async fn a_moved_store_goes_on(fresh: &Fresh) {
    let (place, before) = closed(fresh).await;
    displace(&place).await;
    assert_eq!(declared(Db::open_moved(&place, Arc::new(SystemRandom)).await).await, before);
    assert_eq!(reopened(&place).await, before, "it is known by its new mark");
}

pub(super) async fn a_store_in_another_place_begins_anew(fresh: &Fresh) {
    let (place, before) = closed(fresh).await;
    displace(&place).await;
    let now = reopened(&place).await;
    assert_begun_anew(&before, &now);
    assert_eq!(reopened(&place).await, now, "once");
}

pub(super) async fn keys_of_before_are_not_handed_out(fresh: &Fresh) {
    let (place, _) = closed(fresh).await;
    declared(Db::open_restored(&place, Arc::new(SystemRandom)).await).await;
    let (db, _) = open(&place).await;
    done(&db, |tx| {
        Box::pin(async move {
            let device = device_id(1);
            let take =
                async |tx: &mut Tx| keys::take_one_time(tx, &device_id(1), key_packages::SUITE, 10).await.unwrap();
            assert_eq!(take(tx).await, None);
            keys::add(tx, &device, &[key_packages::key("once", false, 30)]).await?;
            assert_eq!(take(tx).await, None, "published again it is the same");
            keys::add(tx, &device, &[key_packages::key("fresh", false, 30)]).await?;
            let held = ["once", "fresh", "last"].map(|name| Hash::of(name.as_bytes()));
            let available = keys::reconcile(tx, &device, &held.into(), 10).await?;
            assert_eq!(BTreeSet::from_iter(available), BTreeSet::from([held[1], held[2]]), "the device is told which");
            assert_eq!(keys::stored_one_time(tx, &device, key_packages::SUITE).await?, 2);
            keys::spend_stale(tx, &device).await?;
            assert_eq!(keys::stored_one_time(tx, &device, key_packages::SUITE).await?, 1);
            assert_eq!(take(tx).await.as_deref(), Some(&b"fresh"[..]));
            assert_eq!(take(tx).await, None);
            Ok(())
        })
    })
    .await;
    db.close().await.unwrap();
}

pub(super) async fn what_a_device_missed_is_told_in_its_place(fresh: &Fresh) {
    let (place, _) = closed(fresh).await;
    declared(Db::open_restored(&place, Arc::new(SystemRandom)).await).await;
    let (db, _) = open(&place).await;
    done(&db, |tx| {
        Box::pin(async move {
            append(tx, b"later").await?;
            groups::end_stays(tx, &group_id(), &[device_id(2)], 1, HOUR_MS, Ending::ByCommit).await?;
            counts::check(tx, "after a new incarnation").await;
            Ok(())
        })
    })
    .await;
    let request =
        PageRequest { device: device_id(1), token_hash: token(), after: 1, entries_max: 99, bytes_max: 1 << 20 };
    let page = page(&mut db.read().await.unwrap(), &request, 1).await.unwrap().unwrap();
    assert_eq!(page.deliveries.iter().map(|delivery| delivery.seq).collect::<Vec<_>>(), [2, 3, 4 + JUMP]);
    assert_eq!(crate::queue::missed(&page, 1), [Span { from: 4, to: 3 + JUMP }]);
    db.close().await.unwrap();
}
