//! The new device's side.
//!
//! Invariant: its keys are in its store before the other device hears of them, so that one that dies in the middle is what it
//! was to become if it was listed, and begins again if not.

use std::sync::Arc;

use undertone_api::RelayApi as _;
use undertone_wire::{Account, AccountId, Bytes, DeviceList, Encoding, ErrorCode, PipePart, chain_continues};

use super::{NotLinked, checked_name, ends_ms, heard, say};
use crate::{
    Client, Error,
    api::Addresses,
    clock::Clock,
    crypto::{
        Entropy, Identity,
        link::{Handover, LinkCode, Part, Reply, Verdict},
        session::OlmAccount,
        xwing::SealingSecret,
    },
    event::Contact,
    safety::{self, Fingerprint},
    store::{Profile, Store, Tx},
    sync::in_turn,
};

/// A device that is to be linked, and shows its code.
pub struct Linking {
    api: Addresses,
    store: Store,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    name: String,
    code: LinkCode,
    key: SealingSecret,
    ends_ms: u64,
    hold_changed: bool,
}

/// A device of an account has approved the code. The user says whether it is the right account.
pub struct Approval {
    linking: Linking,
    handover: Handover,
    list: DeviceList,
}

impl Linking {
    /// Shows a code. Whoever had a store that was never listed begins anew.
    pub(crate) async fn begin(
        api: Addresses,
        store: Store,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
        name: &str,
        hold_changed: bool,
    ) -> Result<Self, Error> {
        let (name, key) = (checked_name(name)?, SealingSecret::new(entropy)?);
        let code = LinkCode::new(entropy, &key)?;
        let (ends_ms, pipe) = (ends_ms(&*clock), code.pipe());
        let request = &PipePart { content: key.public()? };
        in_turn(&api, || api.put_pipe_request(pipe, 0, request)).await?;
        Ok(Self { api, store, clock, entropy, name, code, key, ends_ms, hold_changed })
    }

    /// What the user shows to a device of the account: letters and digits, also in a QR code. It can be used once, for ten
    /// minutes.
    pub fn code(&self) -> String {
        self.code.to_string()
    }

    /// Waits until a device of an account has approved the code.
    ///
    /// # Errors
    /// [`Error::NotLinked`] if none has in time, or not to this device's key.
    pub async fn approved(self) -> Result<Approval, Error> {
        let answered = self.answered().await;
        match answered {
            Ok((handover, list)) => Ok(Approval { linking: self, handover, list }),
            Err(error) => {
                self.store.close().await;
                Err(error)
            }
        }
    }

    async fn answered(&self) -> Result<(Handover, DeviceList), Error> {
        let handover: Handover = self.heard(Part::Handover, 0).await?;
        if handover.relay_id != self.api.relay_id() {
            return Err(Error::Untrusted("the account is at another relay".into()));
        }
        let account = account_of(&handover)?;
        let list = handover.device_list.verify(&account)?;
        Ok((handover, list))
    }

    /// What the device that approves says.
    async fn heard<T: serde::de::DeserializeOwned>(&self, part: Part, number: u64) -> Result<T, Error> {
        let pipe = self.code.pipe();
        let look = || in_turn(&self.api, move || self.api.pipe_answer(pipe, number));
        let sealed = heard(&*self.clock, self.ends_ms, look).await?.ok_or(NotLinked::Unanswered)?;
        self.code.open(&self.key, part, &sealed).map_err(|_| NotLinked::Changed.into())
    }

    /// Replies to the device that approves, to the key that came with what it handed over.
    async fn say(&self, key: &Bytes, reply: &Reply) -> Result<(), Error> {
        let sealed = self.code.seal(self.entropy, key, Part::Reply, reply)?;
        let (part, pipe) = (&PipePart { content: sealed }, self.code.pipe());
        say(&*self.clock, self.ends_ms, || in_turn(&self.api, move || self.api.put_pipe_request(pipe, 1, part))).await
    }
}

/// The account of a list that is not verified yet.
fn account_of(handover: &Handover) -> Result<AccountId, Error> {
    let list = Encoding::Cbor.decode::<DeviceList>(handover.device_list.list.as_slice());
    list.map(|list| list.account).map_err(|error| Error::Untrusted(error.to_string()))
}

impl Approval {
    /// The account to which this device would belong.
    pub fn account(&self) -> Contact {
        Contact { account_id: self.list.account, username: self.handover.username.clone() }
    }

    /// What the account is known by, to be compared with what its other devices show.
    pub fn fingerprint(&self) -> Fingerprint {
        safety::fingerprint(self.list.account, &self.list.identity_key())
    }

    /// Joins the account, and opens it. The groups are joined, and keys published, from then on.
    ///
    /// # Errors
    /// [`Error::NotLinked`] if the other device cannot do its part.
    pub async fn join(self) -> Result<Client, Error> {
        let Self { linking, handover, list } = self;
        let joined = join(&linking, handover, &list).await;
        let Linking { api, store, clock, entropy, .. } = linking;
        let profile = match joined {
            Ok(profile) => profile,
            Err(error) => {
                store.close().await;
                return Err(error);
            }
        };
        Ok(Client::begin(api, store, profile, clock, entropy).await)
    }

    /// Says that it is not the right account. The code is of no use any more.
    pub async fn decline(self) -> Result<(), Error> {
        let Self { linking, handover, .. } = self;
        let said = linking.say(&handover.reply_key, &Reply::Declines {}).await;
        linking.store.close().await;
        said
    }
}

async fn join(linking: &Linking, handover: Handover, list: &DeviceList) -> Result<Profile, Error> {
    let olm = OlmAccount::new();
    let seed = handover.identity_seed.clone();
    let joined = Identity::join(linking.entropy, olm.olm_key(), seed, &handover.device_list, list);
    let (identity, entry) = match joined {
        Ok(joined) => joined,
        Err(error) => {
            linking.say(&handover.reply_key, &Reply::Declines {}).await?;
            return Err(error.into());
        }
    };
    let reply_key = handover.reply_key.clone();
    let (relay_urls, relay_id) = (linking.api.urls(), handover.relay_id);
    let username = handover.username.clone();
    let profile = Profile { relay_urls, relay_id, identity, username, registered: false };
    let (begun, name, hold_changed) = (profile.clone(), linking.name.clone(), linking.hold_changed);
    linking
        .store
        .with_tx(move |tx| {
            tx.begin_with(handover)?;
            tx.save_olm_account(&olm)?;
            tx.name_device(begun.identity.device(), &name)?;
            tx.save_profile(&begun)?;
            Ok::<_, Error>(tx.hold_changed(hold_changed)?)
        })
        .await?;
    let reply = Reply::Joins { entry, name: linking.name.clone() };
    linking.say(&reply_key, &reply).await?;
    let device_list = match linking.heard(Part::Verdict, 1).await? {
        Verdict::Listed { device_list } => device_list,
        Verdict::Refused { why } => return Err(NotLinked::Refused(why).into()),
    };
    let account_id = profile.identity.account();
    let account = Account { account_id, username: profile.username.clone(), device_list };
    let verified = account.device_list.verify(&account_id)?;
    listed(&linking.store, profile, account, verified).await
}

/// The relay knows the device.
pub(super) async fn listed(
    store: &Store,
    profile: Profile,
    account: Account,
    list: DeviceList,
) -> Result<Profile, Error> {
    let before = profile.identity.list_before().verify(&account.account_id)?;
    let goes_on = list.version > before.version && chain_continues(&list.rotations, &before.rotations);
    if !goes_on || !profile.identity.is_named_by(&list) {
        return Err(Error::Untrusted("the relay serves a list that does not name this device".into()));
    }
    list.keeps_recovery_key(&before)?;
    list.keeps_devices(&before)?;
    let profile = Profile { registered: true, ..profile };
    let finished = profile.clone();
    store
        .with_tx(move |tx: &Tx<'_>| {
            tx.save_contact(&account, &list)?;
            Ok::<_, Error>(tx.save_profile(&finished)?)
        })
        .await?;
    Ok(profile)
}

/// Finishes what was begun in a store whose device may have been listed: `None` if it was not.
///
/// # Errors
/// [`Error::Offline`] if the relay cannot say.
pub(crate) async fn finish(api: &Addresses, store: &Store, profile: Profile) -> Result<Option<Profile>, Error> {
    let challenge = in_turn(api, || api.challenge()).await?;
    let request = &profile.identity.login(profile.relay_id, challenge.nonce);
    let session = match in_turn(api, || api.login(request)).await {
        Ok(session) => session,
        Err(error) if error.code() == Some(&ErrorCode::BadSignature) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (token, own) = (&session.token, profile.identity.account());
    let account = in_turn(api, || api.account(token, own)).await?;
    let list = account.device_list.verify(&own)?;
    listed(store, profile, account, list).await.map(Some)
}
