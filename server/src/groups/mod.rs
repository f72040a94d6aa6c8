//! Groups: who is in them, and the order of their commits. `post` takes what members post, this file the rest.
//!
//! The relay knows a group by numbers and device ids. What it reads of a message is a claim that members can check.
//!
//! Invariant: a group's `commit_seq`, epoch, members, sealed group info and the queue rows that follow from a commit
//! change in one transaction. A device that never was a member cannot tell a group from one that does not exist, but by
//! asking to create one under its very id, which nobody guesses: 122 random bits.

mod post;

use std::collections::BTreeSet;

use axum::{extract::State, response::Response};
use serde::Deserialize;
use undertone_wire::{
    CreateGroupRequest, DeviceId, ErrorCode, Group, GroupCommits, GroupId, GroupList, GroupMembers, GroupPosition,
    GroupSummary, Problem, path,
};

pub(crate) use post::{__path_commit, __path_leave, __path_message, commit, leave, message};

use crate::{
    auth::Caller,
    clock::hour_of,
    encoding::{Accept, Body, Named, Parameters},
    error::Error,
    limits,
    node::Node,
    store::{
        Conn, Tx,
        groups::{self, Ending},
        queue::{self, Kind, NewEnvelope},
    },
};

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
    let now_ms = node.now_ms();
    let group = node.db.write(move |tx| {
        Box::pin(async move {
            caller.still_holds(tx, now_ms).await?;
            found(tx, &caller, request).await
        })
    });
    Ok(accept.answer(&group.await?))
}

async fn found(tx: &mut Tx, caller: &Caller, request: CreateGroupRequest) -> Result<Group, Error> {
    let CreateGroupRequest { group_id, sealed_group_info } = request;
    let Some(position) = groups::position(tx, &group_id).await? else {
        groups::add(tx, &group_id, &caller.account, sealed_group_info.as_slice()).await?;
        groups::begin_stay(tx, &group_id, &caller.device, 0).await?;
        return Ok(Group {
            group_id,
            position: GroupPosition { epoch: 0, commit_seq: 0, members_version: 0 },
            sealed_group_info,
        });
    };
    match groups::standing(tx, &group_id, &caller.device).await? {
        Some(standing) if standing.founder => with_group_info(tx, group_id, position).await,
        _ => Err(Error::refused(ErrorCode::GroupExists, "choose another random group id")),
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

/// Takes devices that are no longer listed out of all their groups, and tells those who stay, once for each group. A
/// group in which nobody stays is deleted.
pub(crate) async fn remove_devices(tx: &mut Tx, devices: &[DeviceId], now_ms: u64) -> Result<(), Error> {
    let hour_ms = hour_of(now_ms);
    let mut left = BTreeSet::new();
    for device in devices {
        for GroupSummary { group_id, position } in groups::groups_of(tx, device).await? {
            let ended = position.commit_seq;
            groups::end_stay(tx, &group_id, device, ended, hour_ms, Ending::WithoutCommit).await?;
            left.insert(group_id);
        }
        groups::forget_device(tx, device).await?;
    }
    for group in left {
        if groups::member_count(tx, &group).await? == 0 {
            groups::delete(tx, &group).await?;
        } else {
            tell_members_gone(tx, group, hour_ms).await?;
        }
    }
    Ok(())
}

async fn tell_members_gone(tx: &mut Tx, group: GroupId, posted_hour_ms: u64) -> Result<(), Error> {
    let number = groups::bump_members(tx, &group).await?;
    let gone = NewEnvelope { kind: Kind::MembersGone, group, number, posted_hour_ms, payload: &[] };
    queue::append_to_members(tx, &gone, false).await?;
    Ok(())
}
