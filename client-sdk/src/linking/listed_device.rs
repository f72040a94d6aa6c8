//! The side of a device that is listed: it hands over what the new one needs, and lists it.

use undertone_api::RelayApi as _;
use undertone_wire::{Account, Bytes, DeviceEntry, Encoding, ErrorCode, PipePart, RelayId, SignedDeviceList};
use zeroize::Zeroizing;

use super::{Device, NotLinked, checked_name, ends_ms, heard, list::update, say};
use crate::{
    Error,
    crypto::{
        Identity,
        link::{Handover, LinkCode, Part, Reply, Verdict},
        xwing::SealingSecret,
    },
    store::Tx,
    sync::{Engine, in_turn},
};

/// What is handed over, in bytes: with what sealing adds it fits an answer in a pipe. Accounts that do not fit any more are
/// pinned anew when they are seen.
const HANDOVER_BYTES_MAX: usize = 500 * 1024;

/// Approves the code that a new device shows.
pub(crate) async fn approve(engine: &Engine, code: &LinkCode) -> Result<Device, Error> {
    let (pipe, ends_ms, clock) = (code.pipe(), ends_ms(&*engine.clock), &*engine.clock);
    let own = engine.identity().account();
    let (_, newest) = engine.learn(own).await?;
    if !engine.identity().has_identity_key_of(&newest) {
        return Err(Error::Invalid(
            "this device has not got the account's new identity key yet: try again, or with another device".into(),
        ));
    }
    let said = |number| in_turn(&engine.api, move || engine.api.pipe_request(pipe, number));
    let key = match said(0).await {
        Ok(part) => part.content,
        Err(error) if error.code() == Some(&ErrorCode::NotFound) => return Err(NotLinked::Over.into()),
        Err(error) => return Err(error.into()),
    };
    if !code.is_of(&key) {
        // It is told in this way; the key may be somebody else's.
        let nothing = LinkCode::no_answer(engine.entropy)?;
        answer(engine, code, ends_ms, 0, nothing).await?;
        return Err(NotLinked::Changed.into());
    }
    let reply_secret = SealingSecret::new(engine.entropy)?;
    let (identity, reply_key, relay_id) = (engine.identity(), reply_secret.public()?, engine.api.relay_id());
    let handover = engine.store.with_tx(move |tx| handover(tx, &identity, reply_key, relay_id));
    let sealed = code.seal(engine.entropy, &key, Part::Handover, &handover.await?)?;
    answer(engine, code, ends_ms, 0, sealed).await?;
    let sealed = heard(clock, ends_ms, || said(1)).await?.ok_or(NotLinked::Over)?;
    let reply = code.open(&reply_secret, Part::Reply, &sealed).map_err(|_| Error::from(NotLinked::Changed))?;
    let Reply::Joins { entry, name } = reply else { return Err(NotLinked::Declined.into()) };
    let listed = list(engine, entry, &name).await;
    let verdict = match &listed {
        Ok((device_list, _)) => Verdict::Listed { device_list: device_list.clone() },
        Err(error) => Verdict::Refused { why: error.to_string() },
    };
    let sealed = code.seal(engine.entropy, &key, Part::Verdict, &verdict)?;
    let told = answer(engine, code, ends_ms, 1, sealed).await;
    let (_, device) = listed?;
    // It is listed, and finds that out by itself.
    if let Err(error) = told {
        tracing::debug!(%error, "the new device was not told that it is listed");
    }
    Ok(device)
}

async fn answer(engine: &Engine, code: &LinkCode, ends_ms: u64, number: u64, content: Bytes) -> Result<(), Error> {
    let (pipe, part) = (code.pipe(), &PipePart { content });
    let put =
        || engine.signed_in(move |token| async move { engine.api.put_pipe_answer(&token, pipe, number, part).await });
    say(&*engine.clock, ends_ms, put).await
}

fn handover(tx: &Tx<'_>, identity: &Identity, reply_key: Bytes, relay_id: RelayId) -> Result<Handover, Error> {
    let own = identity.account();
    let Account { username, device_list, .. } = tx.account(own)?.ok_or(Error::UnknownAccount)?;
    let mut handover = Handover {
        reply_key,
        relay_id,
        username,
        identity_seed: identity.seed(),
        device_list,
        names: tx.device_names()?,
        contacts: vec![],
        standings: tx.standings()?,
        trust: tx.trust()?,
        groups: tx.handed_groups()?,
        directs: tx.directs()?.into_iter().filter(|(_, requested)| !requested).map(|(account, _)| account).collect(),
    };
    let mut bytes = Zeroizing::new(Encoding::Cbor.encode(&handover)).len();
    // One that is too large leaves room for those behind it.
    let fits = |one: &Account| {
        let with = bytes.saturating_add(Encoding::Cbor.encode(one).len());
        let fits = with <= HANDOVER_BYTES_MAX;
        bytes = if fits { with } else { bytes };
        fits
    };
    let others = tx.accounts()?.into_iter().filter(|one| one.account_id != own);
    handover.contacts = others.filter(fits).collect();
    Ok(handover)
}

/// Lists a new device.
async fn list(engine: &Engine, entry: DeviceEntry, name: &str) -> Result<(SignedDeviceList, Device), Error> {
    let certificate = entry.certificate.unverified()?;
    let (device_id, name) = (certificate.device, checked_name(name)?);
    let change = |devices: &mut Vec<DeviceEntry>| {
        devices.retain(|one| !one.is_of(device_id));
        devices.push(entry.clone());
    };
    let list = update(engine, change).await?;
    let named = name.clone();
    engine.store.with_tx(move |tx| tx.name_device(device_id, &named).map_err(Error::from)).await?;
    Ok((list, Device { device_id, name, this: false }))
}
