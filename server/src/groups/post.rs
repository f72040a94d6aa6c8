//! What changes a group: commits and leave notices, and the rule by which each is accepted (spec/protocol.md, section 4).
//!
//! Invariant: a post is accepted iff its sender is a member, its `at` is the group's `commit_seq` and its epoch the
//! group's. A commit by which a device joins on its own is accepted iff its account has a member, it adds that device, and
//! removes nothing but the leaf that it had. So nothing old follows a commit. A refusal says where the group stands, and
//! where in the sender's own queue the commits are that it lacks.

use std::collections::BTreeSet;

use axum::{extract::State, response::Response};
use undertone_wire::{
    AuthenticatedData, Bytes, CommitRequest, CommitResponse, DeviceId, ErrorCode, GroupId, GroupPosition, LeaveRequest,
    Limits, Problem, SendResponse, WelcomeParts, WelcomeSecrets, path,
};

use crate::{
    auth::Caller,
    clock::hour_of,
    encoding::{Accept, Body, Named},
    error::Error,
    kill, limits,
    messages::{application_header, check_position},
    mls::{self, Content, Header, bad_message},
    node::Node,
    once::{FirstAnswer, Once, Purpose},
    store::{
        Tx, accounts,
        groups::{self, Ending, NewCommit, Standing},
        queue::{self, Kind, NewEnvelope, Receiver, Room},
    },
};

/// A post by a device to a group, at a time.
struct Post {
    caller: Caller,
    group: GroupId,
    header: Header,
    now_ms: u64,
    expires_hour_ms: u64,
    room: Room,
    once: Once,
}

/// What is known of a post once everything it depends on is locked.
struct Begun {
    /// The first answer, if this was accepted before.
    first: Option<FirstAnswer>,
    /// Where the group stands, if there is one.
    position: Option<GroupPosition>,
    /// Whether all devices to be added are listed.
    all_listed: bool,
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
    check_count(&node.limits, &header.data)?;
    match header.joins {
        true => check_joiner(&caller, &header.data, request.welcome.as_ref())?,
        false => check_welcome(&header.data, request.welcome.as_ref())?,
    }
    let (post, limits) = (Post::new(&node, caller, group, header, once), node.limits.clone());
    let accepted = node
        .db
        .write(move |tx| {
            Box::pin(async move {
                let commit_seq = accept_commit(tx, &post, &request, &limits).await?;
                kill::point("commit", kill::BEFORE_COMMIT);
                Ok(commit_seq)
            })
        })
        .await;
    match accepted {
        Ok(commit_seq) => {
            kill::point("commit", kill::BEFORE_ANSWER);
            Ok(accept.answer(&CommitResponse { commit_seq }))
        }
        Err(error) => Err(super::with_unacked(&node, &caller, &group, error).await),
    }
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

fn check_count(allowed: &Limits, data: &AuthenticatedData) -> Result<(), Error> {
    limits::count("commit_added_max", allowed.commit_added_max, data.added.len() as u64)
}

/// Who joins on its own adds itself, and removes at most the leaf that it had.
fn check_joiner(caller: &Caller, data: &AuthenticatedData, welcome: Option<&WelcomeParts>) -> Result<(), Error> {
    let own = [caller.device];
    if data.added != own || !(data.removed.is_empty() || data.removed == own) || welcome.is_some() {
        return Err(bad_message(
            "a device that joins on its own adds itself, without a Welcome, and removes nothing but its own leaf",
        ));
    }
    Ok(())
}

fn check_welcome(data: &AuthenticatedData, welcome: Option<&WelcomeParts>) -> Result<(), Error> {
    let joiners = welcome.map_or(&[][..], |welcome| &welcome.secrets);
    if welcome.is_some() == data.added.is_empty() || !joiners.iter().map(|entry| &entry.device_id).eq(&data.added) {
        return Err(bad_message(
            "a Welcome has exactly one entry for each device that the commit adds, in the same order",
        ));
    }
    Ok(())
}

async fn accept_commit(tx: &mut Tx, post: &Post, request: &CommitRequest, limits: &Limits) -> Result<u64, Error> {
    let AuthenticatedData { added, removed, .. } = &post.header.data;
    let begun = post.begin(tx, added).await?;
    if let Some(first) = begun.first {
        return first.commit_seq.ok_or(Error::Failed("a remembered commit without a number"));
    }
    let devices = [&[post.caller.device], added.as_slice(), removed.as_slice()].concat();
    let standings = groups::standings(tx, &devices.iter().map(|device| (post.group, *device)).collect()).await?;
    let standing = |device: &DeviceId| standings.get(&(post.group, *device));
    let own = standing(&post.caller.device).copied();
    let own = if post.header.joins { with_account(tx, post, own).await? } else { own };
    let position = check_position(begun.position, own.as_ref(), &post.header)?;
    check_removed(post, removed, standing)?;
    if !begun.all_listed {
        let what_to_do = "fetch the account again, and add its listed devices";
        return Err(Error::refused(ErrorCode::UnknownDevice, what_to_do));
    }
    check_added(added, removed, standing)?;
    super::check_group_counts(tx, &added.iter().copied().collect(), limits.device_groups_max).await?;

    let before = groups::members_of(tx, &BTreeSet::from([post.group])).await?.remove(&post.group).unwrap_or_default();
    let staying = before.iter().filter(|device| removed.binary_search(device).is_err()).count();
    if staying + added.len() > before.len() {
        limits::count("group_devices_max", limits.group_devices_max, (staying + added.len()) as u64)?;
    }
    let commit_seq = position.commit_seq + 1;
    let envelope = append_commit(tx, post, request, before, commit_seq).await?;
    let posted_hour_ms = hour_of(post.now_ms);
    let commit = NewCommit { group: post.group, commit_seq, envelope, added, removed, posted_hour_ms };
    groups::add_commit(tx, &commit).await?;
    groups::advance(tx, &post.group, &post.caller.account, request.sealed_group_info.as_slice()).await?;
    groups::end_stays(tx, &post.group, removed, commit_seq, posted_hour_ms, Ending::ByCommit).await?;
    groups::begin_stays(tx, &post.group, added, commit_seq).await?;
    post.once.note_commit(tx, commit_seq).await?;
    Ok(commit_seq)
}

/// A device whose account has a member may join as if it were one.
async fn with_account(tx: &mut Tx, post: &Post, own: Option<Standing>) -> Result<Option<Standing>, Error> {
    let may = groups::account_is_in(tx, &post.group, &post.caller.account).await?;
    Ok(if may { Some(Standing { member: true, ..own.unwrap_or_default() }) } else { own })
}

fn check_removed<'a>(
    post: &Post,
    removed: &[DeviceId],
    standing: impl Fn(&DeviceId) -> Option<&'a Standing>,
) -> Result<(), Error> {
    for device in removed {
        if *device == post.caller.device && !post.header.joins {
            return Err(bad_message("a commit cannot remove its author; leave instead"));
        }
        if !standing(device).is_some_and(|standing| standing.member || standing.awaits_removal) {
            return Err(bad_message("a device to be removed is not in the group"));
        }
    }
    Ok(())
}

fn check_added<'a>(
    added: &[DeviceId],
    removed: &[DeviceId],
    standing: impl Fn(&DeviceId) -> Option<&'a Standing>,
) -> Result<(), Error> {
    for device in added {
        let in_tree = standing(device).is_some_and(|standing| standing.member || standing.awaits_removal);
        if in_tree && removed.binary_search(device).is_err() {
            return Err(bad_message("a device to be added is in the group; remove its leaf in the same commit"));
        }
    }
    Ok(())
}

/// Appends the commit to those who were members before it, and to who joins by it, and the Welcome to those whom it adds;
/// answers the commit's envelope.
async fn append_commit(
    tx: &mut Tx,
    post: &Post,
    request: &CommitRequest,
    before: Vec<DeviceId>,
    commit_seq: u64,
) -> Result<i64, Error> {
    let joiner = post.header.joins.then_some(post.caller.device);
    let members: BTreeSet<_> = before.into_iter().chain(joiner).collect();
    let members = members.into_iter().map(Receiver::from).collect();
    let commit = post.envelope(Kind::Commit, commit_seq, &request.commit, members);
    let mut envelopes = vec![NewEnvelope { held_by_commits: true, ..commit }];
    if let Some(welcome) = &request.welcome {
        let joiner =
            |entry: &WelcomeSecrets| Receiver { device: entry.device_id, own_part: Some(entry.secrets.clone()) };
        let joiners = welcome.secrets.iter().map(joiner).collect();
        envelopes.push(post.envelope(Kind::Welcome, commit_seq, &welcome.group_info, joiners));
    }
    let ids = append(tx, post, &envelopes).await?;
    ids.first().copied().ok_or(Error::Failed("an envelope was not added"))
}

async fn append(tx: &mut Tx, post: &Post, envelopes: &[NewEnvelope<'_>]) -> Result<Vec<i64>, Error> {
    let receivers = envelopes.iter().flat_map(|envelope| &envelope.receivers).map(|to| to.device).collect();
    let cursors = queue::lock(tx, &receivers).await?;
    Ok(queue::append(tx, cursors, &post.room, envelopes).await?)
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
    let post = Post::new(&node, caller, group, header, once);
    let left = node.db.write(move |tx| Box::pin(async move { accept_leave(tx, &post, &request.notice).await })).await;
    match left {
        Ok(()) => Ok(accept.answer(&SendResponse {})),
        Err(error) => Err(super::with_unacked(&node, &caller, &group, error).await),
    }
}

async fn accept_leave(tx: &mut Tx, post: &Post, notice: &Bytes) -> Result<(), Error> {
    let begun = post.begin(tx, &[]).await?;
    if begun.first.is_some() {
        return Ok(());
    }
    let standing = groups::standing(tx, &post.group, &post.caller.device).await?;
    let position = check_position(begun.position, standing.as_ref(), &post.header)?;
    let members = groups::members(tx, &post.group).await?;
    let receivers = members.iter().map(|member| member.device_id.into()).collect();
    append(tx, post, &[post.envelope(Kind::Message, 0, notice, receivers)]).await?;

    let leaving = members.iter().filter(|member| member.account_id == post.caller.account);
    let leaving: Vec<_> = leaving.map(|member| member.device_id).collect();
    let (ended, hour_ms) = (position.commit_seq, hour_of(post.now_ms));
    groups::end_stays(tx, &post.group, &leaving, ended, hour_ms, Ending::WithoutCommit).await?;
    groups::bump_members(tx, &post.group).await?;
    Ok(())
}

impl Post {
    fn new(node: &Node, caller: Caller, group: GroupId, header: Header, once: Once) -> Self {
        let now_ms = node.now_ms();
        let expires_hour_ms = limits::kept_until_ms(&node.limits, now_ms, None);
        Self { caller, group, header, now_ms, expires_hour_ms, room: limits::room(&node.limits), once }
    }

    /// Locks what decides whether this is accepted: the message id, the group, and the added devices. They stay listed, and
    /// so does the caller's device if it is a member. Refused if the caller's session has ended.
    async fn begin(&self, tx: &mut Tx, added: &[DeviceId]) -> Result<Begun, Error> {
        let claimed = self.once.claim(tx).await;
        let position = groups::lock(tx, &BTreeSet::from([self.group])).await?.remove(&self.group);
        let devices: BTreeSet<_> = added.iter().copied().collect();
        let listed = accounts::lock_devices(tx, &devices).await?;
        self.caller.still_holds(tx, self.now_ms).await?;
        Ok(Begun { first: claimed?, position, all_listed: listed.len() == devices.len() })
    }

    fn envelope<'a>(&self, kind: Kind, number: u64, payload: &'a Bytes, receivers: Vec<Receiver>) -> NewEnvelope<'a> {
        NewEnvelope {
            kind,
            group: Some(self.group),
            number,
            expires_hour_ms: self.expires_hour_ms,
            payload: payload.as_slice(),
            held_by_commits: false,
            receivers,
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
        let header = Header { epoch: 0, data: AuthenticatedData::default(), joins: false };
        Post { caller, group, header, now_ms: 0, expires_hour_ms: 0, room: limits::room(&node.limits), once }
    }

    /// What becomes of a commit and a leave of this caller.
    async fn outcomes(node: &Node, caller: Caller) -> [Result<(), Error>; 2] {
        let (one, two, limits) = (post(node, caller, 1), post(node, caller, 2), node.limits.clone());
        let request = CommitRequest {
            message_id: MessageId::from_parts(0, [1; 10]),
            commit: vec![].into(),
            welcome: None,
            sealed_group_info: vec![].into(),
        };
        let notice = Bytes::default();
        [
            node.db
                .write(move |tx| Box::pin(async move { accept_commit(tx, &one, &request, &limits).await.map(|_| ()) }))
                .await,
            node.db.write(move |tx| Box::pin(async move { accept_leave(tx, &two, &notice).await })).await,
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
