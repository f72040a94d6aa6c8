//! What was accepted, and whether all devices agree on it.

use std::collections::BTreeMap;

use super::{
    GROUPS, World,
    taker::{Entry, What},
};

/// What the relay said yes to. Groups by their place in [`GROUPS`].
#[derive(Debug, Default)]
pub(super) struct Accepted {
    /// Group and content.
    pub(super) messages: Vec<(usize, u64)>,
    /// Group, number and content.
    pub(super) commits: Vec<(usize, u64, u64)>,
}

/// What a device says for the n-th time: no two say the same, and what one says grows.
pub(super) fn content(number: usize, nth: u64) -> u64 {
    (number as u64) << 32 | nth
}

/// Who says it.
pub(super) fn sender_of(content: u64) -> usize {
    usize::try_from(content >> 32).unwrap()
}

impl Accepted {
    pub(super) fn extend(&mut self, more: Self) {
        self.messages.extend(more.messages);
        self.commits.extend(more.commits);
    }

    /// How many entries a device must have: those of its groups, and of each what brought it in.
    pub(super) fn entries_for(&self, number: usize) -> usize {
        let is_in = |group: usize| GROUPS[group].contains(&number);
        let messages = self.messages.iter().filter(|(group, _)| is_in(*group)).count();
        let commits = self.commits.iter().filter(|(group, ..)| is_in(*group)).count();
        messages + commits + (0..GROUPS.len()).filter(|group| is_in(*group)).count()
    }
}

/// Asserts that in each group all members have the same entries in the same order, that these are what was accepted, each
/// once, and that the order is one in which they may be.
pub(super) fn assert_agreed(world: &World, accepted: &Accepted) {
    for (group, members) in GROUPS.into_iter().enumerate() {
        let mut views = members.map(|number| (number, view(world, number, group)));
        let (_, first) = views.next().unwrap();
        for (number, view) in views {
            assert!(view == first, "device {number} has another order in group {group}");
        }
        assert_accepted(group, &first, accepted);
        assert_in_order(&first);
    }
}

/// What a device has of a group, without what brought it in.
fn view(world: &World, number: usize, group: usize) -> Vec<Entry> {
    let taken = world.takers[number].taken();
    let mut entries = taken.iter().filter(|entry| entry.group == group).copied();
    assert_eq!(entries.next().and_then(Entry::commit_seq), Some(1), "device {number} came in first");
    entries.collect()
}

fn assert_accepted(group: usize, entries: &[Entry], accepted: &Accepted) {
    let (mut messages, mut commits) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry.what {
            What::Message { content } => messages.push((group, content)),
            What::Commit { number, content } => commits.push((group, number, content)),
            What::Welcome { .. } => panic!("nobody came in twice"),
        }
    }
    let mut accepted_messages: Vec<_> =
        accepted.messages.iter().filter(|message| message.0 == group).copied().collect();
    messages.sort_unstable();
    accepted_messages.sort_unstable();
    assert!(messages == accepted_messages, "each message once: {} and {}", messages.len(), accepted_messages.len());
    let mut accepted_commits: Vec<_> = accepted.commits.iter().filter(|commit| commit.0 == group).copied().collect();
    accepted_commits.sort_unstable();
    assert_eq!(commits, accepted_commits, "each commit once, under the number that was answered");
}

/// Commits are numbered without a gap, nothing follows a commit that was posted before it, and what one device says comes
/// in the order in which it said it.
fn assert_in_order(entries: &[Entry]) {
    let mut stands = 1;
    let mut said = BTreeMap::new();
    for entry in entries {
        assert_eq!(entry.at, stands, "nothing old follows a commit");
        if let Some(number) = entry.commit_seq() {
            assert_eq!(number, stands + 1);
            stands = number;
        }
        if let What::Message { content } | What::Commit { content, .. } = entry.what {
            let before = said.insert(sender_of(content), content);
            assert!(before.is_none_or(|before| before < content), "{before:?}, then {content}");
        }
    }
}
