//! An account whose devices are all lost: its recovery key makes a first device again.
//!
//! Invariant: the keys are in the store before the relay hears of them, so that an attempt whose answer is lost is finished by
//! opening the store.

use undertone_api::RelayApi as _;
use undertone_wire::{Account, RecoveryRequest, SignedDeviceList};

use super::{checked_name, new_device};
use crate::{
    Error,
    api::Addresses,
    crypto::{Entropy, Identity, recovery_key::RecoverySecret, session::OlmAccount},
    store::{Profile, Store},
    sync::in_turn,
};

/// Makes this device the only one of the account.
pub(crate) async fn recover(
    api: Addresses,
    store: &Store,
    recovery: &RecoverySecret,
    name: &str,
    entropy: Entropy,
) -> Result<(Profile, Addresses), Error> {
    let name = checked_name(name)?;
    let known = ask(&api, recovery, None).await?;
    if known.account_id != recovery.account {
        return Err(Error::Untrusted("the relay answered about another account".into()));
    }
    let olm = OlmAccount::new();
    let (identity, device_list) = Identity::recover(entropy, olm.olm_key(), recovery, &known.device_list)?;
    let (relay_urls, relay_id, username) = (api.urls(), api.relay_id(), known.username);
    let profile = Profile { relay_urls, relay_id, identity, username, registered: false };
    let begun = profile.clone();
    store
        .with_tx(move |tx| {
            tx.forget_all()?;
            tx.save_olm_account(&olm)?;
            tx.name_device(begun.identity.device(), &name)?;
            Ok::<_, Error>(tx.save_profile(&begun)?)
        })
        .await?;
    let account = ask(&api, recovery, Some(device_list)).await?;
    let list = account.device_list.verify(&recovery.account)?;
    if list.devices.len() != 1 || !profile.identity.has_identity_key_of(&list) {
        return Err(Error::Untrusted("the relay answers with another list than it was given".into()));
    }
    Ok((new_device::listed(store, profile, account, list).await?, api))
}

async fn ask(
    api: &Addresses,
    recovery: &RecoverySecret,
    device_list: Option<SignedDeviceList>,
) -> Result<Account, Error> {
    let account = recovery.account;
    let challenge = in_turn(api, || api.challenge()).await?;
    let request = &RecoveryRequest::sign(&api.relay_id(), &account, challenge.nonce, device_list, recovery.seed());
    Ok(in_turn(api, || api.recover(account, request)).await?)
}
