//! The two encodings of every body and frame: JSON (RFC 8259) and CBOR (RFC 8949).
//!
//! Invariant: both are made from the same types; trailing bytes after a value are an error.

use serde::{Serialize, de::DeserializeOwned};

/// How a body or frame is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// `application/json`; bytes as base64url text, ids as UUID text.
    Json,
    /// `application/cbor`; bytes and ids as byte strings.
    Cbor,
}

/// A body that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

impl Encoding {
    /// The media type, as in `Content-Type`.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Cbor => "application/cbor",
        }
    }

    /// The encoding named by a media type; parameters (`; charset=utf-8`) are ignored.
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        [Self::Json, Self::Cbor].into_iter().find(|encoding| essence.eq_ignore_ascii_case(encoding.media_type()))
    }

    /// Encodes a value of this crate. None of them can fail to encode: they hold no maps with other than text keys.
    #[expect(clippy::expect_used, reason = "writing to memory; the types of this crate always encode")]
    pub fn encode<T: Serialize>(self, value: &T) -> Vec<u8> {
        match self {
            Self::Json => serde_json::to_vec(value).expect("wire types encode as JSON"),
            Self::Cbor => {
                let mut bytes = Vec::new();
                ciborium::into_writer(value, &mut bytes).expect("wire types encode as CBOR");
                bytes
            }
        }
    }

    /// Decodes exactly one value.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, DecodeError> {
        match self {
            Self::Json => serde_json::from_slice(bytes).map_err(|error| DecodeError(error.to_string())),
            Self::Cbor => {
                let mut rest = bytes;
                let value = ciborium::from_reader(&mut rest).map_err(|error| DecodeError(cbor_reason(error)))?;
                if rest.is_empty() { Ok(value) } else { Err(DecodeError("trailing bytes".into())) }
            }
        }
    }
}

fn cbor_reason(error: ciborium::de::Error<std::io::Error>) -> String {
    match error {
        ciborium::de::Error::Io(_) => "ends too early".into(),
        ciborium::de::Error::Syntax(at) => format!("not CBOR at byte {at}"),
        ciborium::de::Error::Semantic(_, reason) => reason,
        ciborium::de::Error::RecursionLimitExceeded => "nested too deeply".into(),
    }
}
