//! A guest: an account that a round makes with one device, without a username, and takes away again.
//!
//! Invariant: a guest knows whether the relay may have it. It may from when it was asked to register it until it has said
//! no, or that it is gone.

use undertone_api::{ApiError, HttpApi, RelayApi as _};
use undertone_wire::{
    AccountId, Bytes, DeviceEntry, DeviceId, DeviceList, DirectCiphertext, DirectRecipient, ErrorCode, InviteCode,
    KeySet, LoginRequest, RegisterRequest, RelayId, SignedDeviceList, X25519Key, public_key,
};

use crate::clock::{Random, RandomError, random_bytes};

/// An account for a round.
pub(super) struct Guest {
    relay: RelayId,
    account: AccountId,
    device: DeviceId,
    identity_key: [u8; 32],
    device_key: [u8; 32],
    list: SignedDeviceList,
    may_be_there: bool,
}

impl Guest {
    /// A new one, for this relay.
    pub(super) fn new(relay: RelayId, random: &dyn Random) -> Result<Self, RandomError> {
        let (identity_key, device_key, mls_key) = (random_bytes(random)?, random_bytes(random)?, random_bytes(random)?);
        let device = DeviceId::from_random(random_bytes(random)?);
        // Nobody writes to it by Olm.
        let olm_key = X25519Key::from(random_bytes::<32>(random)?);
        let key_set = KeySet { device_key: public_key(&device_key), olm_key };
        let account = AccountId::from_identity_key(&public_key(&identity_key));
        let entry = DeviceEntry::issue(account, &identity_key, device, &key_set, &mls_key);
        let list = DeviceList::first(public_key(&identity_key), vec![entry]);
        let list = SignedDeviceList::sign(&list, &identity_key);
        Ok(Self { relay, account, device, identity_key, device_key, list, may_be_there: false })
    }

    /// Whether the relay may have it.
    pub(super) fn may_be_there(&self) -> bool {
        self.may_be_there
    }

    /// Registers it.
    pub(super) async fn register(&mut self, api: &HttpApi, invite: Option<InviteCode>) -> Result<(), ApiError> {
        let list = self.list.clone();
        let request = RegisterRequest::sign(&self.relay, self.account, None, list, invite, &self.identity_key);
        self.may_be_there = true;
        let registered = api.register(&request).await;
        if let Err(error) = &registered {
            let not_done = error.is_a_no() || error.code() == Some(&ErrorCode::TooManyRequests);
            self.may_be_there = !not_done && !matches!(error, ApiError::Untrusted(_));
        }
        registered.map(|_| ())
    }

    /// A session of its device.
    pub(super) async fn log_in(&self, api: &HttpApi) -> Result<Bytes, ApiError> {
        let challenge = api.challenge().await?;
        let request = LoginRequest::sign(&self.relay, self.device, challenge.nonce, &self.device_key);
        Ok(api.login(&request).await?.token)
    }

    /// What it gets of a direct message.
    pub(super) fn receives(&self, ciphertext: Bytes) -> DirectRecipient {
        let ciphertexts = vec![DirectCiphertext { device_id: self.device, ciphertext }];
        DirectRecipient { account_id: self.account, ciphertexts }
    }

    /// Removes it, with all that it has at the relay.
    pub(super) async fn remove(&mut self, api: &HttpApi, token: &Bytes) -> Result<(), ApiError> {
        api.delete_account(token).await?;
        self.may_be_there = false;
        Ok(())
    }

    /// Removes it if it is there, in a session made for that.
    pub(super) async fn clear_away(&mut self, api: &HttpApi) -> Result<(), ApiError> {
        match self.log_in(api).await {
            Ok(token) => self.remove(api, &token).await,
            // The relay knows no such device, or no longer.
            Err(error) if error.code() == Some(&ErrorCode::BadSignature) => {
                self.may_be_there = false;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
