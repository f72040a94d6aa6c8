//! What members post: commits, messages and leave notices, and the rule by which each is accepted (spec/protocol.md, section 4).
//!
//! Invariant: a post is accepted iff its sender is a member, its `at` is the group's `commit_seq` and its epoch the
//! group's. So nothing old follows a commit. A refusal says where the group stands, and where in the sender's own queue
//! the commits are that it lacks.

use axum::{extract::State, response::Response};
use undertone_wire::{
    AuthenticatedData, Bytes, CommitRequest, CommitResponse, DeviceId, ErrorCode, GroupId, GroupPosition, LeaveRequest,
    Limits, Problem, SendRequest, SendResponse, StaleGroup, WelcomeParts, path,
};

use crate::{
    auth::Caller,
    clock::hour_of,
    encoding::{Accept, Body, Named},
    error::Error,
    limits,
    mls::{self, Content, Header, bad_message},
    node::Node,
    once::{FirstAnswer, Once, Purpose},
    store::{
        Tx, accounts,
        groups::{self, Ending, NewCommit},
        queue::{self, Kind, NewEnvelope},
    },
};

/// Most commits that a refusal lists; who has more to read asks again after reading those.
const UNACKED_MAX: u64 = 1_000;

/// A post by a device to a group, at a time.
struct Post {
    caller: Caller,
    group: GroupId,
    header: Header,
    now_ms: u64,
    once: Once,
}

/// Posts a commit with all that goes with it. Accepted whole or not at all; repeating it changes nothing.
#[utoipa::path(post, path = path::GROUP_COMMITS, tag = "groups", params(("group" = String, Path)),
    request_body = CommitRequest,
    responses((status = 200, body = CommitResponse), (status = "default", body = Problem)))]
pub(crate) async fn commit(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Named(group): Named<GroupId>,
    Body(request): Body<CommitRequest>,
) -> Result<Response, Error> {
    check_sizes(&node.limits, &request)?;
    let once = Once::new(&node, Purpose::Commit, Some(&group), request.message_id, &request)?;
    let header = mls::header(request.commit.as_slice(), &group, Content::Commit)?;
    check_welcome(&node.limits, &header.data, request.welcome.as_ref())?;
    let post = Post { caller, group, header, now_ms: node.now_ms(), once };
    let devices_max = node.limits.group_devices_max;
    let commit_seq =
        node.db.write(move |tx| Box::pin(async move { accept_commit(tx, &post, &request, devices_max).await }));
    Ok(accept.answer(&CommitResponse { commit_seq: commit_seq.await? }))
}

fn check_sizes(allowed: &Limits, request: &CommitRequest) -> Result<(), Error> {
    limits::bytes("commit_bytes_max", allowed.commit_bytes_max, request.commit.len())?;
    limits::bytes("group_info_bytes_max", allowed.group_info_bytes_max, request.sealed_group_info.len())?;
    let Some(welcome) = &request.welcome else { return Ok(()) };
    limits::bytes("welcome_bytes_max", allowed.welcome_bytes_max, welcome.group_info.len())?;
    welcome.secrets.iter().try_for_each(|entry| {
        limits::bytes("welcome_secrets_bytes_max", allowed.welcome_secrets_bytes_max, entry.secrets.len())
    })
}

fn check_welcome(allowed: &Limits, data: &AuthenticatedData, welcome: Option<&WelcomeParts>) -> Result<(), Error> {
    limits::count("commit_added_max", allowed.commit_added_max, data.added.len() as u64)?;
    let joiners = welcome.map_or(&[][..], |welcome| &welcome.secrets);
    if welcome.is_some() == data.added.is_empty() || !joiners.iter().map(|entry| &entry.device_id).eq(&data.added) {
        return Err(bad_message(
            "a Welcome has exactly one entry for each device that the commit adds, in the same order",
        ));
    }
    Ok(())
}

async fn accept_commit(tx: &mut Tx, post: &Post, request: &CommitRequest, devices_max: u64) -> Result<u64, Error> {
    if let Some(first) = post.first_answer(tx).await? {
        return first.commit_seq.ok_or(Error::Failed("a remembered commit without a number"));
    }
    let position = post.position(tx).await?;
    let AuthenticatedData { added, removed, .. } = &post.header.data;
    check_removed(tx, post, removed).await?;
    check_added(tx, post, added, removed).await?;

    let members_before = groups::member_count(tx, &post.group).await?;
    let commit_seq = position.commit_seq + 1;
    let envelope = post.envelope(Kind::Commit, commit_seq, &request.commit);
    let envelope = queue::append_to_members(tx, &envelope, true).await?;
    let envelope = envelope.ok_or(Error::Failed("a group without members took a commit"))?;
    let posted_hour_ms = hour_of(post.now_ms);
    let commit = NewCommit { group: post.group, commit_seq, envelope, added, removed, posted_hour_ms };
    groups::add_commit(tx, &commit).await?;
    groups::advance(tx, &post.group, &post.caller.account, request.sealed_group_info.as_slice()).await?;
    for device in removed {
        groups::end_stay(tx, &post.group, device, commit_seq, posted_hour_ms, Ending::ByCommit).await?;
    }
    for device in added {
        groups::begin_stay(tx, &post.group, device, commit_seq).await?;
    }
    let members = groups::member_count(tx, &post.group).await?;
    if members > members_before {
        limits::count("group_devices_max", devices_max, members)?;
    }
    if let Some(welcome) = &request.welcome {
        append_welcome(tx, post, commit_seq, welcome).await?;
    }
    post.once.remember(tx, FirstAnswer { commit_seq: Some(commit_seq) }).await?;
    Ok(commit_seq)
}

async fn check_removed(tx: &mut Tx, post: &Post, removed: &[DeviceId]) -> Result<(), Error> {
    for device in removed {
        if *device == post.caller.device {
            return Err(bad_message("a commit cannot remove its author; leave instead"));
        }
        match groups::standing(tx, &post.group, device).await? {
            Some(standing) if standing.member || standing.awaits_removal => {}
            _ => return Err(bad_message("a device to be removed is not in the group")),
        }
    }
    Ok(())
}

async fn check_added(tx: &mut Tx, post: &Post, added: &[DeviceId], removed: &[DeviceId]) -> Result<(), Error> {
    for device in added {
        if accounts::device(tx, device).await?.is_none() {
            return Err(Error::refused(
                ErrorCode::UnknownDevice,
                "fetch the account again, and add its listed devices",
            ));
        }
        let standing = groups::standing(tx, &post.group, device).await?;
        let in_tree = standing.is_some_and(|standing| standing.member || standing.awaits_removal);
        if in_tree && removed.binary_search(device).is_err() {
            return Err(bad_message("a device to be added is in the group; remove its leaf in the same commit"));
        }
    }
    Ok(())
}

async fn append_welcome(tx: &mut Tx, post: &Post, commit_seq: u64, welcome: &WelcomeParts) -> Result<(), Error> {
    let envelope = post.envelope(Kind::Welcome, commit_seq, &welcome.group_info);
    let receivers: Vec<_> = welcome.secrets.iter().map(|entry| (entry.device_id, entry.secrets.clone())).collect();
    Ok(queue::append_to(tx, &envelope, &receivers).await?)
}

/// Posts an application message to all member devices, the caller's own included. Repeating it changes nothing.
#[utoipa::path(post, path = path::GROUP_MESSAGES, tag = "groups", params(("group" = String, Path)),
    request_body = SendRequest,
    responses((status = 200, body = SendResponse), (status = "default", body = Problem)))]
pub(crate) async fn message(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Named(group): Named<GroupId>,
    Body(request): Body<SendRequest>,
) -> Result<Response, Error> {
    let once = Once::new(&node, Purpose::Message, Some(&group), request.message_id, &request)?;
    let header = application_header(&node, &group, &request.message)?;
    let post = Post { caller, group, header, now_ms: node.now_ms(), once };
    node.db.write(move |tx| Box::pin(async move { accept_message(tx, &post, &request.message).await })).await?;
    Ok(accept.answer(&SendResponse {}))
}

async fn accept_message(tx: &mut Tx, post: &Post, message: &Bytes) -> Result<(), Error> {
    if post.first_answer(tx).await?.is_some() {
        return Ok(());
    }
    post.position(tx).await?;
    queue::append_to_members(tx, &post.envelope(Kind::Message, 0, message), false).await?;
    post.once.remember(tx, FirstAnswer { commit_seq: None }).await
}

/// Takes the caller's account out of a group, with a last notice to all members. Repeating it changes nothing.
#[utoipa::path(post, path = path::GROUP_LEAVE, tag = "groups", params(("group" = String, Path)),
    request_body = LeaveRequest,
    responses((status = 200, body = SendResponse), (status = "default", body = Problem)))]
pub(crate) async fn leave(
    State(node): State<Node>,
    caller: Caller,
    accept: Accept,
    Named(group): Named<GroupId>,
    Body(request): Body<LeaveRequest>,
) -> Result<Response, Error> {
    let once = Once::new(&node, Purpose::Leave, Some(&group), request.message_id, &request)?;
    let header = application_header(&node, &group, &request.notice)?;
    let post = Post { caller, group, header, now_ms: node.now_ms(), once };
    node.db.write(move |tx| Box::pin(async move { accept_leave(tx, &post, &request.notice).await })).await?;
    Ok(accept.answer(&SendResponse {}))
}

async fn accept_leave(tx: &mut Tx, post: &Post, notice: &Bytes) -> Result<(), Error> {
    if post.first_answer(tx).await?.is_some() {
        return Ok(());
    }
    let position = post.position(tx).await?;
    queue::append_to_members(tx, &post.envelope(Kind::Message, 0, notice), false).await?;
    let (ended, hour_ms) = (position.commit_seq, hour_of(post.now_ms));
    for device in groups::members_of_account(tx, &post.group, &post.caller.account).await? {
        groups::end_stay(tx, &post.group, &device, ended, hour_ms, Ending::WithoutCommit).await?;
    }
    groups::bump_members(tx, &post.group).await?;
    post.once.remember(tx, FirstAnswer { commit_seq: None }).await
}

fn application_header(node: &Node, group: &GroupId, message: &Bytes) -> Result<Header, Error> {
    limits::bytes("envelope_bytes_max", node.limits.envelope_bytes_max, message.len())?;
    let header = mls::header(message.as_slice(), group, Content::Application)?;
    if !header.data.added.is_empty() || !header.data.removed.is_empty() {
        return Err(bad_message("only a commit adds or removes devices"));
    }
    Ok(header)
}

impl Post {
    /// The first answer, if this was accepted before. Refused if the caller's session has ended.
    async fn first_answer(&self, tx: &mut Tx) -> Result<Option<FirstAnswer>, Error> {
        self.caller.still_holds(tx, self.now_ms).await?;
        self.once.first_answer(tx).await
    }

    /// Where the group stands, if that is where the post was made by a member; else a refusal with what it lacks.
    async fn position(&self, tx: &mut Tx) -> Result<GroupPosition, Error> {
        let position = groups::position(tx, &self.group).await?.ok_or_else(Error::not_found)?;
        let standing = groups::standing(tx, &self.group, &self.caller.device).await?.ok_or_else(Error::not_found)?;
        let current = self.header.data.at == position.commit_seq && self.header.epoch == position.epoch;
        if standing.member && current {
            return Ok(position);
        }
        let unacked = queue::unacked_commits(tx, &self.caller.device, &self.group, UNACKED_MAX).await?;
        Err(Error::StaleGroup(StaleGroup { position, member: standing.member, unacked }))
    }

    fn envelope<'a>(&self, kind: Kind, number: u64, payload: &'a Bytes) -> NewEnvelope<'a> {
        NewEnvelope {
            kind,
            group: self.group,
            number,
            posted_hour_ms: hour_of(self.now_ms),
            payload: payload.as_slice(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing;
    use undertone_wire::{Hash, MessageId};

    /// A post by this caller to a group that does not exist.
    fn post(node: &Node, caller: Caller, byte: u8) -> Post {
        let group = GroupId::from_random([0x67; 16]);
        let id = MessageId::from_parts(0, [byte; 10]);
        let once = Once::new(node, Purpose::Message, Some(&group), id, &()).unwrap();
        let header = Header { epoch: 0, data: AuthenticatedData::default() };
        Post { caller, group, header, now_ms: 0, once }
    }

    /// What becomes of a commit, a message and a leave of this caller.
    async fn outcomes(node: &Node, caller: Caller) -> [Result<(), Error>; 3] {
        let (one, two, three) = (post(node, caller, 1), post(node, caller, 2), post(node, caller, 3));
        let request = CommitRequest {
            message_id: MessageId::from_parts(0, [1; 10]),
            commit: vec![].into(),
            welcome: None,
            sealed_group_info: vec![].into(),
        };
        let bytes = Bytes::default();
        let notice = bytes.clone();
        [
            node.db
                .write(move |tx| Box::pin(async move { accept_commit(tx, &one, &request, 9).await.map(|_| ()) }))
                .await,
            node.db.write(move |tx| Box::pin(async move { accept_message(tx, &two, &bytes).await })).await,
            node.db.write(move |tx| Box::pin(async move { accept_leave(tx, &three, &notice).await })).await,
        ]
    }

    #[tokio::test]
    async fn whether_the_session_holds_is_asked_where_the_effect_is() {
        let folder = tempfile::tempdir().unwrap();
        let node = testing::node(folder.path()).await;
        let caller = testing::caller(&node, 1).await;
        for outcome in outcomes(&node, caller).await {
            assert!(matches!(outcome, Err(Error::Refused(ErrorCode::NotFound, _))), "{outcome:?}");
        }
        let ended = Caller { token_hash: Hash::of(b"ended"), ..caller };
        for outcome in outcomes(&node, ended).await {
            assert!(matches!(outcome, Err(Error::Refused(ErrorCode::Unauthenticated, _))), "{outcome:?}");
        }
    }
}
