//! The account's devices, and its recovery key.

use undertone_wire::DeviceId;

use super::Client;
use crate::{
    Error, builder,
    crypto::{link::LinkCode, recovery_key::RecoverySecret},
    linking::{Device, list, listed_device},
};

impl Client {
    /// Links a new device, which shows this code, to this account, and returns when it is listed. It gets the account's
    /// identity key and what this device knows of others, but no history.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the code is none, [`Error::NotLinked`], [`Error::Offline`] if the relay is away when this is called.
    pub async fn approve_link(&self, code: &str) -> Result<Device, Error> {
        let code = code.parse::<LinkCode>().map_err(|error| Error::Invalid(error.to_string()))?;
        listed_device::approve(self.engine(), &code).await
    }

    /// The devices of this account, as the relay lists them; offline, as they were last seen.
    pub async fn devices(&self) -> Result<Vec<Device>, Error> {
        let (own, this) = (self.engine().identity().account(), self.device_id());
        match self.engine().learn(own).await {
            Ok(_) | Err(Error::Offline(_) | Error::OtherRelay) => {}
            Err(error) => return Err(error),
        }
        self.engine()
            .store
            .with_tx(move |tx| {
                let listed = tx.listed(own)?.map(|listed| listed.devices).unwrap_or_default();
                let device = |device_id| {
                    let name = tx.device_name(device_id)?.unwrap_or_default();
                    Ok(Device { device_id, name, this: device_id == this })
                };
                listed.into_iter().map(|one| device(one.member.device)).collect()
            })
            .await
    }

    /// Takes another device off this account: from then on the relay refuses it everything, and it is removed from the
    /// groups. What it has already, it has; and since it holds the account's identity key, one that was stolen can be put
    /// back by whoever can read its store.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is this device, or none of this account's; [`Error::Offline`].
    pub async fn remove_device(&self, device: DeviceId) -> Result<(), Error> {
        list::remove(self.engine(), device).await
    }

    /// The same of a device that was stolen: the account goes on with another identity key, which its other devices get and its
    /// contacts are told of, so that who has the device's store cannot come back with it. If the account has a recovery key
    /// that is needed for this. If it has none, whoever has the device can do the same with the key that is in it: who is first
    /// has the account. Who has the device may have linked others before: the new key is for those in `keeping`, by the word of
    /// the user, who was shown them ([`Client::devices`]), and for this one.
    ///
    /// # Errors
    /// As for [`Client::remove_device`]; [`Error::Untrusted`] if the recovery key is missing, or not the account's, or if the
    /// account has other devices than these.
    pub async fn remove_stolen_device(
        &self,
        device: DeviceId,
        keeping: &[DeviceId],
        recovery_key: Option<&str>,
    ) -> Result<(), Error> {
        let recovery = recovery_key.map(builder::recovery_secret).transpose()?;
        list::remove_stolen(self.engine(), device, keeping, recovery.as_ref()).await
    }

    /// A recovery key for this account, to be shown to the user, who writes it down: it is kept nowhere. It holds once it is set
    /// ([`Client::set_recovery_key`]).
    ///
    /// # Errors
    /// Those of the system's randomness.
    pub fn new_recovery_key(&self) -> Result<String, Error> {
        let engine = self.engine();
        Ok(RecoverySecret::new(engine.entropy, engine.identity().account())?.to_string())
    }

    /// Whether this account has a recovery key, as far as this device knows
    /// ([`Event::RecoveryKeySet`](crate::Event::RecoveryKeySet)).
    pub async fn has_recovery_key(&self) -> Result<bool, Error> {
        let own = self.engine().identity().account();
        let list = self.engine().store.with_tx(move |tx| tx.verified_list(own).map_err(Error::from)).await?;
        Ok(list.is_some_and(|list| list.recovery_key.is_some()))
    }

    /// From now on an account whose devices are all lost gets a first device again by this key
    /// ([`ClientBuilder::recover`](crate::ClientBuilder::recover)), and without it nobody, not even who has stolen a
    /// device, can replace the identity key, or the recovery key by another. The same key once more changes nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is none of this account, or there is another already; [`Error::Offline`].
    pub async fn set_recovery_key(&self, key: &str) -> Result<(), Error> {
        list::set_recovery_key(self.engine(), &builder::recovery_secret(key)?).await
    }
}
