//! Once: the same request with the same message id has one effect and one answer (spec/protocol.md, section 7, rules 4 and 5).
//!
//! Invariant: only acceptances are remembered, in the transaction of what was accepted, and for longer than an id of
//! that age is taken. An id is claimed before anything else is decided, so of two at the same time one waits.

use serde::Serialize;
use undertone_wire::{Encoding, ErrorCode, GroupId, Hash, MessageId};

use crate::{
    clock::hour_after,
    error::Error,
    node::Node,
    store::{
        Tx,
        message_ids::{self, NewStub, Stub},
    },
};

/// How much longer than the window a stub lives, for nodes whose clocks differ.
const STUB_MARGIN_MS: u64 = 2 * 60 * 60 * 1_000;

/// What a message id was used for; part of what makes two requests the same.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Publish,
    PublishPrekeys,
    Commit,
    Message,
    Leave,
    Direct,
    Rejoin,
    Successor,
}

/// A request that has its effect once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Once(NewStub);

/// What was answered when the request was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FirstAnswer {
    /// The number of the commit, if it was one.
    pub(crate) commit_seq: Option<u64>,
}

impl Once {
    /// The request with this id and body, unless the id's time is outside the window.
    pub(crate) fn new<T: Serialize>(
        node: &Node,
        purpose: Purpose,
        group: Option<&GroupId>,
        id: MessageId,
        body: &T,
    ) -> Result<Self, Error> {
        let (id_ms, now_ms) = (id.time_ms(), node.now_ms());
        let window_ms = node.limits.idempotency_window_s.saturating_mul(1_000);
        if id_ms > now_ms.saturating_add(node.limits.clock_ahead_s_max.saturating_mul(1_000)) {
            return Err(Error::WrongTime(ErrorCode::ClockSkew, now_ms));
        }
        if id_ms.saturating_add(window_ms) < now_ms {
            return Err(Error::WrongTime(ErrorCode::OutcomeUnknown, now_ms));
        }
        let route = match purpose {
            Purpose::Publish => b'p',
            Purpose::PublishPrekeys => b'k',
            Purpose::Commit => b'c',
            Purpose::Message => b'm',
            Purpose::Leave => b'l',
            Purpose::Direct => b'd',
            Purpose::Rejoin => b'r',
            Purpose::Successor => b's',
        };
        let group = group.map_or([0; 16], |group| *group.as_bytes());
        let body = [&[route][..], &group, &Encoding::Cbor.encode(body)].concat();
        Ok(Self(NewStub {
            id_hash: Hash::of(id.as_bytes()),
            body_hash: Hash::of(&body),
            expires_hour_ms: hour_after(id_ms.saturating_add(window_ms).saturating_add(STUB_MARGIN_MS)),
        }))
    }

    /// The hash of the message id.
    pub(crate) fn id_hash(&self) -> Hash {
        self.0.id_hash
    }

    /// What is claimed for it.
    pub(crate) fn stub(&self) -> NewStub {
        self.0
    }

    /// Claims the id until the transaction ends, for good if it is committed. Answers the first answer, if the request was
    /// accepted before. Refused if its id was used for another.
    pub(crate) async fn claim(&self, tx: &mut Tx) -> Result<Option<FirstAnswer>, Error> {
        let known = message_ids::claim(tx, &[self.0]).await?;
        known.get(&self.0.id_hash).map(|stub| self.first_answer(stub)).transpose()
    }

    /// The answer that was given when this was accepted, if it was this that was accepted.
    pub(crate) fn first_answer(&self, stub: &Stub) -> Result<FirstAnswer, Error> {
        if stub.body_hash != self.0.body_hash {
            return Err(Error::refused(ErrorCode::MessageIdReused, "make a new message id for a new message"));
        }
        Ok(FirstAnswer { commit_seq: stub.commit_seq })
    }

    /// Adds the commit's number to what is remembered.
    pub(crate) async fn note_commit(&self, tx: &mut Tx, commit_seq: u64) -> Result<(), Error> {
        Ok(message_ids::note_commit(tx, &self.0.id_hash, commit_seq).await?)
    }
}
