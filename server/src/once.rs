//! Once: the same request with the same message id has one effect and one answer (spec/protocol.md, section 5).
//!
//! Invariant: only acceptances are remembered, in the transaction of what was accepted, and for longer than an id of
//! that age is taken.

use serde::Serialize;
use undertone_wire::{Encoding, ErrorCode, GroupId, Hash, MessageId};

use crate::{
    clock::hour_after,
    error::Error,
    node::Node,
    store::{
        Tx,
        message_ids::{self, Stub},
    },
};

/// How much longer than the window a stub lives, for nodes whose clocks differ.
const STUB_MARGIN_MS: u64 = 2 * 60 * 60 * 1_000;

/// What a message id was used for; part of what makes two requests the same.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Publish,
    Commit,
    Message,
    Leave,
}

/// A request that has its effect once.
pub(crate) struct Once {
    id_hash: Hash,
    body_hash: Hash,
    expires_hour_ms: u64,
}

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
            Purpose::Commit => b'c',
            Purpose::Message => b'm',
            Purpose::Leave => b'l',
        };
        let group = group.map_or([0; 16], |group| *group.as_bytes());
        let body = [&[route][..], &group, &Encoding::Cbor.encode(body)].concat();
        Ok(Self {
            id_hash: Hash::of(id.as_bytes()),
            body_hash: Hash::of(&body),
            expires_hour_ms: hour_after(id_ms.saturating_add(window_ms).saturating_add(STUB_MARGIN_MS)),
        })
    }

    /// The first answer, if the request was accepted before. Refused if its id was used for another.
    pub(crate) async fn first_answer(&self, tx: &mut Tx) -> Result<Option<FirstAnswer>, Error> {
        match message_ids::find(tx, &self.id_hash).await? {
            None => Ok(None),
            Some(stub) if stub.body_hash == self.body_hash => Ok(Some(FirstAnswer { commit_seq: stub.commit_seq })),
            Some(_) => Err(Error::refused(ErrorCode::MessageIdReused, "make a new message id for a new message")),
        }
    }

    /// Remembers the first answer.
    pub(crate) async fn remember(&self, tx: &mut Tx, answer: FirstAnswer) -> Result<(), Error> {
        let stub = Stub { body_hash: self.body_hash, commit_seq: answer.commit_seq };
        Ok(message_ids::remember(tx, &self.id_hash, &stub, self.expires_hour_ms).await?)
    }
}
