//! People with devices, groups at their hands, and a relay in memory: what the tests of its rules share.

use std::sync::atomic::AtomicU64;

use ed25519_dalek::Signer as _;
use openmls::prelude::{
    BasicCredential, Capabilities, Ciphersuite, CredentialWithKey, ExtensionType, KeyPackage, LeafNodeParameters,
    Lifetime, MlsGroup, OpenMlsProvider as _, SignatureScheme, tls_codec::Serialize as _,
};
use openmls_rust_crypto::OpenMlsRustCrypto;
use openmls_traits::signatures::{Signer, SignerError};
use undertone_wire::{
    AuthenticatedData, Certificate, Delivery, DeviceEntry, DeviceList, Domain, Encoding, Envelope, ErrorCode, Hash,
    KeySet, LeafCredential, MessageId, Nonce, Problem, SignedCertificate, SignedDeviceList, StaleGroup, WelcomeParts,
    WelcomeSecrets, X25519Key, public_key, sign,
};

use super::super::*;

pub(super) const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519;

/// An account's seeds; device `i` has id `[10 * n + i; 16]` and one seed for all its keys.
pub(super) struct Person {
    pub(super) identity: [u8; 32],
    pub(super) devices: Vec<[u8; 32]>,
}

impl Person {
    pub(super) fn new(n: u8, devices: u8) -> Self {
        Self { identity: [n; 32], devices: (0..devices).map(|i| [100 + 10 * n + i; 32]).collect() }
    }

    pub(super) fn account(&self) -> AccountId {
        AccountId::from_identity_key(&public_key(&self.identity))
    }

    pub(super) fn device(&self, i: usize) -> DeviceId {
        DeviceId::from_random([self.devices[i][0]; 16])
    }

    pub(super) fn entry(&self, i: usize) -> DeviceEntry {
        let key = public_key(&self.devices[i]);
        let key_set = Encoding::Cbor.encode(&KeySet { device_key: key, olm_key: X25519Key::from([9; 32]) });
        let (account, device) = (self.account(), self.device(i));
        let certificate = Certificate { account, device, mls_key: key, key_set: Hash::of(&key_set) };
        let certificate = SignedCertificate::issue(&certificate, &self.identity, &self.devices[i]);
        DeviceEntry { certificate, key_set: key_set.into() }
    }

    pub(super) fn list(&self) -> SignedDeviceList {
        let list = DeviceList {
            account: self.account(),
            version: 1,
            previous: None,
            first_identity_key: public_key(&self.identity),
            rotations: vec![],
            recovery_key: None,
            devices: (0..self.devices.len()).map(|i| self.entry(i)).collect(),
        };
        SignedDeviceList::sign(&list, &self.identity)
    }

    pub(super) fn registration(&self, relay: &Relay, username: Option<&str>) -> RegisterRequest {
        let device_list = self.list();
        let hash = device_list.hash();
        let fields: &[&[u8]] = &[relay.relay_id.as_bytes(), hash.as_bytes(), username.unwrap_or("").as_bytes()];
        RegisterRequest {
            account_id: self.account(),
            username: username.map(|name| name.parse().unwrap()),
            signature: sign(&self.identity, Domain::Registration, fields),
            device_list,
            invite: None,
        }
    }

    pub(super) async fn login(&self, api: &dyn RelayApi, i: usize) -> Result<Bytes, ApiError> {
        let nonce = api.challenge().await?.nonce;
        api.login(&self.signed_login(api, i, nonce).await?).await.map(|session| session.token)
    }

    pub(super) async fn signed_login(
        &self,
        api: &dyn RelayApi,
        i: usize,
        nonce: Nonce,
    ) -> Result<LoginRequest, ApiError> {
        let (relay_id, device_id) = (api.relay().await?.relay_id, self.device(i));
        let fields: &[&[u8]] = &[relay_id.as_bytes(), device_id.as_bytes(), nonce.as_bytes()];
        Ok(LoginRequest { device_id, nonce, signature: sign(&self.devices[i], Domain::Login, fields) })
    }

    /// Registers, and logs in each device.
    pub(super) async fn join(&self, api: &dyn RelayApi) -> Vec<Bytes> {
        api.register(&self.registration(&api.relay().await.unwrap(), None)).await.unwrap();
        let mut tokens = Vec::new();
        for i in 0..self.devices.len() {
            tokens.push(self.login(api, i).await.unwrap());
        }
        tokens
    }

    pub(super) fn credential(&self, i: usize) -> CredentialWithKey {
        let certificate = self.entry(i).certificate;
        let credential =
            LeafCredential { first_identity_key: public_key(&self.identity), rotations: vec![], certificate };
        CredentialWithKey {
            credential: BasicCredential::new(credential.encode()).into(),
            signature_key: public_key(&self.devices[i]).as_bytes().to_vec().into(),
        }
    }

    pub(super) fn key_package(&self, i: usize, lifetime: Lifetime, last_resort: bool) -> Bytes {
        let mut builder = KeyPackage::builder().key_package_lifetime(lifetime);
        if last_resort {
            let capabilities = Capabilities::builder().extensions(vec![ExtensionType::LastResort]).build();
            builder = builder.leaf_node_capabilities(capabilities).mark_as_last_resort();
        }
        let signer = Seed(self.devices[i]);
        let bundle = builder.build(SUITE, &OpenMlsRustCrypto::default(), &signer, self.credential(i)).unwrap();
        bundle.key_package().tls_serialize_detached().unwrap().into()
    }
}

pub(super) struct Seed([u8; 32]);

impl Signer for Seed {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(ed25519_dalek::SigningKey::from_bytes(&self.0).sign(payload).to_bytes().to_vec())
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// Writes messages as members of a group would: a relay cannot tell whose they are, nor what a commit holds.
pub(super) struct Pen {
    pub(super) group_id: GroupId,
    pub(super) group: MlsGroup,
    pub(super) provider: OpenMlsRustCrypto,
    pub(super) signer: Seed,
    pub(super) at: u64,
}

impl Pen {
    pub(super) fn new(person: &Person, group: u8) -> Self {
        let (group_id, provider, signer) =
            (GroupId::from_random([group; 16]), OpenMlsRustCrypto::default(), Seed(person.devices[0]));
        let group = MlsGroup::builder()
            .with_group_id(openmls::group::GroupId::from_slice(group_id.as_bytes()))
            .ciphersuite(SUITE)
            .build(&provider, &signer, person.credential(0))
            .unwrap();
        Self { group_id, group, provider, signer, at: 0 }
    }

    pub(super) fn set_data(&mut self, data: &AuthenticatedData) {
        self.group.set_aad(Encoding::Cbor.encode(data));
    }

    pub(super) fn message(&mut self) -> Bytes {
        self.set_data(&AuthenticatedData { at: self.at, ..AuthenticatedData::default() });
        let message = self.group.create_message(&self.provider, &self.signer, b"hello").unwrap();
        message.to_bytes().unwrap().into()
    }

    /// A commit that says what it adds and removes; the pen stays in its epoch.
    pub(super) fn commit(&mut self, added: &[DeviceId], removed: &[DeviceId]) -> Bytes {
        self.set_data(&AuthenticatedData { at: self.at, added: added.into(), removed: removed.into() });
        let update = LeafNodeParameters::default();
        let bundle = self.group.self_update(&self.provider, &self.signer, update).unwrap();
        let commit = bundle.into_commit().to_bytes().unwrap().into();
        self.group.clear_pending_commit(self.provider.storage()).unwrap();
        commit
    }

    /// Goes on to the next epoch.
    pub(super) fn turn_page(&mut self) {
        let update = LeafNodeParameters::default();
        self.group.self_update(&self.provider, &self.signer, update).unwrap();
        self.group.merge_pending_commit(&self.provider).unwrap();
        self.at += 1;
    }

    pub(super) fn commit_request(&mut self, id: MessageId, added: &[DeviceId], removed: &[DeviceId]) -> CommitRequest {
        let secrets = |device: &DeviceId| WelcomeSecrets { device_id: *device, secrets: vec![9].into() };
        let secrets: Vec<_> = added.iter().map(secrets).collect();
        CommitRequest {
            message_id: id,
            commit: self.commit(added, removed),
            welcome: (!added.is_empty()).then(|| WelcomeParts { group_info: vec![8].into(), secrets }),
            sealed_group_info: vec![7].into(),
        }
    }
}

/// A relay, a group of it, and how to ask for things in one line.
pub(super) struct Scene {
    pub(super) relay: Arc<FakeRelay>,
    pub(super) api: Arc<dyn RelayApi>,
    pub(super) pen: Pen,
    pub(super) ids: AtomicU64,
}

impl Scene {
    pub(super) fn id(&self) -> MessageId {
        MessageId::from_parts(self.relay.time_ms(), {
            let n = self.ids.fetch_add(1, Relaxed).to_be_bytes();
            std::array::from_fn(|i| n.get(i).copied().unwrap_or(0))
        })
    }

    pub(super) async fn send(&mut self, token: &Bytes) -> Result<SendResponse, ApiError> {
        let request = SendRequest { message_id: self.id(), message: self.pen.message(), ttl_s: None };
        self.api.send(token, self.pen.group_id, &request).await
    }

    pub(super) async fn commit(
        &mut self,
        token: &Bytes,
        added: &[DeviceId],
        removed: &[DeviceId],
    ) -> Result<CommitResponse, ApiError> {
        let id = self.id();
        let request = self.pen.commit_request(id, added, removed);
        let answer = self.api.commit(token, self.pen.group_id, &request).await;
        if answer.is_ok() {
            self.pen.turn_page();
        }
        answer
    }

    pub(super) fn kinds(&self, device: &DeviceId) -> Vec<&'static str> {
        let kind = |delivery: Delivery| match delivery.envelope {
            Envelope::GroupMessage { .. } => "message",
            Envelope::GroupCommit { .. } => "commit",
            Envelope::Welcome { .. } => "welcome",
            Envelope::MembersGone { .. } => "gone",
            _ => "unknown",
        };
        self.relay.queue(device).into_iter().map(kind).collect()
    }
}

/// Alice with two devices and Bob with one, logged in; a group of Alice's first device.
pub(super) async fn scene() -> (Scene, Person, Vec<Bytes>, Person, Bytes) {
    let relay = FakeRelay::new();
    let api = relay.connect();
    let (alice, bob) = (Person::new(1, 2), Person::new(2, 1));
    let (alices, bobs) = (alice.join(&*api).await, bob.join(&*api).await.remove(0));
    let pen = Pen::new(&alice, 50);
    let request = CreateGroupRequest { group_id: pen.group_id, sealed_group_info: vec![7].into() };
    api.create_group(&alices[0], &request).await.unwrap();
    (Scene { relay, api, pen, ids: AtomicU64::new(0) }, alice, alices, bob, bobs)
}

pub(super) fn code<T>(result: Result<T, ApiError>) -> ErrorCode {
    problem(result).code
}

pub(super) fn problem<T>(result: Result<T, ApiError>) -> Problem {
    match result {
        Err(ApiError::Refused(problem)) => *problem,
        Err(other) => panic!("{other:?} is no refusal"),
        Ok(_) => panic!("it was accepted"),
    }
}

pub(super) fn stale<T>(result: Result<T, ApiError>) -> StaleGroup {
    problem(result).stale_group.expect("a stale group")
}

pub(super) fn unreachable<T>(result: Result<T, ApiError>) -> bool {
    matches!(result, Err(ApiError::Unreachable(_)))
}
