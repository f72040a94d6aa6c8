//! What the fake relay passes on for devices for which a group cannot go on.

use undertone_wire::{Envelope, ErrorCode, RejoinRequest, SendResponse, Succession, SuccessorRequest};

use super::{
    groups::{GroupState, Post},
    state::{Outcome, State, not_found, refused},
};

impl State {
    pub(super) fn rejoin(&mut self, post: Post, request: &RejoinRequest) -> Outcome<SendResponse> {
        let once = self.once("rejoin", Some(&post.group), request.message_id, request)?;
        let group = self.groups.get(&post.group).filter(|group| group.has_account(&post.caller.account));
        let members = group.ok_or_else(not_found)?.member_devices();
        if self.first_answer(&once)?.is_none() {
            let others: Vec<_> = members.into_iter().filter(|device| *device != post.caller.device).collect();
            let (account_id, device_id) = (post.caller.account, post.caller.device);
            self.deliver(&others, &Envelope::RejoinWanted { group_id: post.group, account_id, device_id });
            self.remember(&once, 0);
        }
        Ok(SendResponse {})
    }

    pub(super) fn succession(&self, post: &Post, at: u64) -> Outcome<Succession> {
        Ok(self.group_stood_in(post, at)?.succession(at))
    }

    pub(super) fn succeed(&mut self, post: Post, request: &SuccessorRequest) -> Outcome<Succession> {
        let SuccessorRequest { at, successor, replaces, .. } = request;
        let once = self.once("successor", Some(&post.group), request.message_id, request)?;
        let before = self.group_stood_in(&post, *at)?.succession(*at);
        let repeated = self.first_answer(&once)?.is_some();
        let taken = before.successor.is_some() && before.successor != *replaces;
        if repeated || taken || before.successor == Some(*successor) {
            return Ok(before);
        }
        let (newest, position) = (before.newest_commit_account, before.position);
        if *at < position.commit_seq && newest == Some(post.caller.account) {
            let rule = "who posted the newest commit does not found what goes on without it";
            return Err(refused(ErrorCode::Malformed, rule));
        }
        let goes_on = self.groups.get(successor).is_some_and(|group| group.members.contains_key(&post.caller.device));
        if *successor == post.group || !goes_on {
            let rule = "the successor is another group, of which the caller is a member";
            return Err(refused(ErrorCode::Malformed, rule));
        }
        let group = self.groups.get_mut(&post.group).ok_or_else(not_found)?;
        group.successors.insert(*at, *successor);
        group.recorded.push((*at, *successor));
        let (told, now) = (group.members_at(*at).into_iter().collect::<Vec<_>>(), group.succession(*at));
        self.deliver(&told, &Envelope::Successor { group_id: post.group, at: *at, successor: *successor });
        self.remember(&once, 0);
        Ok(now)
    }

    fn group_stood_in(&self, post: &Post, at: u64) -> Outcome<&GroupState> {
        let group = self.groups.get(&post.group).filter(|group| group.members_at(at).contains(&post.caller.device));
        group.ok_or_else(not_found)
    }
}

impl GroupState {
    fn succession(&self, at: u64) -> Succession {
        let newest_commit_account = Some(self.newest_commit_account);
        Succession { position: self.position, newest_commit_account, successor: self.successors.get(&at).copied() }
    }
}
