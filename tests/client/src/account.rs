//! Accounts with their keys and lists, and devices with a session.

use std::ops::Deref;

use ed25519_dalek::{Signer as _, SigningKey};
use openmls::prelude::{
    BasicCredential, Capabilities, Ciphersuite, CredentialWithKey, ExtensionType, KeyPackage, Lifetime,
    SignatureScheme, tls_codec::Serialize as _,
};
use openmls_rust_crypto::OpenMlsRustCrypto;
use openmls_traits::signatures::{Signer, SignerError};
use tokio::task::JoinHandle;
use undertone_wire::{
    AccountId, Bytes, Certificate, Challenge, ClaimPrekeysRequest, ClaimPrekeysResponse, ClaimRequest, ClaimResponse,
    ClaimedPrekey, DeviceEntry, DeviceId, DeviceList, DeviceSealingKey, Encoding, FetchResponse, Hash, InviteCode,
    KeyCounts, KeySet, LeafCredential, LoginRequest, Prekey, PublicKey, PublishPrekeysRequest, PublishRequest,
    RecoveryKey, RecoveryRequest, RegisterRequest, Relay, Rotation, RotationAuthority, SealingKey, SealingKeys,
    Session, SignedCertificate, SignedDeviceList, UpdateDeviceListRequest, Username, X25519Key, path, public_key,
    suite,
};

use crate::{Api, Message, Reply, now_ms, random};

const DAY_S: u64 = 24 * 60 * 60;

/// A device's secrets.
#[derive(Clone)]
pub struct Keys {
    /// The device.
    pub device_id: DeviceId,
    mls: [u8; 32],
    device: [u8; 32],
    olm: X25519Key,
}

/// An account as its owner knows it.
#[derive(Clone)]
pub struct Account {
    /// Its id.
    pub account_id: AccountId,
    /// The identity key.
    pub identity: [u8; 32],
    /// The first identity key.
    pub first_identity: PublicKey,
    /// How it became the present one.
    pub rotations: Vec<Rotation>,
    /// The recovery key that its list names, if it does.
    pub recovery: Option<[u8; 32]>,
    /// Its name, if it has one.
    pub username: Option<Username>,
    /// With what it registers, if it has an invite.
    pub invite: Option<InviteCode>,
    /// Its devices, in ascending order.
    pub keys: Vec<Keys>,
    /// The version of its device list.
    pub version: u64,
    /// The list before.
    pub previous: Option<Hash>,
}

/// A device with a session.
#[derive(Clone)]
pub struct Device {
    /// How it talks to the relay.
    pub api: Api,
    /// Whose device it is.
    pub account: Account,
    /// Its own secrets.
    pub keys: Keys,
}

impl Default for Keys {
    fn default() -> Self {
        Self::new()
    }
}

impl Keys {
    /// A new device.
    pub fn new() -> Self {
        let olm = X25519Key::from(random::<32>());
        Self { device_id: DeviceId::from_random(random()), mls: random(), device: random(), olm }
    }

    /// The same device with another log-in key, hence another certificate.
    pub fn renewed(keys: &Self) -> Self {
        Self { device: random(), ..keys.clone() }
    }
}

impl Account {
    /// A new one, not yet registered.
    pub fn new(devices: usize) -> Self {
        let identity = random();
        let first_identity = public_key(&identity);
        let account_id = AccountId::from_identity_key(&first_identity);
        let mut keys: Vec<_> = (0..devices).map(|_| Keys::new()).collect();
        keys.sort_by_key(|keys| keys.device_id);
        Self {
            account_id,
            identity,
            first_identity,
            rotations: vec![],
            recovery: None,
            username: None,
            invite: None,
            keys,
            version: 1,
            previous: None,
        }
    }

    /// The same, naming this recovery key.
    pub fn recoverable(self, recovery: [u8; 32]) -> Self {
        Self { recovery: Some(recovery), ..self }
    }

    /// The same with another identity key, by the word of the one that it replaces.
    pub fn rotated(self) -> Self {
        let authority = RotationAuthority::Identity;
        let signer = self.identity;
        self.rotated_by(authority, &signer)
    }

    /// The same with another identity key, by the word of this recovery key, which is named for it.
    pub fn rotated_by_recovery(self, recovery: &[u8; 32]) -> Self {
        let authority = RotationAuthority::Recovery(self.naming(recovery));
        self.rotated_by(authority, recovery)
    }

    fn rotated_by(mut self, authority: RotationAuthority, signer: &[u8; 32]) -> Self {
        self.identity = random();
        let (generation, next) = (self.generation() + 1, public_key(&self.identity));
        self.rotations.push(Rotation::sign(&self.account_id, generation, next, authority, signer));
        self
    }

    fn generation(&self) -> u64 {
        self.rotations.len() as u64
    }

    fn naming(&self, recovery: &[u8; 32]) -> RecoveryKey {
        RecoveryKey::name(&self.account_id, self.generation(), public_key(recovery), &self.identity)
    }

    /// The same with a username.
    pub fn named(self, username: &str) -> Self {
        Self { username: Some(username.parse().unwrap()), ..self }
    }

    /// The same with an invite.
    pub fn invited(self, invite: InviteCode) -> Self {
        Self { invite: Some(invite), ..self }
    }

    /// The account with the next version of its list, naming these devices.
    pub fn next(&self, mut keys: Vec<Keys>) -> Self {
        keys.sort_by_key(|keys| keys.device_id);
        Self { keys, version: self.version + 1, previous: Some(self.signed_list().hash()), ..self.clone() }
    }

    /// The certificate of one of its devices.
    pub fn certificate(&self, keys: &Keys) -> SignedCertificate {
        let certificate = Certificate {
            account: self.account_id,
            device: keys.device_id,
            mls_key: public_key(&keys.mls),
            key_set: Hash::of(&key_set(keys)),
        };
        SignedCertificate::issue(&certificate, &self.identity, &keys.mls)
    }

    /// Its device list.
    pub fn list(&self) -> DeviceList {
        let entry = |keys| DeviceEntry { certificate: self.certificate(keys), key_set: key_set(keys).into() };
        DeviceList {
            account: self.account_id,
            version: self.version,
            previous: self.previous,
            first_identity_key: self.first_identity,
            rotations: self.rotations.clone(),
            recovery_key: self.recovery.as_ref().map(|recovery| self.naming(recovery)),
            devices: self.keys.iter().map(entry).collect(),
        }
    }

    /// The same, signed.
    pub fn signed_list(&self) -> SignedDeviceList {
        SignedDeviceList::sign(&self.list(), &self.identity)
    }

    /// The request that registers it.
    pub fn registration(&self, relay: &Relay) -> RegisterRequest {
        let Self { account_id, username, invite, .. } = self.clone();
        let list = self.signed_list();
        RegisterRequest::sign(&relay.relay_id, account_id, username, list, invite, &self.identity)
    }

    /// Registers, and answers what the relay says.
    pub async fn try_register(&self, api: &Api) -> Reply {
        let relay: Relay = api.get(path::RELAY).await.yes();
        api.post(path::ACCOUNTS, &self.registration(&relay)).await
    }

    /// Registers, and logs in all devices.
    pub async fn register(self, api: &Api) -> Vec<Device> {
        self.try_register(api).await.yes::<undertone_wire::Account>();
        self.log_in_all(api).await
    }

    /// Logs in all devices.
    pub async fn log_in_all(&self, api: &Api) -> Vec<Device> {
        let mut devices = Vec::new();
        for keys in &self.keys {
            let session: Session = log_in(api, keys).await.yes();
            devices.push(Device { api: api.with_token(&session.token), account: self.clone(), keys: keys.clone() });
        }
        devices
    }
}

impl Api {
    /// The only device of a new account, logged in.
    pub async fn device(&self) -> Device {
        Account::new(1).register(self).await.remove(0)
    }

    /// Asks for a challenge and answers it with an account's recovery key, for the account or its next list.
    pub async fn recover(&self, account: &Account, recovery: &[u8; 32], next: Option<&Account>) -> Reply {
        let relay: Relay = self.get(path::RELAY).await.yes();
        let challenge: Challenge = self.post(path::CHALLENGE, &()).await.yes();
        let list = next.map(Account::signed_list);
        let request = RecoveryRequest::sign(&relay.relay_id, &account.account_id, challenge.nonce, list, recovery);
        self.post_recovery(account, &request).await
    }

    /// Posts what a recovery key has signed.
    pub async fn post_recovery(&self, account: &Account, request: &RecoveryRequest) -> Reply {
        self.post(&path::fill(path::RECOVERY, account.account_id), request).await
    }
}

fn key_set(keys: &Keys) -> Vec<u8> {
    Encoding::Cbor.encode(&KeySet { device_key: public_key(&keys.device), olm_key: keys.olm })
}

/// Asks for a challenge and answers it.
pub async fn log_in(api: &Api, keys: &Keys) -> Reply {
    let relay: Relay = api.get(path::RELAY).await.yes();
    let challenge: Challenge = api.post(path::CHALLENGE, &()).await.yes();
    api.post(path::LOGIN, &login_request(&relay, keys, &challenge)).await
}

/// The answer to a challenge.
pub fn login_request(relay: &Relay, keys: &Keys, challenge: &Challenge) -> LoginRequest {
    LoginRequest::sign(&relay.relay_id, keys.device_id, challenge.nonce, &keys.device)
}

impl Device {
    /// The same device, with the same session, at another node.
    pub fn at(&self, url: impl AsRef<str>) -> Self {
        Self { api: self.api.at(url), ..self.clone() }
    }

    /// The same device with a new session.
    ///
    /// # Panics
    /// If the relay refuses.
    pub async fn logged_in_again(&self) -> Self {
        let session: Session = log_in(&self.api, &self.keys).await.yes();
        Self { api: self.api.with_token(&session.token), ..self.clone() }
    }

    /// Its id.
    pub fn id(&self) -> DeviceId {
        self.keys.device_id
    }

    /// Its account.
    pub fn account_id(&self) -> AccountId {
        self.account.account_id
    }

    /// Replaces the account's device list.
    pub async fn put_list(&self, next: &Account) -> Reply {
        self.put(path::OWN_DEVICES, &UpdateDeviceListRequest { device_list: next.signed_list() }).await
    }

    /// Everything in the queue after a number.
    pub async fn fetch(&self, after: u64) -> FetchResponse {
        self.get(&format!("{}?after={after}", path::QUEUE)).await.yes()
    }

    /// Asks for everything in the queue after a number, and waits for something to come for longer than any request may
    /// take: something must come.
    pub async fn long_poll(&self, after: u64) -> Reply {
        self.get(&format!("{}?after={after}&wait=50", path::QUEUE)).await
    }

    /// The same, beside whatever goes on. Answers what came.
    pub fn polling(&self, after: u64) -> JoinHandle<FetchResponse> {
        let device = self.clone();
        tokio::spawn(async move { device.long_poll(after).await.yes() })
    }

    /// Acks.
    pub async fn ack(&self, up_to: u64) -> Reply {
        self.post(path::ACK, &undertone_wire::AckRequest { up_to }).await
    }

    /// What stands in its leaves.
    pub fn credential(&self) -> CredentialWithKey {
        let credential = LeafCredential {
            first_identity_key: self.account.first_identity,
            rotations: self.account.rotations.clone(),
            certificate: self.account.certificate(&self.keys),
        };
        CredentialWithKey {
            credential: BasicCredential::new(credential.encode()).into(),
            signature_key: public_key(&self.keys.mls).as_bytes().to_vec().into(),
        }
    }

    /// A key package in the usual suite with the usual life.
    pub fn key_package(&self, last_resort: bool) -> Bytes {
        let now_s = now_ms() / 1_000;
        self.key_package_living(now_s - DAY_S, now_s + 90 * DAY_S, last_resort)
    }

    /// A key package in the usual suite with this life, in seconds since the Unix epoch.
    pub fn key_package_living(&self, from_s: u64, to_s: u64, last_resort: bool) -> Bytes {
        let provider = OpenMlsRustCrypto::default();
        let suite = Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519;
        self.key_package_in(&provider, suite, Lifetime::init(from_s, to_s), last_resort)
            .tls_serialize_detached()
            .unwrap()
            .into()
    }

    /// A key package.
    pub fn key_package_in(
        &self,
        provider: &OpenMlsRustCrypto,
        suite: Ciphersuite,
        lifetime: Lifetime,
        last_resort: bool,
    ) -> KeyPackage {
        let capabilities =
            Capabilities::builder().ciphersuites(vec![suite]).extensions(vec![ExtensionType::LastResort]).build();
        let mut builder = KeyPackage::builder().key_package_lifetime(lifetime).leaf_node_capabilities(capabilities);
        if last_resort {
            builder = builder.mark_as_last_resort();
        }
        builder.build(suite, provider, self, self.credential()).unwrap().key_package().clone()
    }

    /// Publishes key packages.
    pub async fn publish(&self, key_packages: Vec<Bytes>, last_resort: Option<Bytes>) -> Reply {
        let request = PublishRequest { message_id: Message::id(now_ms()), key_packages, last_resort };
        self.post(path::KEY_PACKAGES, &request).await
    }

    /// Publishes so many one-time key packages and a last-resort one.
    pub async fn stock(&self, one_time: usize) -> KeyCounts {
        let key_packages = (0..one_time).map(|_| self.key_package(false)).collect();
        self.publish(key_packages, Some(self.key_package(true))).await.yes()
    }

    /// Claims one key package of each device of an account.
    pub async fn claim(&self, account_id: AccountId) -> ClaimResponse {
        self.claim_of(account_id, suite::DEFAULT).await
    }

    /// The same of a suite.
    pub async fn claim_of(&self, account_id: AccountId, suite: u16) -> ClaimResponse {
        self.post(path::CLAIM, &ClaimRequest { account_id, suite }).await.yes()
    }

    /// A prekey with the usual life.
    pub fn prekey(&self, fallback: bool) -> Prekey {
        self.prekey_living_to(now_ms() + 90 * DAY_S * 1_000, fallback)
    }

    /// A prekey whose life ends then, in milliseconds since the Unix epoch.
    pub fn prekey_living_to(&self, not_after_ms: u64, fallback: bool) -> Prekey {
        Prekey::sign(self.id(), X25519Key::from(random::<32>()), not_after_ms, fallback, &self.keys.device)
    }

    /// A sealing key whose life ends so many days from now.
    pub fn sealing_key(&self, days: u64) -> SealingKey {
        let key: [u8; SealingKey::LENGTH] = random();
        SealingKey::sign(self.id(), key.to_vec().into(), now_ms() + days * DAY_S * 1_000, &self.keys.device)
    }

    /// Publishes prekeys, and a sealing key.
    pub async fn publish_prekeys(&self, prekeys: Vec<Prekey>, sealing_key: Option<SealingKey>) -> Reply {
        let request = PublishPrekeysRequest { message_id: Message::id(now_ms()), prekeys, sealing_key };
        self.post(path::PREKEYS, &request).await
    }

    /// Claims a prekey of each device of an account.
    pub async fn claim_prekeys(&self, account: &Account) -> Vec<ClaimedPrekey> {
        let devices = account.keys.iter().map(|keys| keys.device_id).collect();
        let request = ClaimPrekeysRequest { account_id: account.account_id, devices };
        self.post(path::CLAIM_PREKEYS, &request).await.yes::<ClaimPrekeysResponse>().prekeys
    }

    /// The sealing keys of an account's devices.
    pub async fn sealing_keys(&self, account_id: AccountId) -> Vec<DeviceSealingKey> {
        self.get(&path::fill(path::SEALING_KEYS, account_id)).await.yes::<SealingKeys>().sealing_keys
    }
}

impl Deref for Device {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl Signer for Device {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(SigningKey::from_bytes(&self.keys.mls).sign(payload).to_bytes().to_vec())
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}
