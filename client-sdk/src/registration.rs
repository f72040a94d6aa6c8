//! Registering the account of a new store.
//!
//! Invariant: the keys are in the store before the relay hears of them, so that a registration whose answer is lost is
//! finished by trying again.

use futures_util::future::join_all;
use undertone_api::RelayApi as _;
use undertone_wire::{InviteCode, RelayId, Username};

use crate::{
    Error,
    api::{Address, Addresses},
    crypto::{Entropy, Identity, session::OlmAccount},
    store::{Profile, Store},
    sync::in_turn,
};

/// Registers the account of a new store, or finishes what was begun.
pub(crate) async fn register(
    addresses: Vec<Address>,
    store: &Store,
    username: Option<Username>,
    invite: Option<InviteCode>,
    entropy: Entropy,
) -> Result<(Profile, Addresses), Error> {
    let begun = store.with_tx(|tx| tx.profile().map_err(Error::from)).await?;
    let (identity, olm) = match begun {
        Some(profile) if profile.registered || !profile.identity.is_first() => return Err(Error::AlreadyRegistered),
        Some(profile) => (profile.identity, None),
        None => {
            let olm = OlmAccount::new();
            (Identity::create(entropy, olm.olm_key())?, Some(olm))
        }
    };
    let relay_id = agreed(&addresses).await?;
    let mut profile = Profile { relay_urls: urls(&addresses), relay_id, identity, username, registered: false };
    save(store, &profile, olm).await?;
    let api = Addresses::new(addresses, relay_id);
    let request = &profile.identity.registration(relay_id, profile.username.clone(), invite);
    let account = in_turn(&api, || api.register(request)).await?;
    let list = account.device_list.verify(&profile.identity.account())?;
    profile.registered = true;
    let registered = profile.clone();
    store
        .with_tx(move |tx| {
            tx.save_contact(&account, &list)?;
            tx.save_profile(&registered).map_err(Error::from)
        })
        .await?;
    Ok((profile, api))
}

/// The relay that answers, as all addresses that answer at all agree.
pub(crate) async fn agreed(addresses: &[Address]) -> Result<RelayId, Error> {
    let answers = join_all(addresses.iter().map(|one| one.api.relay())).await;
    let (mut relay_id, mut failure) = (None, None);
    for answer in answers {
        match answer {
            Ok(said) if relay_id.is_some_and(|before| before != said.relay_id) => {
                return Err(Error::Invalid("the addresses are of different relays".into()));
            }
            Ok(said) => relay_id = Some(said.relay_id),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let nowhere = || Error::Invalid("the relay has no address".into());
    relay_id.ok_or_else(|| failure.map_or_else(nowhere, Error::from))
}

pub(crate) fn urls(addresses: &[Address]) -> Vec<String> {
    addresses.iter().map(|one| one.url.clone()).collect()
}

/// Saves what was made, or looked up anew.
async fn save(store: &Store, profile: &Profile, olm: Option<OlmAccount>) -> Result<(), Error> {
    let profile = profile.clone();
    store
        .with_tx(move |tx| {
            if let Some(olm) = olm {
                tx.save_olm_account(&olm)?;
            }
            tx.save_profile(&profile).map_err(Error::from)
        })
        .await
}
