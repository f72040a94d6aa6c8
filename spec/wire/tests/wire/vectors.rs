//! `spec/vectors/signatures.json`, made by another implementation.

use serde::Deserialize;
use undertone_wire::{AccountId, Bytes, Domain, Encoding, PublicKey, Signature, public_key, sign, verify};

#[derive(Deserialize)]
struct Vector {
    purpose: String,
    seed: Bytes,
    public_key: PublicKey,
    fields: Vec<Bytes>,
    message: Bytes,
    signature: Signature,
    account_id: AccountId,
}

const DOMAINS: [(&str, Domain); 10] = [
    ("device list", Domain::DeviceList),
    ("certificate", Domain::Certificate),
    ("certificate acceptance", Domain::CertificateAcceptance),
    ("recovery key", Domain::RecoveryKey),
    ("rotation", Domain::Rotation),
    ("registration", Domain::Registration),
    ("login", Domain::Login),
    ("prekey", Domain::Prekey),
    ("sealing key", Domain::SealingKey),
    ("recovery", Domain::Recovery),
];

#[test]
fn signatures_and_account_ids_are_those_of_the_vectors() {
    let vectors: Vec<Vector> = Encoding::Json.decode(include_bytes!("../../../vectors/signatures.json")).unwrap();
    let purposes: Vec<_> = vectors.iter().map(|vector| vector.purpose.as_str()).collect();
    assert_eq!(purposes, DOMAINS.map(|(purpose, _)| purpose), "one vector for each purpose");
    for (vector, (_, domain)) in vectors.iter().zip(DOMAINS) {
        let seed = vector.seed.as_slice().try_into().unwrap();
        let fields: Vec<_> = vector.fields.iter().map(Bytes::as_slice).collect();
        assert_eq!(public_key(seed), vector.public_key);
        assert_eq!(domain.message(&fields), vector.message.as_slice());
        assert_eq!(sign(seed, domain, &fields), vector.signature);
        assert!(verify(&vector.public_key, domain, &fields, &vector.signature));
        assert_eq!(AccountId::from_identity_key(&vector.public_key), vector.account_id);
    }
}
