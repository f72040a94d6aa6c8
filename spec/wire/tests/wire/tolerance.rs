//! What a version meets that is newer than itself: it reads what it knows and fails at nothing else.

use serde::Serialize;
use serde_json::{Value, json};
use undertone_wire::{
    AckRequest, AuthenticatedData, ByeReason, ClientFrame, DecodeError, Encoding, Envelope, ErrorCode, FetchResponse,
    Limits, Problem, SendDirectRequest, SendRequest, ServerFrame,
};

/// Decodes what somebody else encoded, from both encodings, which must agree.
fn read<T: serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(value: &Value) -> Result<T, DecodeError> {
    let json = Encoding::Json.decode::<T>(&Encoding::Json.encode(value));
    let cbor = Encoding::Cbor.decode::<T>(&Encoding::Cbor.encode(value));
    match (&json, &cbor) {
        (Ok(json), Ok(cbor)) => assert_eq!(json, cbor),
        (json, cbor) => assert_eq!(json.is_err(), cbor.is_err()),
    }
    json
}

#[test]
fn unknown_kinds_are_kept_apart_not_refused() {
    let newer = json!({"type": "from_the_future", "with": {"more": [1, 2]}});
    assert_eq!(read::<Envelope>(&newer), Ok(Envelope::Unknown));
    assert_eq!(read::<ServerFrame>(&newer), Ok(ServerFrame::Unknown));
    let bye = json!({"type": "bye", "reason": "from_the_future"});
    assert_eq!(read::<ServerFrame>(&bye), Ok(ServerFrame::Bye { reason: ByeReason::Other }));
    let fetched = json!({
        "deliveries": [{"seq": 1, "envelope": newer}], "missed": [], "next_seq": 2, "oldest_available": 1
    });
    assert_eq!(read::<FetchResponse>(&fetched).unwrap().deliveries[0].envelope, Envelope::Unknown);
}

#[test]
fn a_frame_of_an_unknown_kind_from_a_device_is_refused() {
    assert!(read::<ClientFrame>(&json!({"type": "from_the_future"})).is_err());
}

#[test]
fn unknown_fields_are_passed_over_and_optional_ones_may_be_absent() {
    assert_eq!(read::<AckRequest>(&json!({"up_to": 3, "more": true})), Ok(AckRequest { up_to: 3 }));
    assert_eq!(read(&json!({"at": 3})), Ok(AuthenticatedData { at: 3, ..AuthenticatedData::default() }));
    let limits = Limits { retention_s: 1, ..Limits::default() };
    assert_eq!(read(&json!({"retention_s": 1, "from_the_future": 2})), Ok(limits));
}

#[test]
fn a_message_without_a_time_to_live_is_understood() {
    let id = "01a1fa42-2000-7d6d-ad6d-6d6d6d6d6d6d";
    let json = |value: &Value| Encoding::Json.encode(value);
    let send = Encoding::Json.decode::<SendRequest>(&json(&json!({"message_id": id, "message": "AQ"})));
    assert_eq!(send.unwrap().ttl_s, None);
    let direct = Encoding::Json.decode::<SendDirectRequest>(&json(&json!({"message_id": id, "accounts": [], "x": 1})));
    assert_eq!(direct.unwrap().ttl_s, None);
}

#[test]
fn an_unknown_code_is_kept_as_text() {
    let problem = json!({"type": "urn:undertone:problem:teapot", "status": 418, "code": "teapot", "title": "Teapot"});
    let problem: Problem = read(&problem).unwrap();
    assert_eq!((problem.status, problem.code), (418, ErrorCode::Unknown("teapot".into())));
    assert_eq!(problem.stale_devices, [], "what a problem does not carry is empty");
}

#[test]
fn wrong_shapes_are_refused() {
    for wrong in [json!({}), json!({"up_to": -1}), json!({"up_to": "3"}), json!([]), json!(null)] {
        assert!(read::<AckRequest>(&wrong).is_err(), "{wrong}");
    }
    assert!(Encoding::Json.decode::<AckRequest>(br#"{"up_to":1} x"#).is_err(), "trailing bytes");
    let cbor = [Encoding::Cbor.encode(&AckRequest { up_to: 1 }), vec![0]].concat();
    assert!(Encoding::Cbor.decode::<AckRequest>(&cbor).is_err(), "trailing bytes");
}

#[test]
fn a_limit_that_a_relay_does_not_tell_has_its_default() {
    let told: Limits = read(&json!({"ephemeral_bytes_max": 1})).unwrap();
    assert_eq!((told.ephemeral_bytes_max, told.queue_entries_max), (1, Limits::default().queue_entries_max));
}

#[test]
fn ids_are_taken_as_text_and_as_bytes_inside_tagged_kinds() {
    // serde does not tell tagged kinds which format they are read from, so both forms must do.
    #[derive(Serialize)]
    struct Gone<'a> {
        r#type: &'a str,
        group_id: &'a str,
        members_version: u64,
    }
    let text = "67676767-6767-4767-a767-676767676767";
    let gone = Gone { r#type: "members_gone", group_id: text, members_version: 5 };
    let expected = Envelope::MembersGone { group_id: text.parse().unwrap(), members_version: 5 };
    for encoding in [Encoding::Json, Encoding::Cbor] {
        assert_eq!(encoding.decode::<Envelope>(&encoding.encode(&gone)).as_ref(), Ok(&expected));
        assert_eq!(encoding.decode::<Envelope>(&encoding.encode(&expected)).as_ref(), Ok(&expected));
    }
}
