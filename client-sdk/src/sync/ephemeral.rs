//! What is said in passing, such as that somebody is writing: to who is there, now or never.
//!
//! Invariant: nothing of it is stored, here or at the relay, and none of it is needed: whatever is not as it should be
//! is passed over.

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use undertone_api::RelayApi as _;
use undertone_wire::{
    AccountId, Bytes, DirectCiphertext, DirectEphemeralRequest, Encoding, ErrorCode, GroupEphemeralRequest, GroupId,
};

use super::Engine;
use crate::{
    Error,
    conversation_id::ConversationId,
    crypto::ephemeral,
    store::{GroupRow, GroupState, Standing, StoreError, Tx},
};

/// What was said longer ago, by the relay's time, is of no use to anybody.
const FRESH_MS: u64 = 10_000;

/// So much waits for an app that does not look.
const WAITING_MAX: usize = 256;

/// Who said what, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) conversation: ConversationId,
    pub(crate) by: AccountId,
    pub(crate) what: Passing,
    said_at_ms: u64,
}

/// The kinds of what is said that this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Passing {
    /// Somebody is writing a message.
    Typing {},
    /// A kind that a later version has made.
    #[serde(other)]
    Unknown,
}

/// What is inside the seal.
#[derive(Serialize, Deserialize)]
struct Content {
    by: AccountId,
    /// The relay's time as its author knows it.
    said_at_ms: u64,
    body: Passing,
}

/// Where apps hear it.
pub(super) fn channel() -> broadcast::Sender<Notice> {
    broadcast::Sender::new(WAITING_MAX)
}

impl Notice {
    /// Whether it still says something about now.
    pub(crate) fn is_fresh(&self, engine: &Engine) -> bool {
        engine.relay_now_ms().abs_diff(self.said_at_ms) <= FRESH_MS
    }
}

/// Says something to who is there of a conversation.
pub(crate) async fn say(engine: &Engine, conversation: ConversationId, what: Passing) -> Result<(), Error> {
    if !engine.is_confirmed() {
        return Err(super::no_connection());
    }
    let content = Content { by: engine.identity().account(), said_at_ms: engine.relay_now_ms(), body: what };
    let content = Encoding::Cbor.encode(&content);
    if let ConversationId::Direct(other) = conversation {
        return say_directly(engine, other, content).await;
    }
    let sealed = engine.store.with_tx(move |tx| {
        let group = conversation.group().map(|group| tx.active_group(group)).transpose()?;
        let Some(group) = group.flatten() else { return Ok(None) };
        if tx.requested_by(group.id)?.is_some() {
            return Ok(None);
        }
        let ciphertext = ephemeral::seal(&tx.mls(), group.live, group.commit_seq, &content)?;
        let (at, epoch) = (group.commit_seq, group.commit_seq);
        Ok::<_, Error>(Some((group.live, GroupEphemeralRequest { at, epoch, ciphertext })))
    });
    // A group that cannot be talked in now has nobody who listens.
    let Some((live, request)) = sealed.await? else { return Ok(()) };
    let request = &request;
    let said = engine.signed_in(|token| async move { engine.api.ephemeral(&token, live, request).await }).await;
    match said {
        // It has moved on, or is not there yet: what was said is no longer true, or not yet.
        Err(error) if matches!(error.code(), Some(ErrorCode::StaleGroup | ErrorCode::NotFound)) => Ok(()),
        said => Ok(said?),
    }
}

/// Says something to those devices of an account to which this one has written already.
async fn say_directly(engine: &Engine, other: AccountId, content: Vec<u8>) -> Result<(), Error> {
    let (entropy, relay_now_ms) = (engine.entropy, engine.relay_now_ms());
    let sealed = engine.store.with_tx(move |tx| {
        let mut ciphertexts = Vec::new();
        if is_talking_with(tx, other)? {
            for to in tx.listed(other)?.map(|listed| listed.devices).unwrap_or_default() {
                if let Some(seal) = tx.seal(to.member, relay_now_ms)? {
                    let (device_id, key) = (to.member.device, seal.sealing_key.key);
                    let ciphertext = ephemeral::seal_to(entropy, key.as_slice(), device_id, &content)?;
                    ciphertexts.push(DirectCiphertext { device_id, ciphertext });
                }
            }
        }
        ciphertexts.sort_unstable_by_key(|to| to.device_id);
        Ok::<_, Error>(ciphertexts)
    });
    let request = &DirectEphemeralRequest { ciphertexts: sealed.await? };
    if request.ciphertexts.is_empty() {
        return Ok(());
    }
    Ok(engine.signed_in(|token| async move { engine.api.direct_ephemeral(&token, request).await }).await?)
}

/// Whether the user has to do with an account by their own will.
fn is_talking_with(tx: &Tx<'_>, other: AccountId) -> Result<bool, StoreError> {
    Ok(tx.has_conversation(other.into())?
        && tx.requested_by(other)?.is_none()
        && tx.standing(other)? == Standing::Known)
}

/// Something was said to this device alone. By whom is only what it says itself.
pub(super) async fn hear_directly(engine: &Engine, ciphertext: Bytes) {
    let device = engine.identity().device();
    let opened = engine.store.with_tx(move |tx| {
        let secrets = tx.sealing_secrets()?;
        let opened = secrets.iter().find_map(|one| ephemeral::open_with(one, device, ciphertext.as_slice()).ok());
        let content = opened.and_then(|bytes| Encoding::Cbor.decode::<Content>(&bytes).ok());
        let Some(Content { by, said_at_ms, body: what }) = content else { return Ok(None) };
        let notice = Notice { conversation: by.into(), by, what, said_at_ms };
        Ok::<_, Error>(is_talking_with(tx, by)?.then_some(notice))
    });
    pass_on(engine, opened.await);
}

/// Something was said in a group.
pub(super) async fn hear(engine: &Engine, live: GroupId, epoch: u64, ciphertext: Bytes) {
    let opened = engine.store.with_tx(move |tx| opened(tx, live, epoch, &ciphertext).map_err(Error::from));
    pass_on(engine, opened.await);
}

fn pass_on(engine: &Engine, opened: Result<Option<Notice>, Error>) {
    let own = engine.identity().account();
    match opened {
        Ok(Some(notice)) if notice.by != own && notice.is_fresh(engine) => {
            // Without an app that listens there is nobody to tell.
            drop(engine.passing.send(notice));
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "what was said in passing could not be opened"),
    }
}

fn opened(tx: &Tx<'_>, live: GroupId, epoch: u64, ciphertext: &Bytes) -> Result<Option<Notice>, StoreError> {
    let here = |group: &GroupRow| group.state == GroupState::Active && group.commit_seq == epoch;
    let Some(group) = tx.group_by_live(live)?.filter(here) else { return Ok(None) };
    let bytes = tx.attempt(|| ephemeral::open(&tx.mls(), live, epoch, ciphertext.as_slice()))?;
    let content = bytes.and_then(|bytes| Encoding::Cbor.decode::<Content>(&bytes).ok());
    let Some(Content { by, said_at_ms, body: what }) = content else { return Ok(None) };
    let is_heard = tx.has_member(group.id, by)? && tx.standing(by)? != Standing::Blocked;
    Ok(is_heard.then_some(Notice { conversation: group.id.into(), by, what, said_at_ms }))
}
