//! What the relay passes on when a group cannot go on for a device: that it asks to be let in again, and that another group
//! goes on for those who stood in an epoch.
//!
//! Invariant: none of it changes the group. Both are counted in memory, for each device and group, so that nobody floods
//! the others.

use std::{collections::BTreeSet, sync::Arc};

use axum::{extract::State, response::Response};
use serde::Deserialize;
use undertone_wire::{
    DeviceId, ErrorCode, GroupId, GroupPosition, LimitReached, Limits, Problem, RejoinRequest, SendResponse,
    Succession, SuccessorRequest, path,
};

use crate::{
    auth::Caller,
    clock::{Clock, hour_of},
    encoding::{Accept, Body, Named, Parameters, malformed},
    error::Error,
    limits,
    node::Node,
    once::{Once, Purpose},
    rates::Rate,
    store::{
        Conn, Tx, groups,
        queue::{self, Kind, NewEnvelope, Receiver, Room},
    },
};

/// Counts what a device asks of a group's members.
pub(crate) struct Recoveries {
    rejoins: Counted,
    successors: Counted,
}

/// How often a device may do one of them to a group, in an hour.
struct Counted {
    rate: Rate<(DeviceId, GroupId)>,
    limit: &'static str,
    max: u64,
}

impl Recoveries {
    /// Counters at zero.
    pub(crate) fn new(limits: &Limits, clock: &Arc<dyn Clock>) -> Self {
        let counted = |limit, max| Counted { rate: Rate::per_hour(max, clock), limit, max };
        Self {
            rejoins: counted("rejoins_per_group_hour_max", limits.rejoins_per_group_hour_max),
            successors: counted("successors_per_group_hour_max", limits.successors_per_group_hour_max),
        }
    }

    /// Forgets those whose count is back at zero.
    pub(crate) fn tidy(&self) {
        self.rejoins.rate.tidy();
        self.successors.rate.tidy();
    }
}

impl Counted {
    /// Counts one. Only for those who have a say in a group, so that nobody fills the memory with others.
    fn check(&self, device: DeviceId, group: GroupId) -> Result<(), Error> {
        if self.rate.allow(&(device, group)) {
            return Ok(());
        }
        let limit = LimitReached { name: self.limit.to_owned(), value: self.max };
        Err(Error::OverLimit(ErrorCode::TooManyRequests, limit))
    }
}

/// Asks the members of a group to let the caller in again. For devices of accounts that have a member. Repeating it
/// changes nothing.
#[utoipa::path(post, path = path::GROUP_REJOIN, tag = "groups", params(("group" = String, Path)),
    request_body = RejoinRequest,
    responses((status = 200, body = SendResponse), (status = "default", body = Problem)))]
pub(crate) async fn rejoin(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Named(group): Named<GroupId>,
    Body(request): Body<RejoinRequest>,
) -> Result<Response, Error> {
    let once = Once::new(&node, Purpose::Rejoin, Some(&group), request.message_id, &request)?;
    let call = Call::new(&node, caller, group, once);
    node.db.write(move |tx| Box::pin(async move { pass_on_wish(tx, &call).await })).await?;
    Ok(accept.answer(&SendResponse {}))
}

async fn pass_on_wish(tx: &mut Tx, call: &Call) -> Result<(), Error> {
    let (repeated, _) = call.begin(tx).await?;
    let Caller { device, account, .. } = call.caller;
    if !groups::account_is_in(tx, &call.group, &account).await? {
        return Err(Error::not_found());
    }
    if repeated {
        return Ok(());
    }
    call.node.recoveries.rejoins.check(device, call.group)?;
    let members = groups::members_of(tx, &BTreeSet::from([call.group])).await?.remove(&call.group).unwrap_or_default();
    let others = members.into_iter().filter(|member| *member != device).collect();
    let who = [account.as_bytes().as_slice(), device.as_bytes()].concat();
    call.append(tx, Kind::RejoinWanted, 0, &who, others).await
}

/// Where the asking device stood.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct StoodAt {
    /// The number of the commit that began the epoch; 0 if absent.
    #[serde(default)]
    at: u64,
}

/// Tells which group goes on for those who stood in an epoch, and whose the newest commit is. For devices that were
/// members in that epoch.
#[utoipa::path(get, path = path::GROUP_SUCCESSOR, tag = "groups", params(("group" = String, Path), StoodAt),
    responses((status = 200, body = Succession), (status = "default", body = Problem)))]
pub(crate) async fn succession(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Named(group): Named<GroupId>,
    Parameters(stood): Parameters<StoodAt>,
) -> Result<Response, Error> {
    let mut conn = node.db.read().await?;
    let position = groups::position(&mut conn, &group).await?.ok_or_else(Error::not_found)?;
    if !groups::was_member_at(&mut conn, &group, &caller.device, stood.at).await? {
        return Err(Error::not_found());
    }
    Ok(accept.answer(&read_succession(&mut conn, &group, stood.at, position).await?))
}

async fn read_succession(
    conn: &mut Conn,
    group: &GroupId,
    at: u64,
    position: GroupPosition,
) -> Result<Succession, Error> {
    let newest_commit_account = groups::newest_commit_account(conn, group).await?;
    Ok(Succession { position, newest_commit_account, successor: groups::successor(conn, group, at).await? })
}

/// Records the group that goes on for those who stood in an epoch, unless one is recorded, and tells them. Answers the one
/// that is recorded. For devices that were members in that epoch and are in the group that goes on, but none of the account
/// that has posted the newest commit since. Repeating it changes nothing.
#[utoipa::path(post, path = path::GROUP_SUCCESSOR, tag = "groups", params(("group" = String, Path)),
    request_body = SuccessorRequest,
    responses((status = 200, body = Succession), (status = "default", body = Problem)))]
pub(crate) async fn succeed(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Named(group): Named<GroupId>,
    Body(request): Body<SuccessorRequest>,
) -> Result<Response, Error> {
    let once = Once::new(&node, Purpose::Successor, Some(&group), request.message_id, &request)?;
    let call = Call::new(&node, caller, group, once);
    let recorded =
        node.db.write(move |tx| Box::pin(async move { record_successor(tx, &call, &request).await })).await?;
    Ok(accept.answer(&recorded))
}

async fn record_successor(tx: &mut Tx, call: &Call, request: &SuccessorRequest) -> Result<Succession, Error> {
    let SuccessorRequest { at, successor, replaces, .. } = request;
    let (repeated, position) = call.begin(tx).await?;
    if !groups::was_member_at(tx, &call.group, &call.caller.device, *at).await? {
        return Err(Error::not_found());
    }
    let recorded = groups::successor(tx, &call.group, *at).await?;
    if repeated || (recorded.is_some() && recorded != *replaces) || recorded == Some(*successor) {
        return read_succession(tx, &call.group, *at, position).await;
    }
    let newest = groups::newest_commit_account(tx, &call.group).await?;
    if *at < position.commit_seq && newest == Some(call.caller.account) {
        return Err(malformed("who posted the newest commit does not found what goes on without it"));
    }
    let standing = groups::standing(tx, successor, &call.caller.device).await?;
    if *successor == call.group || !standing.is_some_and(|standing| standing.member) {
        return Err(malformed("the successor is another group, of which the caller is a member"));
    }
    call.node.recoveries.successors.check(call.caller.device, call.group)?;
    groups::record_successor(tx, &call.group, *at, successor, hour_of(call.now_ms)).await?;
    let told = groups::members_at(tx, &call.group, *at).await?;
    call.append(tx, Kind::Successor, *at, successor.as_bytes(), told).await?;
    read_succession(tx, &call.group, *at, position).await
}

/// What a device asks of a group, at a time.
struct Call {
    node: Node,
    caller: Caller,
    group: GroupId,
    now_ms: u64,
    room: Room,
    once: Once,
}

impl Call {
    fn new(node: &Node, caller: Caller, group: GroupId, once: Once) -> Self {
        let (now_ms, room) = (node.now_ms(), limits::room(&node.limits));
        Self { node: node.clone(), caller, group, now_ms, room, once }
    }

    /// Locks the message id and the group. Answers whether this was accepted before, and where the group stands. Refused if
    /// the caller's session has ended.
    async fn begin(&self, tx: &mut Tx) -> Result<(bool, GroupPosition), Error> {
        let claimed = self.once.claim(tx).await;
        let position = groups::lock(tx, &BTreeSet::from([self.group])).await?.remove(&self.group);
        self.caller.still_holds(tx, self.now_ms).await?;
        Ok((claimed?.is_some(), position.ok_or_else(Error::not_found)?))
    }

    /// Tells devices, as far as they are listed still.
    async fn append(
        &self,
        tx: &mut Tx,
        kind: Kind,
        number: u64,
        payload: &[u8],
        devices: BTreeSet<DeviceId>,
    ) -> Result<(), Error> {
        let cursors = queue::lock(tx, &devices).await?;
        let listed = devices.into_iter().filter(|device| cursors.get(device).is_some());
        let envelope = NewEnvelope {
            kind,
            group: Some(self.group),
            number,
            expires_hour_ms: limits::kept_until_ms(&self.node.limits, self.now_ms, None),
            payload,
            held_by_commits: false,
            receivers: listed.map(Receiver::from).collect(),
        };
        queue::append(tx, cursors, &self.room, &[envelope]).await?;
        Ok(())
    }
}
