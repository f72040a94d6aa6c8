//! Real MLS through the relay: what openmls makes is taken, and what comes out of the queue works.

use openmls::prelude::{
    Capabilities, Ciphersuite, GroupId as MlsGroupId, Lifetime, MlsGroup, MlsGroupCreateConfig, MlsGroupJoinConfig,
    MlsMessageBodyIn, MlsMessageIn, OpenMlsProvider as _, PURE_CIPHERTEXT_WIRE_FORMAT_POLICY, ProcessedMessageContent,
    StagedWelcome,
    tls_codec::{Deserialize as _, Serialize as _},
};
use openmls_rust_crypto::OpenMlsRustCrypto;
use undertone_server::{Clock as _, SystemClock};
use undertone_wire::{
    AuthenticatedData, Bytes, CommitRequest, CommitResponse, Encoding, Envelope, KeyCounts, SendRequest, SendResponse,
    WelcomeParts, WelcomeSecrets, path, suite,
};

use crate::support::{Backend, Message, TestRelay, both};

both! {
    two_devices_talk_in_a_group,
    two_devices_talk_in_a_hybrid_group,
}

fn aad(data: &AuthenticatedData) -> Vec<u8> {
    Encoding::Cbor.encode(data)
}

async fn two_devices_talk_in_a_group(on: Backend) {
    two_devices_talk(on, suite::DEFAULT).await;
}

async fn two_devices_talk_in_a_hybrid_group(on: Backend) {
    two_devices_talk(on, suite::HYBRID).await;
}

async fn two_devices_talk(on: Backend, number: u16) {
    let suite = Ciphersuite::try_from(number).unwrap();
    let relay = TestRelay::start(on).await;
    let (alice, bob) = (relay.device().await, relay.device().await);
    let (alices, bobs) = (OpenMlsRustCrypto::default(), OpenMlsRustCrypto::default());
    let now_s = SystemClock.now_ms() / 1_000;
    let lifetime = Lifetime::init(now_s - 60, now_s + 80 * 24 * 60 * 60);
    let published = bob.key_package_in(&bobs, suite, lifetime, false).tls_serialize_detached().unwrap();
    bob.publish(vec![published.into()], None).await.yes::<KeyCounts>();

    let group_id = alice.create_group().await;
    let config = MlsGroupCreateConfig::builder()
        .ciphersuite(suite)
        .capabilities(Capabilities::builder().ciphersuites(vec![suite]).build())
        .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(true)
        .build();
    let id = MlsGroupId::from_slice(group_id.as_bytes());
    let mut group = MlsGroup::new_with_group_id(&alices, &alice, &config, id, alice.credential()).unwrap();

    let claimed = alice.claim_of(bob.account_id(), number).await.key_packages.remove(0).key_package.unwrap();
    let key_package = openmls::prelude::KeyPackageIn::tls_deserialize_exact(claimed.as_slice())
        .unwrap()
        .validate(alices.crypto(), openmls::prelude::ProtocolVersion::Mls10)
        .unwrap();
    group.set_aad(aad(&AuthenticatedData { at: 0, added: vec![bob.id()], removed: vec![] }));
    let (commit, welcome, _) = group.add_members(&alices, &alice, &[key_package]).unwrap();
    let welcome: Bytes = welcome.tls_serialize_detached().unwrap().into();
    let request = CommitRequest {
        message_id: Message::id(SystemClock.now_ms()),
        commit: commit.tls_serialize_detached().unwrap().into(),
        // The relay does not look inside; taking a Welcome apart is the SDK's work and tested there.
        welcome: Some(WelcomeParts {
            group_info: welcome,
            secrets: vec![WelcomeSecrets { device_id: bob.id(), secrets: b"in the other part"[..].into() }],
        }),
        sealed_group_info: b"sealed"[..].into(),
    };
    alice.post(&path::fill(path::GROUP_COMMITS, group_id), &request).await.yes::<CommitResponse>();
    group.merge_pending_commit(&alices).unwrap();

    // Beside it there may be a notice that the key package that was claimed was the last.
    let mut envelopes = bob.fetch(0).await.deliveries.into_iter().map(|entry| entry.envelope);
    let welcome = envelopes.find(|envelope| matches!(envelope, Envelope::Welcome { .. }));
    let Some(Envelope::Welcome { group_info, .. }) = welcome else { panic!("no Welcome") };
    let welcome = MlsMessageIn::tls_deserialize_exact(group_info.as_slice()).unwrap();
    let MlsMessageBodyIn::Welcome(welcome) = welcome.extract() else { panic!() };
    let join = MlsGroupJoinConfig::builder().wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY).build();
    let mut joined = StagedWelcome::new_from_welcome(&bobs, &join, welcome, None).unwrap().into_group(&bobs).unwrap();

    joined.set_aad(aad(&AuthenticatedData { at: 1, ..AuthenticatedData::default() }));
    let message: Bytes = joined.create_message(&bobs, &bob, b"snow!").unwrap().tls_serialize_detached().unwrap().into();
    let request = SendRequest { message_id: Message::id(SystemClock.now_ms()), ttl_s: None, message };
    bob.post(&path::fill(path::GROUP_MESSAGES, group_id), &request).await.yes::<SendResponse>();

    let Envelope::GroupMessage { message, .. } = alice.fetch(1).await.deliveries.remove(0).envelope else { panic!() };
    let message = MlsMessageIn::tls_deserialize_exact(message.as_slice()).unwrap();
    let processed = group.process_message(&alices, message.try_into_protocol_message().unwrap()).unwrap();
    let ProcessedMessageContent::ApplicationMessage(text) = processed.into_content() else { panic!() };
    assert_eq!(text.into_bytes(), b"snow!");
}
