//! Groups at the fake relay: who is in, and which posts are accepted.
//!
//! Invariant: a post is accepted iff its sender is a member, its `at` is the group's `commit_seq` and its epoch the
//! group's. So nothing old follows a commit.

use std::collections::{BTreeMap, BTreeSet};

use openmls::prelude::{
    ContentType, MlsMessageIn, ProtocolMessage, Sender, VLBytes,
    tls_codec::{self, Deserialize as _},
};
use undertone_wire::{
    AccountId, AuthenticatedData, Bytes, CommitRequest, CommitResponse, CreateGroupRequest, DeviceId, Encoding,
    Envelope, ErrorCode, Group, GroupCommit, GroupCommits, GroupEphemeralRequest, GroupId, GroupList, GroupMember,
    GroupMembers, GroupPosition, GroupSummary, LeaveRequest, Problem, SendRequest, SendResponse, StaleGroup,
    UnackedCommit, WelcomeParts,
};

use super::state::{Caller, Outcome, Said, State, check_bytes, check_count, not_found, refused};

#[derive(Clone)]
pub(super) struct GroupState {
    pub(super) position: GroupPosition,
    sealed_group_info: Bytes,
    pub(super) members: BTreeMap<DeviceId, Stay>,
    /// Devices whose stay ended without a commit: a commit must still remove their leaves.
    awaiting_removal: BTreeSet<DeviceId>,
    /// Stays that ended, each with the number of the commit that stood when it did, or ended it.
    former: Vec<(DeviceId, Stay, u64)>,
    /// The device that created the group, while its first stay lasts.
    founder: Option<DeviceId>,
    /// The commit numbered `n` is at `n - 1`.
    commits: Vec<Bytes>,
    /// Up to which number they are no longer served.
    pub(super) commits_expired: u64,
    /// The account that posted the newest commit; at first, the founder's.
    pub(super) newest_commit_account: AccountId,
    /// Which group goes on for those who stood at a commit.
    pub(super) successors: BTreeMap<u64, GroupId>,
    /// All that were recorded, the replaced ones too.
    pub(super) recorded: Vec<(u64, GroupId)>,
}

/// A device's stay in a group.
#[derive(Clone, Copy)]
pub(super) struct Stay {
    pub(super) account: AccountId,
    /// The number of the commit that began it.
    began: u64,
}

/// Who posts, and where.
#[derive(Clone, Copy)]
pub(super) struct Post {
    pub(super) caller: Caller,
    pub(super) group: GroupId,
}

/// What a relay reads of a message.
struct Header {
    epoch: u64,
    data: AuthenticatedData,
    /// Whether it is a commit by which its author joins on its own.
    joins: bool,
}

impl State {
    pub(super) fn create_group(&mut self, caller: &Caller, request: &CreateGroupRequest) -> Outcome<Group> {
        let (group_id, sealed_group_info) = (request.group_id, &request.sealed_group_info);
        check_bytes("group_info_bytes_max", self.limits.group_info_bytes_max, sealed_group_info)?;
        let group = self.groups.entry(group_id).or_insert_with(|| GroupState::new(caller, sealed_group_info.clone()));
        if group.founder != Some(caller.device) {
            return Err(refused(ErrorCode::GroupExists, "choose another random group id"));
        }
        Ok(group.described(group_id))
    }

    pub(super) fn group(&self, caller: &Caller, group_id: &GroupId) -> Outcome<Group> {
        let group = self.groups.get(group_id).filter(|group| group.has_account(&caller.account));
        Ok(group.ok_or_else(not_found)?.described(*group_id))
    }

    pub(super) fn groups_of(&self, device: &DeviceId) -> GroupList {
        let own = self.groups.iter().filter(|(_, group)| group.members.contains_key(device));
        let summary = |(id, group): (&GroupId, &GroupState)| GroupSummary { group_id: *id, position: group.position };
        GroupList { groups: own.map(summary).collect() }
    }

    pub(super) fn members(&self, caller: &Caller, group: &GroupId) -> Outcome<GroupMembers> {
        let group = self.group_of_member(caller, group)?;
        let member = |(device, stay): (&DeviceId, &Stay)| GroupMember { device_id: *device, account_id: stay.account };
        Ok(GroupMembers { position: group.position, members: group.members.iter().map(member).collect() })
    }

    pub(super) fn commits(&self, caller: &Caller, group: &GroupId, after: u64) -> Outcome<GroupCommits> {
        let group = self.group_of_member(caller, group)?;
        let mut bytes = 0;
        let fits = |commit: &(u64, &Bytes)| {
            bytes += commit.1.len() as u64;
            bytes <= self.limits.fetch_bytes_max || bytes == commit.1.len() as u64
        };
        let after = after.max(group.commits_expired);
        let commits = (1..).zip(&group.commits).filter(|(commit_seq, _)| *commit_seq > after).take_while(fits);
        let commits = commits.map(|(commit_seq, commit)| GroupCommit { commit_seq, commit: commit.clone() });
        let max = usize::try_from(self.limits.fetch_entries_max).unwrap_or(usize::MAX);
        Ok(GroupCommits { commits: commits.take(max).collect() })
    }

    fn group_of_member(&self, caller: &Caller, group: &GroupId) -> Outcome<&GroupState> {
        self.groups.get(group).filter(|group| group.members.contains_key(&caller.device)).ok_or_else(not_found)
    }

    pub(super) fn send(&mut self, post: Post, request: &SendRequest) -> Outcome<SendResponse> {
        let once = self.once("message", Some(&post.group), request.message_id, request)?;
        let header = self.application_header(&post, &request.message)?;
        if self.first_answer(&once)?.is_none() {
            let members = self.current_group(&post, &header)?.member_devices();
            self.deliver_message(&post, &members, &request.message);
            self.remember(&once, 0);
        }
        Ok(SendResponse {})
    }

    /// Passes on what is said in passing, to streams that are open and have caught up.
    pub(super) fn say(&mut self, post: &Post, request: &GroupEphemeralRequest) -> Outcome<()> {
        let GroupEphemeralRequest { at, epoch, ciphertext } = request.clone();
        check_bytes("ephemeral_bytes_max", self.limits.ephemeral_bytes_max, &ciphertext)?;
        let data = AuthenticatedData { at, ..AuthenticatedData::default() };
        self.current_group(post, &Header { epoch, data, joins: false })?;
        self.said.push(Said::Group { group_id: post.group, epoch, ciphertext });
        Ok(())
    }

    pub(super) fn leave(&mut self, post: Post, request: &LeaveRequest) -> Outcome<SendResponse> {
        let once = self.once("leave", Some(&post.group), request.message_id, request)?;
        let header = self.application_header(&post, &request.notice)?;
        if self.first_answer(&once)?.is_none() {
            let group = self.current_group(&post, &header)?;
            let members = group.member_devices();
            for device in &members {
                if group.members.get(device).is_some_and(|stay| stay.account == post.caller.account) {
                    group.end_stay(device);
                    group.awaiting_removal.insert(*device);
                }
            }
            group.position.members_version += 1;
            self.deliver_message(&post, &members, &request.notice);
            self.remember(&once, 0);
        }
        Ok(SendResponse {})
    }

    pub(super) fn commit(&mut self, post: Post, request: &CommitRequest) -> Outcome<CommitResponse> {
        self.check_sizes(request)?;
        let once = self.once("commit", Some(&post.group), request.message_id, request)?;
        let header = header(&request.commit, &post.group, ContentType::Commit)?;
        check_count("commit_added_max", self.limits.commit_added_max, header.data.added.len())?;
        match header.joins {
            true => check_joiner(&post.caller, &header.data, request.welcome.as_ref())?,
            false => check_welcome(&header.data, request.welcome.as_ref())?,
        }
        if let Some(commit_seq) = self.first_answer(&once)? {
            return Ok(CommitResponse { commit_seq });
        }
        let commit_seq = self.accept_commit(&post, &header, request)?;
        self.remember(&once, commit_seq);
        Ok(CommitResponse { commit_seq })
    }

    fn check_sizes(&self, request: &CommitRequest) -> Outcome<()> {
        let limits = &self.limits;
        check_bytes("commit_bytes_max", limits.commit_bytes_max, &request.commit)?;
        check_bytes("group_info_bytes_max", limits.group_info_bytes_max, &request.sealed_group_info)?;
        let Some(welcome) = &request.welcome else { return Ok(()) };
        check_bytes("welcome_bytes_max", limits.welcome_bytes_max, &welcome.group_info)?;
        let (name, max) = ("welcome_secrets_bytes_max", limits.welcome_secrets_bytes_max);
        welcome.secrets.iter().try_for_each(|entry| check_bytes(name, max, &entry.secrets))
    }

    fn accept_commit(&mut self, post: &Post, header: &Header, request: &CommitRequest) -> Outcome<u64> {
        let joiners = self.accounts_of(&header.data.added);
        let devices_max = self.limits.group_devices_max;
        let group = self.current_group(post, header)?;
        let AuthenticatedData { added, removed, .. } = &header.data;
        group.check_removed((!header.joins).then_some(&post.caller.device), removed)?;
        let joiners = joiners?;
        group.check_added(added, removed)?;
        let staying = group.members.keys().filter(|member| removed.binary_search(member).is_err()).count();
        if staying + added.len() > group.members.len() {
            check_count("group_devices_max", devices_max, staying + added.len())?;
        }

        let mut before: BTreeSet<_> = group.members.keys().copied().collect();
        before.extend(header.joins.then_some(post.caller.device));
        let before: Vec<_> = before.into_iter().collect();
        group.newest_commit_account = post.caller.account;
        let commit_seq = group.advance(request, removed, joiners);
        let commit = request.commit.clone();
        self.deliver(&before, &Envelope::GroupCommit { group_id: post.group, commit_seq, commit });
        self.deliver_welcome(post, commit_seq, request.welcome.as_ref());
        Ok(commit_seq)
    }

    fn accounts_of(&self, devices: &[DeviceId]) -> Outcome<Vec<(DeviceId, AccountId)>> {
        let account = |device: &DeviceId| Some((*device, self.devices.get(device)?.account));
        devices
            .iter()
            .map(account)
            .collect::<Option<_>>()
            .ok_or_else(|| refused(ErrorCode::UnknownDevice, "fetch the account again, and add its listed devices"))
    }

    /// The group, if that is where the post was made by a member; else a refusal with what its sender lacks.
    fn current_group(&mut self, post: &Post, header: &Header) -> Outcome<&mut GroupState> {
        let unacked = self.unacked_commits(post);
        let group = self.groups.get_mut(&post.group).ok_or_else(not_found)?;
        let position = group.position;
        let member = group.members.contains_key(&post.caller.device)
            || (header.joins && group.has_account(&post.caller.account));
        if !member && !group.former.iter().any(|(device, ..)| *device == post.caller.device) {
            return Err(not_found());
        }
        if member && header.data.at == position.commit_seq && header.epoch == position.epoch {
            return Ok(group);
        }
        let stale_group = Some(StaleGroup { position, member, unacked });
        Err(Box::new(Problem { stale_group, ..Problem::new(ErrorCode::StaleGroup) }))
    }

    fn unacked_commits(&self, post: &Post) -> Vec<UnackedCommit> {
        let queue = self.devices.get(&post.caller.device).map(|device| &device.queue);
        let commit = |(&seq, envelope): (&u64, &Envelope)| match envelope {
            Envelope::GroupCommit { group_id, commit_seq, .. } if *group_id == post.group => {
                Some(UnackedCommit { commit_seq: *commit_seq, seq })
            }
            _ => None,
        };
        queue.into_iter().flatten().filter_map(commit).collect()
    }

    fn deliver_message(&mut self, post: &Post, members: &[DeviceId], message: &Bytes) {
        self.deliver(members, &Envelope::GroupMessage { group_id: post.group, message: message.clone() });
    }

    fn deliver_welcome(&mut self, post: &Post, commit_seq: u64, welcome: Option<&WelcomeParts>) {
        let Some(WelcomeParts { group_info, secrets }) = welcome else { return };
        for entry in secrets {
            let (group_info, secrets) = (group_info.clone(), entry.secrets.clone());
            let envelope = Envelope::Welcome { group_id: post.group, commit_seq, group_info, secrets };
            self.deliver(&[entry.device_id], &envelope);
        }
    }

    fn application_header(&self, post: &Post, message: &Bytes) -> Outcome<Header> {
        check_bytes("envelope_bytes_max", self.limits.envelope_bytes_max, message)?;
        let header = header(message, &post.group, ContentType::Application)?;
        let changes_members = !header.data.added.is_empty() || !header.data.removed.is_empty();
        if changes_members { Err(bad_message("only a commit adds or removes devices")) } else { Ok(header) }
    }

    /// Takes a device that is no longer listed out of all its groups, and tells those who stay. A group in which nobody
    /// stays is deleted.
    pub(super) fn remove_from_groups(&mut self, device: &DeviceId) {
        let mut told = Vec::new();
        self.groups.retain(|id, group| {
            if group.members.contains_key(device) {
                group.end_stay(device);
                group.awaiting_removal.insert(*device);
                group.position.members_version += 1;
                told.push((*id, group.position.members_version, group.member_devices()));
            }
            !told.last().is_some_and(|(told, _, staying)| told == id && staying.is_empty())
        });
        for (group_id, members_version, staying) in told {
            self.deliver(&staying, &Envelope::MembersGone { group_id, members_version });
        }
    }
}

impl GroupState {
    fn new(caller: &Caller, sealed_group_info: Bytes) -> Self {
        Self {
            position: GroupPosition { epoch: 0, commit_seq: 0, members_version: 0 },
            sealed_group_info,
            members: BTreeMap::from([(caller.device, Stay { account: caller.account, began: 0 })]),
            awaiting_removal: BTreeSet::new(),
            former: Vec::new(),
            founder: Some(caller.device),
            commits: Vec::new(),
            commits_expired: 0,
            newest_commit_account: caller.account,
            successors: BTreeMap::new(),
            recorded: Vec::new(),
        }
    }

    pub(super) fn member_devices(&self) -> Vec<DeviceId> {
        self.members.keys().copied().collect()
    }

    pub(super) fn has_account(&self, account: &AccountId) -> bool {
        self.members.values().any(|stay| stay.account == *account)
    }

    /// The devices that were members in the epoch that commit `at` began, ascending.
    pub(super) fn members_at(&self, at: u64) -> BTreeSet<DeviceId> {
        let now = self.members.iter().map(|(device, stay)| (*device, *stay, u64::MAX));
        let stays = now.chain(self.former.iter().copied());
        stays.filter(|(_, stay, ended)| stay.began <= at && at < *ended).map(|(device, ..)| device).collect()
    }

    fn described(&self, group_id: GroupId) -> Group {
        Group { group_id, position: self.position, sealed_group_info: self.sealed_group_info.clone() }
    }

    fn in_tree(&self, device: &DeviceId) -> bool {
        self.members.contains_key(device) || self.awaiting_removal.contains(device)
    }

    fn check_removed(&self, author: Option<&DeviceId>, removed: &[DeviceId]) -> Outcome<()> {
        if author.is_some_and(|author| removed.contains(author)) {
            return Err(bad_message("a commit cannot remove its author; leave instead"));
        }
        if !removed.iter().all(|device| self.in_tree(device)) {
            return Err(bad_message("a device to be removed is not in the group"));
        }
        Ok(())
    }

    fn check_added(&self, added: &[DeviceId], removed: &[DeviceId]) -> Outcome<()> {
        if added.iter().any(|device| self.in_tree(device) && removed.binary_search(device).is_err()) {
            return Err(bad_message("a device to be added is in the group; remove its leaf in the same commit"));
        }
        Ok(())
    }

    /// Moves on by one commit; answers its number.
    fn advance(&mut self, request: &CommitRequest, removed: &[DeviceId], joiners: Vec<(DeviceId, AccountId)>) -> u64 {
        let began = self.position.commit_seq + 1;
        for device in removed {
            self.end_stay_at(device, began);
            self.awaiting_removal.remove(device);
        }
        self.members.extend(joiners.into_iter().map(|(device, account)| (device, Stay { account, began })));
        self.commits.push(request.commit.clone());
        self.sealed_group_info = request.sealed_group_info.clone();
        self.position.epoch += 1;
        self.position.commit_seq += 1;
        self.position.members_version += 1;
        self.position.commit_seq
    }

    /// Ends a stay without a commit.
    fn end_stay(&mut self, device: &DeviceId) {
        self.end_stay_at(device, self.position.commit_seq);
    }

    fn end_stay_at(&mut self, device: &DeviceId, commit_seq: u64) {
        if let Some(stay) = self.members.remove(device) {
            self.former.push((*device, stay, commit_seq));
            self.founder.take_if(|founder| founder == device);
        }
    }
}

fn check_joiner(caller: &Caller, data: &AuthenticatedData, welcome: Option<&WelcomeParts>) -> Outcome<()> {
    let own = [caller.device];
    if data.added != own || !(data.removed.is_empty() || data.removed == own) || welcome.is_some() {
        return Err(bad_message("a device that joins on its own adds itself, and removes nothing but its own leaf"));
    }
    Ok(())
}

fn check_welcome(data: &AuthenticatedData, welcome: Option<&WelcomeParts>) -> Outcome<()> {
    let joiners = welcome.map_or(&[][..], |welcome| &welcome.secrets);
    if welcome.is_some() == data.added.is_empty() || !joiners.iter().map(|entry| &entry.device_id).eq(&data.added) {
        return Err(bad_message(
            "a Welcome has exactly one entry for each device that the commit adds, in the same order",
        ));
    }
    Ok(())
}

/// The header of a message that must be of this group and kind: a `PrivateMessage`, or a new member's commit.
fn header(bytes: &Bytes, group: &GroupId, content: ContentType) -> Outcome<Header> {
    let message = MlsMessageIn::tls_deserialize_exact(bytes.as_slice()).ok();
    let message = message
        .and_then(|it| it.try_into_protocol_message().ok())
        .ok_or_else(|| bad_message("the message must be an MLSMessage"))?;
    if message.content_type() != content || message.group_id().as_slice() != group.as_bytes() {
        return Err(bad_message("the message is of another kind or group than the path names"));
    }
    let (joins, data) = match &message {
        ProtocolMessage::PrivateMessage(message) => (false, message.aad().to_vec()),
        ProtocolMessage::PublicMessage(message) if *message.sender() == Sender::NewMemberCommit => {
            (true, public_authenticated_data(bytes.as_slice()).map_err(|_| bad_message("the message breaks off"))?)
        }
        ProtocolMessage::PublicMessage(_) => return Err(bad_message("the message must be a PrivateMessage")),
    };
    let data: AuthenticatedData =
        Encoding::Cbor.decode(&data).map_err(|_| bad_message("the authenticated data cannot be decoded"))?;
    let ascends = |devices: &[DeviceId]| devices.is_sorted_by(|one, next| one < next);
    if !ascends(&data.added) || !ascends(&data.removed) {
        return Err(bad_message("added and removed devices must be in ascending order, each once"));
    }
    Ok(Header { epoch: message.epoch().as_u64(), data, joins })
}

/// What stands behind version, wire format, group, epoch and sender of a `PublicMessage`.
fn public_authenticated_data(mut bytes: &[u8]) -> Result<Vec<u8>, tls_codec::Error> {
    <((u16, u16), VLBytes, u64)>::tls_deserialize(&mut bytes)?;
    Sender::tls_deserialize(&mut bytes)?;
    Ok(VLBytes::tls_deserialize(&mut bytes)?.into())
}

fn bad_message(rule: &str) -> Box<Problem> {
    refused(ErrorCode::BadMessage, rule)
}
