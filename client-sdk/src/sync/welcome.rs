//! Applying a Welcome: this device is added to a group, let in again, or taken on to a group's successor.
//!
//! Invariant: a Welcome for a group that this device is in changes nothing, and neither does an older one.

use undertone_wire::{Envelope, GroupId};

use super::{
    inbox::{self, Context, Effect, Outcome},
    recovery,
    successor::{self, Stance},
};
use crate::{
    crypto::{
        CryptoError,
        group::{self, Continues, Joined},
    },
    event::{Recovered, StoredEvent},
    store::{GroupRow, GroupState, Standing, StoreError, Tx},
};

/// Applies one; any other envelope is none.
pub(super) fn apply(tx: &Tx<'_>, context: &Context<'_>, envelope: &Envelope) -> Result<Outcome, StoreError> {
    let Envelope::Welcome { group_id: live, commit_seq, group_info, secrets } = envelope else {
        return Ok(Outcome::default());
    };
    let (live, commit_seq) = (*live, *commit_seq);
    if i64::try_from(commit_seq).is_err() {
        return Ok(Outcome::default());
    }
    let known = tx.group_by_live(live)?;
    let suite = known.as_ref().map(|group| group.suite);
    let join = || group::join(&tx.mls(), live, suite, commit_seq, group_info, secrets);
    let Some(group) = known else {
        return match tx.recovery_towards(live)? {
            Some(recovery) => match successor::stance(&recovery, context.now_ms) {
                Stance::Follows => successor::follow(tx, context, &recovery, commit_seq, join),
                Stance::Asks => Ok(Outcome::Follows { group_id: recovery.group_id }),
                Stance::Waits => tx.hold(live, envelope).map(|()| Outcome::default()),
            },
            None => join_new(tx, context, live, commit_seq, join),
        };
    };
    // Who is in gets commits. An older Welcome, which a last-resort key package would open again, is a replay.
    if group.state == GroupState::Active || group.commit_seq >= commit_seq {
        return Ok(Outcome::default());
    }
    let recovering = group.state == GroupState::Recovering;
    if recovering && tx.may_have_rejoined(group.id)? {
        // What comes of that comes later than this.
        return Ok(Outcome::default());
    }
    let Some(joined) = tx.attempt(join)? else {
        return inbox::undecryptable(tx, group.id).map(Outcome::Applied);
    };
    if !recovering && let Some(passed_over) = pass_over_a_blocked(tx, &joined)? {
        return Ok(passed_over);
    }
    let before = tx.member_accounts(group.id)?;
    let named = group.name.clone();
    enter(tx, group.id, commit_seq, &joined)?;
    if recovering {
        inbox::tell_name(tx, group.id, None, &named, &joined.profile.name)?;
        inbox::tell_members(tx, group.id, Some(joined.by.account), &before, &tx.member_accounts(group.id)?)?;
        recovery::done(tx, group.id, Recovered::LetIn)?;
    } else {
        tell_joined(tx, context, group.id, &joined)?;
    }
    Ok(Outcome::Applied(Effect { joined: true, ..Effect::default() }))
}

/// This device has been added to a group of which nothing is known here.
fn join_new(
    tx: &Tx<'_>,
    context: &Context<'_>,
    live: GroupId,
    commit_seq: u64,
    join: impl FnOnce() -> Result<Joined, CryptoError>,
) -> Result<Outcome, StoreError> {
    let Some(joined) = tx.attempt(join)? else {
        return inbox::undecryptable(tx, live).map(Outcome::Applied);
    };
    if let Some(passed_over) = pass_over_a_blocked(tx, &joined)? {
        return Ok(passed_over);
    }
    if let Some(Continues { group, .. }) = joined.profile.continues
        && tx.group_by_live(group)?.is_some_and(|group| !group.state.is_over())
    {
        // The successor of a group that goes on here is none.
        group::forget(&tx.mls(), live)?;
        return Ok(Outcome::default());
    }
    // A conversation that has gone on in another group may have begun with this one.
    let taken = tx.group(live)?.is_some();
    let id = if taken { GroupId::from_random(context.entropy.bytes()?) } else { live };
    enter(tx, id, commit_seq, &joined)?;
    tell_joined(tx, context, id, &joined)?;
    Ok(Outcome::Applied(Effect { joined: true, ..Effect::default() }))
}

/// Somebody has added this device: a stranger asks by that.
fn tell_joined(tx: &Tx<'_>, context: &Context<'_>, group_id: GroupId, joined: &Joined) -> Result<(), StoreError> {
    let (by, name) = (joined.by.account, joined.profile.name.clone());
    let is_known = by == context.identity.account() || tx.standing(by)? == Standing::Known;
    tx.set_requested(group_id, (!is_known).then_some(by))?;
    tx.add_event(&StoredEvent::Joined { group_id, name, by, requested: !is_known })
}

/// If somebody who is blocked has added this device, it has not been added: what it took to know that is undone, but
/// for the key package.
fn pass_over_a_blocked(tx: &Tx<'_>, joined: &Joined) -> Result<Option<Outcome>, StoreError> {
    if tx.standing(joined.by.account)? != Standing::Blocked {
        return Ok(None);
    }
    group::forget(&tx.mls(), joined.group)?;
    Ok(Some(Outcome::Applied(Effect { keys_wanted: true, ..Effect::default() })))
}

/// Notes that this device is in a group now.
pub(super) fn enter(tx: &Tx<'_>, id: GroupId, commit_seq: u64, joined: &Joined) -> Result<(), StoreError> {
    tx.save_group(&GroupRow {
        id,
        live: joined.group,
        suite: joined.suite,
        name: joined.profile.name.clone(),
        state: GroupState::Active,
        commit_seq,
        rejoin_key: joined.rejoin_key.clone(),
    })?;
    let members = group::members(&tx.mls(), joined.group)?;
    tx.note_gap(id)?;
    tx.save_members(id, &members, |_| true)
}
