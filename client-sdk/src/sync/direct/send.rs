//! Sending: what it takes to write to the devices of an account is asked for, then all is encrypted in one transaction.
//!
//! Invariant: what the relay says of keys is used only if the device whose keys they are vouches for it, by the key in the
//! account's device list; and a message goes to the devices of that list, whatever the relay says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use undertone_api::RelayApi as _;
use undertone_wire::{
    AccountId, Bytes, ClaimPrekeysRequest, DeviceId, DirectCiphertext, DirectRecipient, Encoding, ErrorCode, Hash,
    Limits, Prekey, Problem, SendDirectRequest,
};

use crate::{
    Error,
    crypto::{
        CryptoError, Member,
        direct::{Correspondent, Note},
        envelope::{self, Letter},
    },
    message::{Body, Content},
    store::{Listed, OutboxRow, OutboxState, SessionRow, Standing, Task, Tx},
    sync::{Engine, direct::heal, inbox, receipts, unknown_account},
};

/// The relay is asked for a device's sealing key again when it was asked so long ago.
const ASK_AGAIN_MS: u64 = 24 * 60 * 60 * 1_000;

/// Somebody who has no keys at the relay is looked at again after this time.
const ASK_AGAIN_UNREACHABLE_MS: u64 = 60 * 1_000;

/// A device's clock may be ahead by so much.
const AHEAD_MS: u64 = 24 * 60 * 60 * 1_000;

/// The two accounts of a conversation.
struct Both {
    own: Listed,
    other: Listed,
}

impl Both {
    /// Each once, in the order in which they are written to.
    fn each(&self) -> impl Iterator<Item = &Listed> {
        // The devices of an account write to each other too.
        let own = (self.own.account != self.other.account).then_some(&self.own);
        own.into_iter().chain([&self.other])
    }

    fn of(&self, account: AccountId) -> &Listed {
        if account == self.other.account { &self.other } else { &self.own }
    }
}

/// What a message lacks before it can be encrypted.
#[derive(Default)]
struct Lacking {
    /// Accounts of whose devices the sealing keys are to be asked for.
    seals: Vec<AccountId>,
    /// Devices with which a session is to be begun.
    sessions: BTreeMap<AccountId, Vec<DeviceId>>,
}

/// Encrypts a message for all devices of both accounts, once, and leaves it to be posted.
pub(in crate::sync) async fn encrypt(engine: &Engine, row: &OutboxRow, other: AccountId) -> Result<(), Error> {
    let both = Arc::new(both(engine, other).await?);
    let lacking = lacking(engine, &both, row.task.only_for()).await?;
    for account in lacking.seals {
        ask_for_seals(engine, both.of(account)).await?;
    }
    let mut prekeys = HashMap::new();
    for (account, devices) in lacking.sessions {
        prekeys.extend(claim(engine, both.of(account), devices).await?);
    }
    let message_id = engine.message_id()?;
    let (id, list_version) = (engine.message_id()?, both.own.version);
    let (identity, entropy, row_id) = (engine.identity(), engine.entropy, row.id);
    let (now_ms, relay_now_ms) = (engine.clock.now_ms(), engine.relay_now_ms());
    engine
        .store
        .with_tx(move |tx| {
            // As it is now: more may be asked for meanwhile.
            let Some(row) = tx.task(row_id)?.filter(|row| row.state == OutboxState::Waiting) else { return Ok(()) };
            // Who is blocked is told nothing.
            if row.content_id.is_none() && tx.standing(other)? == Standing::Blocked {
                return inbox::finish(tx, &row, Ok(())).map_err(Error::from);
            }
            // A new identity key may just have come.
            if row.content_id.is_some() && tx.waits_for_user(other)? {
                return Ok(());
            }
            for listed in both.each() {
                // Somebody was listed or removed meanwhile: the row's turn comes again.
                if tx.listed(listed.account)?.is_none_or(|now| now.version != listed.version) {
                    return Ok(());
                }
            }
            let only = row.task.only_for();
            if only.is_some_and(|one| both.each().all(|listed| listed.device(one.device).is_none())) {
                return inbox::finish(tx, &row, Ok(())).map_err(Error::from);
            }
            let mut reachable = false;
            for to in both.each().flat_map(|listed| &listed.devices).filter(|to| match only {
                Some(only) => to.member == only,
                None => to.member.account == other,
            }) {
                let begins = tx.has_session(to.member, to.olm_key)? || prekeys.contains_key(&to.member);
                reachable |= begins && tx.seal(to.member, relay_now_ms)?.is_some();
            }
            // What devices tell each other by themselves waits for none that is gone.
            if !reachable && (only.is_some() || other == identity.account()) {
                tracing::debug!("a device cannot be asked, or told: it has no keys at the relay");
                return inbox::finish(tx, &row, Ok(())).map_err(Error::from);
            }
            if !reachable {
                tracing::debug!("no device of the receiver has keys at the relay now");
                return Ok(tx.defer_task(row.id, now_ms.saturating_add(ASK_AGAIN_UNREACHABLE_MS))?);
            }
            let body = match &row.task {
                Task::AskAgain { hashes, .. } => Some(Body::Unreadable { hashes: hashes.clone() }),
                Task::Receipt => receipts::body(tx, row.conversation)?,
                _ => None,
            };
            let content = match (&row.task, body) {
                (Task::Send { content } | Task::SendAgain { content, .. }, _) => content.clone(),
                (_, Some(body)) => Content { id, sent_at_ms: now_ms, list_version, body }.encode(),
                (_, None) => return inbox::finish(tx, &row, Ok(())).map_err(Error::from),
            };
            for to in prekeys.keys() {
                heal::replace(tx, *to)?;
            }
            let own = identity.member();
            let letters = letters(tx, own, &both, &prekeys, &content, only)?;
            let bytes_min = letters.values().map(envelope::padded_bytes).max().unwrap_or(0);
            let mut ciphertexts = BTreeMap::new();
            for (to, letter) in &letters {
                // To this device itself it is sealed as to the others; nobody else can tell.
                let key = match *to == own {
                    true => tx.sealing_secrets()?.first().map(|secret| secret.public()).transpose()?,
                    false => tx.seal(*to, relay_now_ms)?.map(|seal| seal.sealing_key.key),
                };
                let sealed = key.map(|key| envelope::seal(entropy, key.as_slice(), to.device, letter, bytes_min));
                let sealed = match sealed {
                    // What one of this account's devices has published must not keep the others from writing.
                    Some(Err(CryptoError::Invalid(_))) if to.account == own.account => {
                        envelope::of_nothing(entropy, bytes_min)?
                    }
                    Some(sealed) => sealed?,
                    // Nobody can write to it: it has been away for so long that its keys are over.
                    None => envelope::of_nothing(entropy, bytes_min)?,
                };
                if let (Letter::Session { .. }, Some(content_id)) = (letter, row.content_id) {
                    let ciphertext = Hash::of(sealed.as_slice());
                    tx.note_written(*to, &ciphertext, (row.conversation, content_id), now_ms)?;
                }
                ciphertexts.insert(*to, sealed);
            }
            let own_ciphertext = ciphertexts.get(&own).cloned();
            let own_ciphertext = own_ciphertext.ok_or_else(|| Error::Untrusted("this device is not listed".into()))?;
            let request = SendDirectRequest { message_id, ttl_s: None, accounts: recipients(ciphertexts) };
            let bytes = Encoding::Cbor.encode(&request);
            Ok(tx.set_posted(row.id, message_id, &bytes, &own_ciphertext)?)
        })
        .await
}

/// Both accounts, as they are listed. One that was never seen is asked for.
async fn both(engine: &Engine, other: AccountId) -> Result<Both, Error> {
    Ok(Both { own: listed(engine, engine.identity().account()).await?, other: listed(engine, other).await? })
}

async fn listed(engine: &Engine, account: AccountId) -> Result<Listed, Error> {
    let look = async || {
        let known = engine.store.with_tx(move |tx| {
            // One that is older than its devices say is as good as none.
            Ok::<_, Error>(if tx.list_is_behind(account)? { None } else { tx.listed(account)? })
        });
        known.await
    };
    if let Some(listed) = look().await? {
        return Ok(listed);
    }
    engine.learn(account).await?;
    look().await?.ok_or_else(|| Error::Untrusted("the relay withholds an account's newest device list".into()))
}

async fn lacking(engine: &Engine, both: &Arc<Both>, only: Option<Member>) -> Result<Lacking, Error> {
    let (both, own, now_ms) = (Arc::clone(both), engine.identity().device(), engine.clock.now_ms());
    let relay_now_ms = engine.relay_now_ms();
    engine
        .store
        .with_tx(move |tx| {
            let mut lacking = Lacking::default();
            for listed in both.each() {
                let mut seals = false;
                for one in listed.devices.iter().filter(|one| one.member.device != own) {
                    let seal = tx.seal(one.member, relay_now_ms)?;
                    let is_fresh = |fetched_ms| now_ms.abs_diff(fetched_ms) < ASK_AGAIN_MS;
                    seals |= !seal.is_some_and(|seal| is_fresh(seal.fetched_ms));
                    let is_for = only.is_none_or(|only| one.member == only);
                    let heals = only.is_some() && heal::is_wanted(tx, one.member)?;
                    if is_for && (heals || !tx.has_session(one.member, one.olm_key)?) {
                        lacking.sessions.entry(listed.account).or_default().push(one.member.device);
                    }
                }
                if seals {
                    lacking.seals.push(listed.account);
                }
            }
            Ok(lacking)
        })
        .await
}

/// Asks for the sealing keys of an account's devices.
async fn ask_for_seals(engine: &Engine, listed: &Listed) -> Result<(), Error> {
    let account = listed.account;
    let answer = engine.signed_in(|token| async move { engine.api.sealing_keys(&token, account).await }).await;
    let mut verified = Vec::new();
    for said in answer.map_err(unknown_account)?.sealing_keys {
        let Some(sealing_key) = said.sealing_key else { continue };
        // Of a device that is not listed here nothing is needed.
        let Some(device) = listed.device(said.device_id) else { continue };
        if !sealing_key.is_of(said.device_id, &device.device_key) {
            return Err(Error::Untrusted("a sealing key is not signed by the device whose it is said to be".into()));
        }
        if lives(engine, sealing_key.not_after_ms)? {
            verified.push((device.member, sealing_key));
        }
    }
    let now_ms = engine.clock.now_ms();
    engine
        .store
        .with_tx(move |tx| {
            for (of, sealing_key) in &verified {
                if !tx.save_seal(*of, sealing_key, now_ms)? {
                    return Err(Error::Untrusted("a sealing key is older than one seen before".into()));
                }
            }
            Ok(())
        })
        .await
}

/// Whether a key whose life ends then can be used.
///
/// # Errors
/// [`Error::Untrusted`] if no device makes keys that live so long.
fn lives(engine: &Engine, not_after_ms: u64) -> Result<bool, Error> {
    let relay_now_ms = engine.relay_now_ms();
    let longest_ms = Limits::default().key_package_lifetime_s_max.saturating_mul(1_000).saturating_add(AHEAD_MS);
    if not_after_ms > relay_now_ms.saturating_add(longest_ms) {
        return Err(Error::Untrusted("a key that lives for longer than keys do".into()));
    }
    Ok(not_after_ms > relay_now_ms)
}

/// Claims prekeys of those of an account's devices with which there is no session.
async fn claim(engine: &Engine, listed: &Listed, devices: Vec<DeviceId>) -> Result<Vec<(Member, Prekey)>, Error> {
    let request = &ClaimPrekeysRequest { account_id: listed.account, devices };
    let answer = engine.signed_in(|token| async move { engine.api.claim_prekeys(&token, request).await }).await;
    let mut verified = Vec::new();
    for claimed in answer.map_err(unknown_account)?.prekeys {
        let Some(prekey) = claimed.prekey else { continue };
        let Some(device) = listed.device(claimed.device_id) else { continue };
        if !prekey.is_of(claimed.device_id, &device.device_key) {
            return Err(Error::Untrusted("a prekey is not signed by the device whose it is said to be".into()));
        }
        if lives(engine, prekey.not_after_ms)? {
            verified.push((device.member, prekey));
        }
    }
    Ok(verified)
}

/// What each device of both accounts gets.
fn letters(
    tx: &Tx<'_>,
    own: Member,
    both: &Both,
    prekeys: &HashMap<Member, Prekey>,
    content: &Bytes,
    only: Option<Member>,
) -> Result<BTreeMap<Member, Letter>, Error> {
    let mut letters = BTreeMap::new();
    for listed in both.each() {
        for to in &listed.devices {
            let letter = match to.member == own || only.is_some_and(|only| to.member != only) {
                true => Letter::Nothing {},
                false => letter(tx, own, to, listed.version, both.other.account, prekeys, content)?,
            };
            letters.insert(to.member, letter);
        }
    }
    Ok(letters)
}

fn letter(
    tx: &Tx<'_>,
    from: Member,
    to: &Correspondent,
    to_list_version: u64,
    with: AccountId,
    prekeys: &HashMap<Member, Prekey>,
    content: &Bytes,
) -> Result<Letter, Error> {
    let known = tx.sessions(to.member, to.olm_key)?;
    let newest = known.iter().map(|row| row.generation).max();
    let mut row = match (known.into_iter().find(|row| !row.read_only), prekeys.get(&to.member)) {
        (Some(row), _) => row,
        (None, Some(prekey)) => SessionRow {
            with: to.member,
            olm_key: to.olm_key,
            generation: newest.map_or(0, |newest| newest.saturating_add(1)).max(tx.generation_floor(to.member)?),
            read_only: false,
            session: tx.olm_account()?.begin(to.olm_key, prekey.key)?,
        },
        (None, None) => return Ok(Letter::Nothing {}),
    };
    let (generation, content) = (row.generation, content.clone());
    let note = Note { from, to: to.member, to_list_version, with, generation, content };
    let message = row.session.encrypt(&note.encode())?;
    tx.save_session(&row)?;
    Ok(Letter::Session { from, message })
}

/// The ciphertexts, by account and device, in ascending order.
fn recipients(ciphertexts: BTreeMap<Member, Bytes>) -> Vec<DirectRecipient> {
    let accounts: BTreeSet<_> = ciphertexts.keys().map(|to| to.account).collect();
    let of = |account: AccountId| {
        let of_account = ciphertexts.iter().filter(move |(to, _)| to.account == account);
        of_account.map(|(to, sealed)| DirectCiphertext { device_id: to.device, ciphertext: sealed.clone() }).collect()
    };
    accounts.into_iter().map(|account_id| DirectRecipient { account_id, ciphertexts: of(account_id) }).collect()
}

/// Looks into what the relay's no is about: devices that are listed now, or an account that is gone.
pub(in crate::sync) async fn repair(engine: &Engine, other: AccountId, problem: &Problem) -> Result<(), Error> {
    match problem.code {
        ErrorCode::StaleDevices => {
            let these = [other, engine.identity().account()];
            for account in problem.stale_devices.iter().filter(|account| these.contains(&account.account_id)) {
                engine.remember(account.account_id, account.clone()).await?;
            }
            Ok(())
        }
        ErrorCode::NotFound => engine.learn(other).await.map(drop),
        _ => Ok(()),
    }
}
