//! One value of every body and frame, the same in every run.

use serde::{Serialize, de::DeserializeOwned};
use undertone_wire::*;

const NOW_MS: u64 = 1_795_200_000_000;

/// A value, as what there is to know about it.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) json: Vec<u8>,
    pub(crate) cbor: Vec<u8>,
    /// Whether what was encoded decodes to the value again, from either encoding.
    pub(crate) survives: bool,
}

fn sample<T>(name: &'static str, value: &T) -> Sample
where
    T: Serialize + DeserializeOwned + PartialEq,
{
    let (json, cbor) = (Encoding::Json.encode(value), Encoding::Cbor.encode(value));
    let survives = Encoding::Json.decode::<T>(&json).is_ok_and(|decoded| decoded == *value)
        && Encoding::Cbor.decode::<T>(&cbor).is_ok_and(|decoded| decoded == *value);
    Sample { name, json, cbor, survives }
}

pub(crate) fn all() -> Vec<Sample> {
    [accounts(), keys(), prekeys(), groups(), direct(), queues(), frames(), problems()].into_iter().flatten().collect()
}

const IDENTITY: [u8; 32] = [1; 32];
const MLS: [u8; 32] = [2; 32];

fn account_id() -> AccountId {
    AccountId::from_identity_key(&public_key(&IDENTITY))
}

fn device_id(byte: u8) -> DeviceId {
    DeviceId::from_random([byte; 16])
}

fn group_id() -> GroupId {
    GroupId::from_random([0x67; 16])
}

fn message_id() -> MessageId {
    MessageId::from_parts(NOW_MS, [0x6d; 10])
}

fn key_set() -> Vec<u8> {
    Encoding::Cbor.encode(&KeySet { device_key: public_key(&[3; 32]), olm_key: X25519Key::from([8; 32]) })
}

fn certificate() -> Certificate {
    Certificate {
        account: account_id(),
        device: device_id(1),
        mls_key: public_key(&MLS),
        key_set: Hash::of(&key_set()),
    }
}

fn recovery_key() -> RecoveryKey {
    let (account, key) = (account_id(), public_key(&[4; 32]));
    let fields: &[&[u8]] = &[account.as_bytes(), &0_u64.to_be_bytes(), key.as_bytes()];
    RecoveryKey { key, signature: sign(&IDENTITY, Domain::RecoveryKey, fields) }
}

fn rotation(authority: RotationAuthority) -> Rotation {
    Rotation { identity_key: public_key(&[5; 32]), authority, signature: Signature::from([6; 64]) }
}

fn device_list() -> DeviceList {
    let certificate = SignedCertificate::issue(&certificate(), &IDENTITY, &MLS);
    DeviceList {
        account: account_id(),
        version: 1,
        previous: None,
        first_identity_key: public_key(&IDENTITY),
        rotations: vec![],
        recovery_key: None,
        devices: vec![DeviceEntry { certificate, key_set: key_set().into() }],
    }
}

fn accounts() -> Vec<Sample> {
    let signed = SignedDeviceList::sign(&device_list(), &IDENTITY);
    let username = Some("alice".parse().unwrap());
    let later = DeviceList {
        version: 2,
        previous: Some(signed.hash()),
        rotations: vec![rotation(RotationAuthority::Identity), rotation(RotationAuthority::Recovery(recovery_key()))],
        recovery_key: Some(recovery_key()),
        ..device_list()
    };
    let credential = LeafCredential {
        first_identity_key: public_key(&IDENTITY),
        rotations: later.rotations.clone(),
        certificate: SignedCertificate::issue(&certificate(), &IDENTITY, &MLS),
    };
    let relay = Relay {
        relay_id: RelayId::from_random([0x72; 16]),
        incarnation: Incarnation::from_random([0x69; 16]),
        time_ms: NOW_MS,
        suites: vec![suite::DEFAULT],
        registration: Registration::Invite,
        limits: Limits::default(),
    };
    let register = RegisterRequest {
        account_id: account_id(),
        username: username.clone(),
        device_list: signed.clone(),
        invite: Some(InviteCode::from([6; 16])),
        signature: Signature::from([7; 64]),
    };
    let account = Account { account_id: account_id(), username: None, device_list: signed.clone() };
    let nonce = Nonce::from([8; 32]);
    let login = LoginRequest { device_id: device_id(1), nonce, signature: Signature::from([9; 64]) };
    vec![
        sample("relay", &relay),
        sample("certificate", &certificate()),
        sample("device_list", &device_list()),
        sample("device_list.later", &later),
        sample("leaf_credential", &credential),
        sample("register_request", &register),
        sample("update_device_list_request", &UpdateDeviceListRequest { device_list: signed }),
        sample("account", &account),
        sample("account.named", &Account { username, ..account }),
        sample("challenge", &Challenge { nonce, expires_at_ms: NOW_MS + 60_000 }),
        sample("login_request", &login),
        sample("session", &Session { token: vec![10; 32].into(), expires_at_ms: NOW_MS }),
    ]
}

fn keys() -> Vec<Sample> {
    let publish = PublishRequest {
        message_id: message_id(),
        key_packages: vec![b"one".as_slice().into(), b"two".as_slice().into()],
        last_resort: Some(b"last".as_slice().into()),
    };
    let count = KeyPackageCount { suite: suite::DEFAULT, one_time: 2, last_resort: true };
    let claimed = vec![
        ClaimedKeyPackage { device_id: device_id(1), key_package: Some(vec![1, 2].into()), last_resort: false },
        ClaimedKeyPackage { device_id: device_id(2), key_package: None, last_resort: false },
    ];
    let prekeys = PrekeyCount { one_time: 3, fallback: true };
    let counts = KeyCounts { key_packages: vec![count], prekeys, sealing_key: true };
    let reconciled = ReconcileResponse { available: vec![Hash::of(b"two")], counts: counts.clone() };
    vec![
        sample("publish_request", &publish),
        sample("key_counts", &counts),
        sample(
            "reconcile_request",
            &ReconcileRequest { hash_refs: vec![Hash::of(b"two"), Hash::of(b"last"), Hash::of(b"gone")] },
        ),
        sample("reconcile_response", &reconciled),
        sample("claim_request", &ClaimRequest { account_id: account_id(), suite: suite::DEFAULT }),
        sample("claim_response", &ClaimResponse { key_packages: claimed }),
    ]
}

fn prekeys() -> Vec<Sample> {
    let prekey = |byte, fallback| Prekey::sign(device_id(1), X25519Key::from([byte; 32]), NOW_MS, fallback, &[3; 32]);
    let sealing_key = SealingKey::sign(device_id(1), vec![7; SealingKey::LENGTH].into(), NOW_MS, &[3; 32]);
    let prekeys = vec![prekey(1, false), prekey(2, true)];
    let publish = PublishPrekeysRequest { message_id: message_id(), prekeys, sealing_key: Some(sealing_key.clone()) };
    let claim = ClaimPrekeysRequest { account_id: account_id(), devices: vec![device_id(1), device_id(2)] };
    let claimed = vec![
        ClaimedPrekey { device_id: device_id(1), prekey: Some(prekey(1, false)) },
        ClaimedPrekey { device_id: device_id(2), prekey: None },
    ];
    let sealing_keys = vec![
        DeviceSealingKey { device_id: device_id(1), sealing_key: Some(sealing_key) },
        DeviceSealingKey { device_id: device_id(2), sealing_key: None },
    ];
    vec![
        sample("publish_prekeys_request", &publish),
        sample("publish_prekeys_request.one", &PublishPrekeysRequest { sealing_key: None, ..publish.clone() }),
        sample("claim_prekeys_request", &claim),
        sample("claim_prekeys_response", &ClaimPrekeysResponse { prekeys: claimed }),
        sample("sealing_keys", &SealingKeys { sealing_keys }),
    ]
}

fn position() -> GroupPosition {
    GroupPosition { epoch: 3, commit_seq: 4, members_version: 5 }
}

fn groups() -> Vec<Sample> {
    let data = AuthenticatedData { at: 4, added: vec![device_id(1), device_id(2)], removed: vec![device_id(3)] };
    let secrets = vec![WelcomeSecrets { device_id: device_id(1), secrets: b"secrets".as_slice().into() }];
    let commit = CommitRequest {
        message_id: message_id(),
        commit: b"commit".as_slice().into(),
        welcome: Some(WelcomeParts { group_info: b"group info".as_slice().into(), secrets }),
        sealed_group_info: b"sealed".as_slice().into(),
    };
    let sealed_group_info: Bytes = b"sealed".as_slice().into();
    let create = CreateGroupRequest { group_id: group_id(), sealed_group_info: sealed_group_info.clone() };
    let group = Group { group_id: group_id(), position: position(), sealed_group_info };
    let summary = GroupSummary { group_id: group_id(), position: position() };
    let member = GroupMember { device_id: device_id(1), account_id: account_id() };
    let missed = GroupCommit { commit_seq: 4, commit: b"commit".as_slice().into() };
    let message: Bytes = b"message".as_slice().into();
    let send = SendRequest { message_id: message_id(), message: message.clone(), ttl_s: None };
    let successor = GroupId::from_random([0x73; 16]);
    let succeed = SuccessorRequest { message_id: message_id(), at: 3, successor, replaces: None };
    let nobody = Succession { position: position(), newest_commit_account: None, successor: None };
    let succession =
        Succession { newest_commit_account: Some(account_id()), successor: Some(successor), ..nobody.clone() };
    vec![
        sample("authenticated_data", &data),
        sample("authenticated_data.at_only", &AuthenticatedData { at: 4, ..AuthenticatedData::default() }),
        sample("create_group_request", &create),
        sample("commit_request", &commit),
        sample("commit_request.without_welcome", &CommitRequest { welcome: None, ..commit.clone() }),
        sample("commit_response", &CommitResponse { commit_seq: 4 }),
        sample("send_request", &send),
        sample("send_request.ttl", &SendRequest { ttl_s: Some(7_200), ..send.clone() }),
        sample("send_response", &SendResponse {}),
        sample("leave_request", &LeaveRequest { message_id: message_id(), notice: message }),
        sample("group", &group),
        sample("group_list", &GroupList { groups: vec![summary] }),
        sample("group_members", &GroupMembers { position: position(), members: vec![member] }),
        sample("group_commits", &GroupCommits { commits: vec![missed] }),
        sample("rejoin_request", &RejoinRequest { message_id: message_id() }),
        sample("successor_request", &succeed),
        sample("successor_request.replaces", &SuccessorRequest { replaces: Some(group_id()), ..succeed.clone() }),
        sample("succession", &succession),
        sample("succession.of_none", &nobody),
    ]
}

fn direct() -> Vec<Sample> {
    let ciphertexts: Vec<_> = [1, 2]
        .map(|device| DirectCiphertext { device_id: device_id(device), ciphertext: vec![device; 2].into() })
        .into_iter()
        .collect();
    let accounts = vec![DirectRecipient { account_id: account_id(), ciphertexts: ciphertexts.clone() }];
    let send = SendDirectRequest { message_id: message_id(), ttl_s: None, accounts };
    let group = GroupEphemeralRequest { at: 4, epoch: 3, ciphertext: b"typing".as_slice().into() };
    vec![
        sample("send_direct_request", &send),
        sample("send_direct_request.ttl", &SendDirectRequest { ttl_s: Some(7_200), ..send.clone() }),
        sample("group_ephemeral_request", &group),
        sample("direct_ephemeral_request", &DirectEphemeralRequest { ciphertexts }),
    ]
}

fn envelopes() -> [(&'static str, Envelope); 9] {
    let group_id = group_id();
    let bytes = |text: &str| Bytes::from(text.as_bytes());
    [
        ("group_message", Envelope::GroupMessage { group_id, message: bytes("message") }),
        ("group_commit", Envelope::GroupCommit { group_id, commit_seq: 4, commit: bytes("commit") }),
        (
            "welcome",
            Envelope::Welcome { group_id, commit_seq: 4, group_info: bytes("info"), secrets: bytes("secrets") },
        ),
        ("members_gone", Envelope::MembersGone { group_id, members_version: 5 }),
        ("direct_message", Envelope::DirectMessage { ciphertext: bytes("sealed") }),
        ("keys_low", Envelope::KeysLow { suite: suite::DEFAULT, one_time: 19 }),
        ("last_resort_used", Envelope::LastResortUsed { suite: suite::DEFAULT }),
        ("rejoin_wanted", Envelope::RejoinWanted { group_id, account_id: account_id(), device_id: device_id(1) }),
        ("successor", Envelope::Successor { group_id, at: 3, successor: GroupId::from_random([0x73; 16]) }),
    ]
}

fn queues() -> Vec<Sample> {
    let deliveries: Vec<_> = (7..).zip(envelopes()).map(|(seq, (_, envelope))| Delivery { seq, envelope }).collect();
    let fetched =
        FetchResponse { deliveries, missed: vec![Span { from: 5, to: 6 }], next_seq: 16, oldest_available: 7 };
    let mut samples = vec![sample("fetch_response", &fetched), sample("ack_request", &AckRequest { up_to: 10 })];
    let [previous, instance] = [0x70, 0x71].map(|byte| InstanceId::from_random([byte; 16]));
    let opened = InstanceRequest { previous: Some(previous), instance, takes_over: false };
    samples.push(sample("instance_request", &opened));
    samples.push(sample("instance_request_first", &InstanceRequest { previous: None, ..opened }));
    samples.push(sample("instance_request_takes_over", &InstanceRequest { takes_over: true, ..opened }));
    samples.push(sample("instance_response", &InstanceResponse { acked_seq: 6 }));
    samples.extend(envelopes().map(|(name, envelope)| sample(name, &envelope)));
    samples
}

fn frames() -> Vec<Sample> {
    let hello = ServerFrame::Hello {
        relay_id: RelayId::from_random([0x72; 16]),
        incarnation: Incarnation::from_random([0x69; 16]),
        stream: 2,
        next_seq: 11,
        oldest_available: 7,
        time_ms: NOW_MS,
    };
    let [_, _, (_, welcome), ..] = envelopes();
    let delivery = Delivery { seq: 9, envelope: welcome };
    let ciphertext: Bytes = b"typing".as_slice().into();
    let group_ephemeral = ServerFrame::GroupEphemeral { group_id: group_id(), epoch: 3, ciphertext };
    let mut samples = vec![
        sample("frame.hello", &hello),
        sample("frame.delivery", &ServerFrame::Delivery { delivery }),
        sample("frame.missed", &ServerFrame::Missed { span: Span { from: 5, to: 6 } }),
        sample("frame.group_ephemeral", &group_ephemeral),
        sample("frame.direct_ephemeral", &ServerFrame::DirectEphemeral { ciphertext: b"typing".as_slice().into() }),
        sample("frame.caught_up", &ServerFrame::CaughtUp { next_seq: 11 }),
        sample("frame.ack", &ClientFrame::Ack { up_to: 10 }),
    ];
    let reasons = [
        ("frame.bye.shutdown", ByeReason::Shutdown),
        ("frame.bye.replaced", ByeReason::Replaced),
        ("frame.bye.unauthenticated", ByeReason::Unauthenticated),
        ("frame.bye.too_slow", ByeReason::TooSlow),
        ("frame.bye.malformed", ByeReason::Malformed),
        ("frame.bye.internal", ByeReason::Internal),
    ];
    samples.extend(reasons.map(|(name, reason)| sample(name, &ServerFrame::Bye { reason })));
    samples
}

fn problems() -> Vec<Sample> {
    let stale =
        StaleGroup { position: position(), member: true, unacked: vec![UnackedCommit { commit_seq: 4, seq: 9 }] };
    let limit = LimitReached { name: "envelope_bytes_max".into(), value: 262_144 };
    let device_list = SignedDeviceList::sign(&device_list(), &IDENTITY);
    let account = Account { account_id: account_id(), username: None, device_list };
    let stale_devices = Problem { stale_devices: vec![account], ..Problem::new(ErrorCode::StaleDevices) };
    vec![
        sample("problem", &Problem::new(ErrorCode::NotFound)),
        sample("problem.limit", &Problem { limit: Some(limit), ..Problem::new(ErrorCode::TooLarge) }),
        sample("problem.stale_group", &Problem { stale_group: Some(stale), ..Problem::new(ErrorCode::StaleGroup) }),
        sample("problem.stale_devices", &stale_devices),
        sample("problem.time", &Problem { time_ms: Some(NOW_MS), ..Problem::new(ErrorCode::ClockSkew) }),
        sample("problem.detail", &Problem { detail: Some("why".into()), ..Problem::new(ErrorCode::Malformed) }),
    ]
}
