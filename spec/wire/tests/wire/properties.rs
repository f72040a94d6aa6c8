//! What holds for all values: ids, byte strings and codes survive, and decoders survive anything.

use std::collections::HashSet;

use proptest::prelude::*;
use undertone_wire::{
    AccountId, AuthenticatedData, Bytes, ClientFrame, CommitRequest, DeviceId, DeviceList, DirectCiphertext,
    DirectEphemeralRequest, DirectRecipient, Encoding, Envelope, ErrorCode, GroupEphemeralRequest, Hash,
    LeafCredential, MessageId, Problem, PublicKey, ReconcileRequest, RegisterRequest, SendDirectRequest, ServerFrame,
};

const BOTH: [Encoding; 2] = [Encoding::Json, Encoding::Cbor];

proptest! {
    #[test]
    fn byte_strings_survive(bytes: Vec<u8>) {
        let bytes = Bytes::from(bytes);
        for encoding in BOTH {
            prop_assert_eq!(encoding.decode::<Bytes>(&encoding.encode(&bytes)).unwrap(), bytes.clone());
        }
    }

    #[test]
    fn ids_survive_as_bytes_and_as_text(random: [u8; 16], key: [u8; 32], time_ms in 0..1_u64 << 48, rest: [u8; 10]) {
        let device = DeviceId::from_random(random);
        let account = AccountId::from_identity_key(&PublicKey::from(key));
        let message = MessageId::from_parts(time_ms, rest);
        prop_assert_eq!(message.time_ms(), time_ms);
        for encoding in BOTH {
            prop_assert_eq!(encoding.decode::<DeviceId>(&encoding.encode(&device)).unwrap(), device);
            prop_assert_eq!(encoding.decode::<AccountId>(&encoding.encode(&account)).unwrap(), account);
            prop_assert_eq!(encoding.decode::<MessageId>(&encoding.encode(&message)).unwrap(), message);
        }
        prop_assert_eq!(device.to_string().parse::<DeviceId>().unwrap(), device);
        prop_assert_eq!(DeviceId::try_from(device.as_bytes().as_slice()).unwrap(), device);
        prop_assert!(message.to_string().parse::<DeviceId>().is_err(), "kinds of ids are not mixed up");
    }

    #[test]
    fn message_ids_sort_by_their_time(one in 0..1_u64 << 48, two in 0..1_u64 << 48, rest: [u8; 10]) {
        let (first, second) = (MessageId::from_parts(one, rest), MessageId::from_parts(two, rest));
        prop_assert_eq!(one < two, first < second);
    }

    #[test]
    fn authenticated_data_survives(at: u64, added: Vec<[u8; 16]>, removed: Vec<[u8; 16]>) {
        let ids = |bytes: Vec<[u8; 16]>| bytes.into_iter().map(DeviceId::from_random).collect();
        let data = AuthenticatedData { at, added: ids(added), removed: ids(removed) };
        for encoding in BOTH {
            prop_assert_eq!(&encoding.decode::<AuthenticatedData>(&encoding.encode(&data)).unwrap(), &data);
        }
    }

    #[test]
    fn direct_messages_survive(ttl_s: Option<u64>, key: [u8; 32], sealed: Vec<([u8; 16], Vec<u8>)>) {
        let ciphertexts = sealed.into_iter().map(|(device, ciphertext)| DirectCiphertext {
            device_id: DeviceId::from_random(device),
            ciphertext: ciphertext.into(),
        });
        let account_id = AccountId::from_identity_key(&PublicKey::from(key));
        let accounts = vec![DirectRecipient { account_id, ciphertexts: ciphertexts.collect() }];
        let request = SendDirectRequest { message_id: MessageId::from_parts(1, [7; 10]), ttl_s, accounts };
        for encoding in BOTH {
            prop_assert_eq!(&encoding.decode::<SendDirectRequest>(&encoding.encode(&request)).unwrap(), &request);
        }
    }

    #[test]
    fn key_package_references_survive(refs: Vec<[u8; 32]>) {
        let request = ReconcileRequest { hash_refs: refs.into_iter().map(Hash::from).collect() };
        for encoding in BOTH {
            prop_assert_eq!(&encoding.decode::<ReconcileRequest>(&encoding.encode(&request)).unwrap(), &request);
        }
    }

    #[test]
    fn decoders_survive_anything(bytes: Vec<u8>) {
        for encoding in BOTH {
            let _ = encoding.decode::<RegisterRequest>(&bytes);
            let _ = encoding.decode::<CommitRequest>(&bytes);
            let _ = encoding.decode::<SendDirectRequest>(&bytes);
            let _ = encoding.decode::<GroupEphemeralRequest>(&bytes);
            let _ = encoding.decode::<DirectEphemeralRequest>(&bytes);
            let _ = encoding.decode::<ReconcileRequest>(&bytes);
            let _ = encoding.decode::<Problem>(&bytes);
            let _ = encoding.decode::<DeviceList>(&bytes);
            let _ = encoding.decode::<Envelope>(&bytes);
            let _ = encoding.decode::<ServerFrame>(&bytes);
            let _ = encoding.decode::<ClientFrame>(&bytes);
        }
        let _ = LeafCredential::decode(&bytes);
    }
}

#[test]
fn codes_are_unique_and_survive() {
    let texts: HashSet<_> = ErrorCode::ALL.iter().map(ErrorCode::as_str).collect();
    assert_eq!(texts.len(), ErrorCode::ALL.len());
    for code in ErrorCode::ALL {
        assert!((400..600).contains(&code.status()));
        for encoding in BOTH {
            assert_eq!(&encoding.decode::<ErrorCode>(&encoding.encode(code)).unwrap(), code);
        }
    }
}
