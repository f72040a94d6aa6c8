//! Pipes at the fake relay, by which new devices are linked.
//!
//! Invariant: a part is written once, and gone when the time of its pipe is over.

use std::collections::BTreeMap;

use undertone_wire::{Bytes, ErrorCode, PIPE_PARTS_MAX, PipeId, PipePart};

use super::{
    FakeRelay,
    state::{Outcome, State, check_bytes, not_found, refused},
};

/// Who writes a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// The new device.
    New,
    /// A device with a session.
    Listed,
}

/// A pipe, and when it ends.
#[derive(Clone)]
pub(super) struct Pipe {
    ends_ms: u64,
    parts: BTreeMap<(Side, u64), Bytes>,
}

impl FakeRelay {
    /// Lets something else stand in a pipe from now on, as a relay may that lies: each part as it is, changed.
    pub fn rewrite_pipes(&self, change: impl Fn(&Bytes) -> Bytes) {
        self.change(|state| {
            let parts = state.pipes.values_mut().flat_map(|pipe| pipe.parts.values_mut());
            parts.for_each(|part| *part = change(part));
        });
    }

    /// How many parts stand in pipes.
    pub fn pipe_parts(&self) -> usize {
        self.look(|state| state.pipes.values().map(|pipe| pipe.parts.len()).sum())
    }
}

impl State {
    pub(super) fn put_pipe_part(&mut self, pipe: PipeId, side: Side, number: u64, part: &PipePart) -> Outcome<()> {
        let (limit, max) = match side {
            Side::New => ("pipe_request_bytes_max", self.limits.pipe_request_bytes_max),
            Side::Listed => ("pipe_answer_bytes_max", self.limits.pipe_answer_bytes_max),
        };
        check_bytes(limit, max, &part.content)?;
        if number >= PIPE_PARTS_MAX {
            return Err(refused(ErrorCode::Malformed, "a pipe has no such part"));
        }
        self.end_pipes();
        if (side, number) == (Side::New, 0) && !self.pipes.contains_key(&pipe) {
            let ends_ms = self.in_s(self.limits.pipe_ttl_s);
            self.pipes.insert(pipe, Pipe { ends_ms, parts: BTreeMap::new() });
        }
        let parts = &mut self.pipes.get_mut(&pipe).ok_or_else(not_found)?.parts;
        let there = parts.entry((side, number)).or_insert_with(|| part.content.clone());
        if *there == part.content { Ok(()) } else { Err(refused(ErrorCode::PartTaken, "another part is there")) }
    }

    pub(super) fn pipe_part(&mut self, pipe: PipeId, side: Side, number: u64) -> Outcome<PipePart> {
        self.end_pipes();
        let content = self.pipes.get(&pipe).and_then(|pipe| pipe.parts.get(&(side, number)));
        content.map(|content| PipePart { content: content.clone() }).ok_or_else(not_found)
    }

    fn end_pipes(&mut self) {
        let now_ms = self.now_ms;
        self.pipes.retain(|_, pipe| pipe.ends_ms > now_ms);
    }
}
