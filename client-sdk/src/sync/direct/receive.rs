//! Reading a direct message: unsealed, decrypted by a session with the device that it is said to be from, and taken only if
//! that is what the session itself says.
//!
//! Invariant: what cannot be read changes nothing. A message that begins a session is taken once, even if the prekey that
//! it names is used again and again.

use undertone_wire::{AccountId, Bytes, Hash};

use crate::{
    conversation_id::ConversationId,
    crypto::{
        CryptoError, Member,
        direct::{Correspondent, Note},
        envelope::{self, Letter},
        session::{Read, SessionMessage},
    },
    event::StoredEvent,
    message::{Body, Content},
    store::{OutboxRow, SessionRow, Standing, StoreError, Tx},
    sync::{
        content,
        direct::heal,
        inbox::{self, Context, Effect, Outcome},
    },
};

/// So many messages of a stranger are kept, and no more once they have so many bytes, until the user accepts.
const REQUEST_MESSAGES_MAX: u64 = 100;
const REQUEST_BYTES_MAX: u64 = 1024 * 1024;

/// Applies a direct message.
pub(in crate::sync) fn apply(tx: &Tx<'_>, context: &Context<'_>, ciphertext: &Bytes) -> Result<Outcome, StoreError> {
    if let Some(row) = tx.task_by_hash(&Hash::of(ciphertext.as_slice()))?
        && row.conversation.account().is_some()
    {
        return apply_own(tx, context, &row).map(Outcome::Applied);
    }
    let own = context.identity.member();
    let opened =
        tx.sealing_secrets()?.iter().find_map(|secret| envelope::open(secret, own.device, ciphertext.as_slice()).ok());
    let Some(Letter::Session { from, message }) = opened else {
        // It is from nobody, as far as anybody can tell.
        return Ok(Outcome::default());
    };
    if from == own {
        return Ok(Outcome::default());
    }
    if tx.standing(from.account)? == Standing::Blocked {
        // Receipts must not say that it is here.
        tx.note_gap(from.account)?;
        return Ok(Outcome::default());
    }
    let listed = tx.listed(from.account)?;
    let Some(author) = listed.as_ref().and_then(|listed| listed.device(from.device)) else {
        let account = from.account;
        return match context.looked_up {
            true => undecryptable(tx, own, from).map(Outcome::Applied),
            false => Ok(Outcome::Unknown { account }),
        };
    };
    let Taken { note, conversation, used_prekey } = match tx.attempt(|| read(tx, own, author, &message))? {
        Some(Opened::Taken(taken)) => taken,
        Some(Opened::Refused(error)) => {
            tracing::debug!(%error, "a direct message is refused");
            return undecryptable(tx, own, from).map(Outcome::Applied);
        }
        None => {
            heal::begin(tx, context, from, Hash::of(ciphertext.as_slice()))?;
            return undecryptable(tx, own, from).map(Outcome::Applied);
        }
    };
    let effect = receive(tx, context, conversation, from, note)?;
    Ok(Outcome::Applied(Effect { joined: effect.joined || used_prekey, ..effect }))
}

/// This device's own row: the relay has accepted the message, and this is its place among the others.
fn apply_own(tx: &Tx<'_>, context: &Context<'_>, row: &OutboxRow) -> Result<Effect, StoreError> {
    if let Some(message_id) = row.content_id {
        tx.confirm_place(message_id, inbox::devices_of_others(tx, context, row.conversation)?)?;
    }
    inbox::finish(tx, row, Ok(()))?;
    Ok(Effect::default())
}

/// What came of decrypting a message.
enum Opened {
    Taken(Taken),
    /// The device at the other end of the session has made it, but it is none that may be taken.
    Refused(CryptoError),
}

/// A message that was read.
struct Taken {
    note: Note,
    /// With whom.
    conversation: AccountId,
    /// Whether a prekey was used up.
    used_prekey: bool,
}

/// Decrypts a message with the session that it belongs to, or begins one.
///
/// # Errors
/// [`CryptoError::Invalid`] if there is no session by which it can be decrypted.
fn read(tx: &Tx<'_>, own: Member, author: &Correspondent, message: &SessionMessage) -> Result<Opened, CryptoError> {
    let storage = |error: StoreError| CryptoError::Storage(error.to_string());
    let read = message.read()?;
    let known = tx.sessions(author.member, author.olm_key).map_err(storage)?;
    let begins = read.begins();
    let candidates = known.into_iter().filter(|row| begins.as_ref().is_none_or(|(id, _)| *id == row.session.id()));
    let decrypted = candidates.map(|row| decrypt(row, &read)).find_map(Result::ok);
    let (mut row, plaintext, begun) = match (decrypted, begins) {
        (Some((row, plaintext)), _) => (row, plaintext, None),
        (None, Some((id, prekey))) => {
            if tx.has_begun_by_fallback(&id).map_err(storage)? {
                let again = CryptoError::Invalid("a message that has begun a session comes again".into());
                return Ok(Opened::Refused(again));
            }
            let mut account = tx.olm_account().map_err(storage)?;
            let (session, plaintext) = account.accept(author.olm_key, &read)?;
            let (with, olm_key) = (author.member, author.olm_key);
            let row = SessionRow { with, olm_key, generation: 0, read_only: false, session };
            (row, plaintext, Some((account, prekey)))
        }
        (None, None) => return Err(CryptoError::Invalid("no session is known that this message belongs to".into())),
    };
    let decoded = Note::decode(&plaintext, author.member, own).and_then(|note| Ok((note.conversation()?, note)));
    let (conversation, note) = match decoded {
        Ok(decoded) => decoded,
        Err(error) => return Ok(Opened::Refused(error)),
    };
    let used_prekey = begun.is_some();
    if let Some((account, prekey)) = begun {
        row.generation = note.generation;
        tx.save_olm_account(&account).map_err(storage)?;
        if !tx.spend_prekey(prekey).map_err(storage)? {
            tx.note_begun_by_fallback(&row.session.id(), prekey).map_err(storage)?;
        }
    }
    tx.save_session(&row).map_err(storage)?;
    tx.settle_on(author.member, &row.session.id()).map_err(storage)?;
    Ok(Opened::Taken(Taken { note, conversation, used_prekey }))
}

type Plaintext = zeroize::Zeroizing<Vec<u8>>;

fn decrypt(mut row: SessionRow, read: &Read) -> Result<(SessionRow, Plaintext), CryptoError> {
    let plaintext = row.session.decrypt(read)?;
    Ok((row, plaintext))
}

/// Takes in what was read. What a stranger writes is a request.
fn receive(
    tx: &Tx<'_>,
    context: &Context<'_>,
    other: AccountId,
    from: Member,
    note: Note,
) -> Result<Effect, StoreError> {
    let conversation = ConversationId::Direct(other);
    let shows =
        Content::decode(note.content.as_slice()).is_some_and(|content| matches!(content.body, Body::Text { .. }));
    if !tx.has_conversation(conversation)? {
        // What this account's devices tell each other is not to be seen.
        if !shows && other != context.identity.account() {
            return Ok(Effect::default());
        }
        tx.add_conversation(conversation)?;
    }
    // A stranger asks anew each time that the user has said no.
    let strange = from.account == other && tx.standing(other)? == Standing::Stranger;
    if strange && shows && tx.has_written_so_much(conversation, other, REQUEST_MESSAGES_MAX, REQUEST_BYTES_MAX)? {
        tx.note_gap(conversation)?;
        return Ok(Effect::default());
    }
    if shows && strange && tx.requested_by(conversation)?.is_none() {
        tx.set_requested(conversation, Some(other))?;
        tx.add_event(&StoredEvent::Requested { by: other })?;
    }
    content::receive(tx, context, conversation, from, note.content.into_vec())
}

/// Somebody is said to have written something that cannot be read. Whether that is so nobody can tell, so nothing is told
/// of it but in a conversation that there is.
fn undecryptable(tx: &Tx<'_>, own: Member, from: Member) -> Result<Effect, StoreError> {
    let conversation = ConversationId::Direct(from.account);
    if from.account == own.account || !tx.has_conversation(conversation)? {
        return Ok(Effect::default());
    }
    inbox::undecryptable(tx, conversation)
}
