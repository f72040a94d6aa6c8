//! What a version meets that is newer than itself: it reads what it knows and fails at nothing else.

use serde::Serialize;
use serde_json::{Value, json};
use undertone_wire::{
    AckRequest, AuthenticatedData, ByeReason, ClientFrame, DecodeError, Encoding, Envelope, ErrorCode, FetchResponse,
    Limits, Problem, ServerFrame,
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
fn an_unknown_code_is_kept_as_text() {
    let problem = json!({"type": "urn:undertone:problem:teapot", "status": 418, "code": "teapot", "title": "Teapot"});
    let problem: Problem = read(&problem).unwrap();
    assert_eq!((problem.status, problem.code), (418, ErrorCode::Unknown("teapot".into())));
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
