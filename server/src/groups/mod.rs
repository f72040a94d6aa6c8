//! Groups: who is in them, and the order of their commits. `post` takes what members post, `recovery` what devices ask
//! for when a group cannot go on for them, this file the rest.
//!
//! The relay knows a group by numbers and device ids. What it reads of a message is a claim that members can check.
//!
//! Invariant: a group's `commit_seq`, epoch, members, sealed group info and the queue rows that follow from a commit
//! change in one transaction. A device that never was a member cannot tell a group from one that does not exist, but by
//! asking to create one under its very id, which nobody guesses: 122 random bits.

mod post;
mod recovery;

use std::collections::{BTreeMap, BTreeSet};

use axum::{extract::State, response::Response};
use serde::Deserialize;
use undertone_wire::{
    AccountId, CreateGroupRequest, DeviceId, ErrorCode, Group, GroupCommits, GroupId, GroupList, GroupMembers,
    GroupPosition, Problem, StaleGroup, path,
};

pub(crate) use post::{__path_commit, __path_leave, commit, leave};
pub(crate) use recovery::{__path_rejoin, __path_succeed, __path_succession, Recoveries, rejoin, succeed, succession};

use crate::{
    auth::Caller,
    clock::hour_of,
    encoding::{Accept, Body, Named, Parameters},
    error::Error,
    limits,
    node::Node,
    store::{
        Conn, Tx, accounts,
        groups::{self, Ending},
        queue::{self, Kind, NewEnvelope},
    },
};

/// Most commits that a refusal lists; who has more to read asks again after reading those.
const UNACKED_MAX: u64 = 1_000;

/// Lists the groups in which the caller is a member.
#[utoipa::path(get, path = path::GROUPS, tag = "groups",
    responses((status = 200, body = GroupList), (status = "default", body = Problem)))]
pub(crate) async fn list(State(node): State<Node>, caller: Caller, accept: Accept) -> Result<Response, Error> {
    let groups = groups::groups_of(&mut node.db.read().await?, &caller.device).await?;
    Ok(accept.answer(&GroupList { groups }))
}

/// Creates a group whose only member is the caller. Repeating it changes nothing.
#[utoipa::path(post, path = path::GROUPS, tag = "groups", request_body = CreateGroupRequest,
    responses((status = 200, body = Group), (status = "default", body = Problem)))]
pub(crate) async fn create(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Body(request): Body<CreateGroupRequest>,
) -> Result<Response, Error> {
    let max = node.limits.group_info_bytes_max;
    limits::bytes("group_info_bytes_max", max, request.sealed_group_info.len())?;
    let (now_ms, groups_max) = (node.now_ms(), node.limits.device_groups_max);
    let group = node.db.write(move |tx| Box::pin(async move { found(tx, &caller, request, now_ms, groups_max).await }));
    Ok(accept.answer(&group.await?))
}

async fn found(
    tx: &mut Tx,
    caller: &Caller,
    request: CreateGroupRequest,
    now_ms: u64,
    groups_max: u64,
) -> Result<Group, Error> {
    let CreateGroupRequest { group_id, sealed_group_info } = request;
    let added = groups::add(tx, &group_id, &caller.account, sealed_group_info.as_slice()).await?;
    accounts::lock_devices(tx, &BTreeSet::from([caller.device])).await?;
    caller.still_holds(tx, now_ms).await?;
    if added {
        check_group_counts(tx, &BTreeSet::from([caller.device]), groups_max).await?;
        groups::begin_stays(tx, &group_id, &[caller.device], 0).await?;
        let position = GroupPosition { epoch: 0, commit_seq: 0, members_version: 0 };
        return Ok(Group { group_id, position, sealed_group_info });
    }
    let position = groups::position(tx, &group_id).await?.ok_or_else(Error::not_found)?;
    match groups::standing(tx, &group_id, &caller.device).await? {
        Some(standing) if standing.founder => with_group_info(tx, group_id, position).await,
        _ => Err(Error::refused(ErrorCode::GroupExists, "choose another random group id")),
    }
}

/// Refuses if one of these devices is in as many groups as it may be.
async fn check_group_counts(tx: &mut Tx, devices: &BTreeSet<DeviceId>, max: u64) -> Result<(), Error> {
    let counts = groups::group_counts(tx, devices).await?;
    counts.values().try_for_each(|count| limits::count("device_groups_max", max, count + 1))
}

/// A refusal, with what it lacks to be repaired: where in the caller's own queue the group's commits are.
pub(crate) async fn with_unacked(node: &Node, caller: &Caller, group: &GroupId, error: Error) -> Error {
    let Error::StaleGroup(stale) = error else { return error };
    let unacked = async {
        let mut conn = node.db.read().await?;
        queue::unacked_commits(&mut conn, &caller.device, group, UNACKED_MAX).await
    };
    match unacked.await {
        Ok(unacked) => Error::StaleGroup(StaleGroup { unacked, ..stale }),
        Err(error) => error.into(),
    }
}

/// Tells where a group stands, with its newest sealed group info. For members and other devices of their accounts.
#[utoipa::path(get, path = path::GROUP, tag = "groups", params(("group" = String, Path)),
    responses((status = 200, body = Group), (status = "default", body = Problem)))]
pub(crate) async fn group(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Named(group): Named<GroupId>,
) -> Result<Response, Error> {
    let mut conn = node.db.read().await?;
    let position = groups::position(&mut conn, &group).await?.ok_or_else(Error::not_found)?;
    if !groups::account_is_in(&mut conn, &group, &caller.account).await? {
        return Err(Error::not_found());
    }
    Ok(accept.answer(&with_group_info(&mut conn, group, position).await?))
}

async fn with_group_info(conn: &mut Conn, group_id: GroupId, position: GroupPosition) -> Result<Group, Error> {
    let info = groups::sealed_group_info(conn, &group_id).await?.ok_or_else(Error::not_found)?;
    Ok(Group { group_id, position, sealed_group_info: info.into() })
}

/// Lists a group's member devices. For members.
#[utoipa::path(get, path = path::GROUP_MEMBERS, tag = "groups", params(("group" = String, Path)),
    responses((status = 200, body = GroupMembers), (status = "default", body = Problem)))]
pub(crate) async fn members(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Named(group): Named<GroupId>,
) -> Result<Response, Error> {
    let mut conn = node.db.read().await?;
    let position = position_for_member(&mut conn, &caller, &group).await?;
    let members = groups::members(&mut conn, &group).await?;
    Ok(accept.answer(&GroupMembers { position, members }))
}

/// From which commit on.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct CommitsAfter {
    /// The number of the last commit that the caller has; 0 if absent.
    #[serde(default)]
    after: u64,
}

/// Serves commits that a member missed, oldest first. For members.
#[utoipa::path(get, path = path::GROUP_COMMITS, tag = "groups", params(("group" = String, Path), CommitsAfter),
    responses((status = 200, body = GroupCommits), (status = "default", body = Problem)))]
pub(crate) async fn commits(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Named(group): Named<GroupId>,
    Parameters(query): Parameters<CommitsAfter>,
) -> Result<Response, Error> {
    let mut conn = node.db.read().await?;
    position_for_member(&mut conn, &caller, &group).await?;
    let (entries_max, bytes_max) = (node.limits.fetch_entries_max, node.limits.fetch_bytes_max);
    let commits = groups::commits_after(&mut conn, &group, query.after, entries_max, bytes_max).await?;
    Ok(accept.answer(&GroupCommits { commits }))
}

async fn position_for_member(conn: &mut Conn, caller: &Caller, group: &GroupId) -> Result<GroupPosition, Error> {
    let position = groups::position(conn, group).await?.ok_or_else(Error::not_found)?;
    match groups::standing(conn, group, &caller.device).await? {
        Some(standing) if standing.member => Ok(position),
        _ => Err(Error::not_found()),
    }
}

/// Locks what some devices of an account leave when they are unlisted: their groups, with those whose newest commit is the
/// account's, then these devices and `others` of the account. Whose device was added to a group in between has to begin
/// again.
pub(crate) async fn lock_for_departure(
    tx: &mut Tx,
    account: &AccountId,
    devices: &BTreeSet<DeviceId>,
    others: impl Iterator<Item = DeviceId>,
) -> Result<Departure, Error> {
    let mut concerned: BTreeSet<_> = groups::stays_of(tx, devices).await?.into_keys().collect();
    concerned.extend(groups::committed_by(tx, account).await?);
    let positions = groups::lock(tx, &concerned).await?;
    accounts::lock_devices(tx, &others.chain(devices.iter().copied()).collect()).await?;
    let stays = groups::stays_of(tx, devices).await?;
    let committed = groups::committed_by(tx, account).await?;
    if !stays.keys().chain(&committed).all(|group| concerned.contains(group)) {
        return Err(Error::Again);
    }
    Ok(Departure { stays, positions })
}

/// The groups that devices will leave, and where those stand.
pub(crate) struct Departure {
    stays: BTreeMap<GroupId, Vec<DeviceId>>,
    positions: BTreeMap<GroupId, GroupPosition>,
}

/// What becomes of groups that devices have left.
pub(crate) struct Left {
    /// What those who stay are to be told, once for each group.
    pub(crate) told: Vec<NewEnvelope<'static>>,
    /// The groups in which nobody stays. They are to be deleted once queues are locked: their commits hold envelopes.
    pub(crate) deserted: Vec<GroupId>,
}

/// Takes devices that are no longer listed out of all their groups.
pub(crate) async fn remove_devices(
    tx: &mut Tx,
    devices: &BTreeSet<DeviceId>,
    departure: Departure,
    now_ms: u64,
    expires_hour_ms: u64,
) -> Result<Left, Error> {
    for (group, gone) in &departure.stays {
        let ended = departure.positions.get(group).map_or(0, |position| position.commit_seq);
        groups::end_stays(tx, group, gone, ended, hour_of(now_ms), Ending::WithoutCommit).await?;
    }
    groups::forget_devices(tx, devices).await?;
    let all: BTreeSet<_> = departure.stays.into_keys().collect();
    let mut members = groups::members_of(tx, &all).await?;
    let mut left = Left { told: Vec::new(), deserted: Vec::new() };
    for group in all {
        let Some(members) = members.remove(&group) else {
            left.deserted.push(group);
            continue;
        };
        left.told.push(NewEnvelope {
            kind: Kind::MembersGone,
            group: Some(group),
            number: groups::bump_members(tx, &group).await?,
            expires_hour_ms,
            payload: &[],
            held_by_commits: false,
            receivers: members.into_iter().map(Into::into).collect(),
        });
    }
    Ok(left)
}
