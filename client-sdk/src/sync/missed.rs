//! Finding out what of the groups is lacking after entries of the queue were missed, and getting it.
//!
//! Invariant: what was missed counts as looked into only once the relay was asked, and a stream opened after that has
//! brought all that was there by then.

use undertone_api::RelayApi as _;
use undertone_wire::GroupId;

use super::{Engine, inbox, recovery, session, updates};
use crate::{
    Error,
    crypto::Entropy,
    event::{Recovered, StoredEvent},
    store::{GroupRow, GroupState, OutboxRow, OutboxState, StoreError, Task, Tx, Why},
};

/// Applies the commits of a group that this device has missed, up to number `up_to`. If the relay has them no more, the
/// group is to be recovered otherwise.
///
/// The numbers are those of `live`: a group that has gone on in another one meanwhile lacks nothing.
pub(super) async fn fetch(engine: &Engine, live: GroupId, up_to: u64) -> Result<(), Error> {
    loop {
        let row = engine.store.with_tx(move |tx| Ok::<_, Error>(active_by_live(tx, live)?)).await?;
        let Some((group, at)) = row.map(|row| (row.id, row.commit_seq)).filter(|(_, at)| *at < up_to) else {
            return Ok(());
        };
        let answer = engine.signed_in(|token| async move { engine.api.group_commits(&token, live, at).await }).await;
        let commits = match answer {
            Ok(answer) => answer.commits,
            Err(error) if session::is_final(&error) => vec![],
            Err(error) => return Err(error.into()),
        };
        let follows = commits.first().is_some_and(|first| first.commit_seq == at + 1);
        let commits: Vec<_> = commits.into_iter().take_while(|one| follows && one.commit_seq <= up_to).collect();
        let (identity, entropy, now_ms) = (engine.identity(), engine.entropy, engine.clock.now_ms());
        let applied = engine.store.with_tx(move |tx| {
            let context = inbox::Context { identity: &identity, entropy, now_ms, looked_up: false };
            let Some(row) = active_by_live(tx, live)? else { return Ok::<_, Error>(()) };
            if commits.is_empty() {
                return Ok(recovery::begin(tx, entropy, now_ms, &row, Why::Lost)?);
            }
            for one in &commits {
                inbox::apply_commit(tx, &context, group, one.commit_seq, &one.commit)?;
            }
            if active_by_live(tx, live)?.is_some_and(|now| now.commit_seq >= up_to) {
                let how = Recovered::MissedCommits;
                tx.add_event(&StoredEvent::Recovered { group_id: group, how })?;
            }
            Ok(())
        });
        applied.await?;
    }
}

/// Numbers of the queue never come.
pub(super) fn note(tx: &Tx<'_>, from: u64, to: u64) -> Result<(), StoreError> {
    tx.add_event(&StoredEvent::Missed { from, to })?;
    tx.look_at_groups()?;
    for group in tx.groups()? {
        tx.note_gap(group.id)?;
    }
    for (account, _) in tx.directs()? {
        tx.note_gap(account)?;
    }
    tx.set_cursor(to)
}

fn active_by_live(tx: &Tx<'_>, live: GroupId) -> Result<Option<GroupRow>, StoreError> {
    Ok(tx.group_by_live(live)?.filter(|row| row.state == GroupState::Active))
}

/// How things stood at one moment.
pub(super) struct Stand {
    /// Where the relay says that groups stand, of those that could be used, by the ids that it knows; `None` for one of
    /// which this device is no member.
    groups: Vec<(GroupId, Option<u64>)>,
    /// What the relay had accepted, and whose own row had not come: of the outbox, and by which groups were joined
    /// anew.
    accepted: Vec<i64>,
    rejoined: Vec<GroupId>,
    /// How often something had been missed.
    looks: u64,
}

/// Asks the relay where the groups stand, if something was missed.
pub(super) async fn look(engine: &Engine) -> Result<Option<Stand>, Error> {
    let usable = engine.store.with_tx(|tx| {
        let looks = tx.looks_at_groups()?;
        if looks == 0 {
            return Ok::<_, Error>(None);
        }
        let mut usable = Vec::new();
        for group in tx.groups()?.into_iter().filter(|group| group.state == GroupState::Active) {
            // A group that the relay is still to hear of is at no place there.
            if !tx.is_to_be_created(group.id)? {
                usable.push(group.live);
            }
        }
        Ok(Some((usable, tx.awaiting_own_row()?, tx.rejoined_without_row()?, looks)))
    });
    let Some((usable, accepted, rejoined, looks)) = usable.await? else { return Ok(None) };
    let list = engine.signed_in(|token| async move { engine.api.groups(&token).await }).await?;
    let at = |group: &GroupId| {
        let summary = list.groups.iter().find(|one| one.group_id == *group)?;
        Some(summary.position.commit_seq)
    };
    let groups = usable.into_iter().map(|live| (live, at(&live))).collect();
    Ok(Some(Stand { groups, accepted, rejoined, looks }))
}

/// Compares that with what this device has, once its queue was drained on a stream opened since. What has not come by
/// then does not come.
pub(super) async fn compare(engine: &Engine, stand: Stand) -> Result<(), Error> {
    let Stand { groups, accepted, rejoined, looks } = stand;
    for (live, at) in groups {
        if let Some(at) = at {
            fetch(engine, live, at).await?;
        }
        let (entropy, now_ms) = (engine.entropy, engine.clock.now_ms());
        let settled = engine.store.with_tx(move |tx| {
            let Some(row) = active_by_live(tx, live)? else { return Ok(()) };
            match at {
                Some(_) => updates::soon(tx, entropy, now_ms, row.id),
                None => settle_absence(tx, &row, entropy, now_ms),
            }
            .map_err(Error::from)
        });
        settled.await?;
    }
    engine
        .store
        .with_tx(move |tx| {
            accepted.iter().try_for_each(|id| tx.start_over(*id))?;
            rejoined.iter().try_for_each(|group| tx.rejoin_again(*group))?;
            Ok(tx.looked_at_groups(looks)?)
        })
        .await
}

/// The relay's list of groups lacks one that can be used here.
fn settle_absence(tx: &Tx<'_>, row: &GroupRow, entropy: Entropy, now_ms: u64) -> Result<(), StoreError> {
    let leaves = |one: &OutboxRow| matches!(one.task, Task::Leave { .. }) && one.state != OutboxState::Waiting;
    if tx.tasks(row.id)?.iter().any(leaves) {
        return inbox::end_group(tx, row, GroupState::Left, &StoredEvent::Left { group_id: row.id });
    }
    recovery::begin(tx, entropy, now_ms, row, Why::Lost)
}
