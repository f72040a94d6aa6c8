//! Identifiers. All are UUIDs made by the client: text in JSON and on the command line, 16 bytes in CBOR and SQL.
//!
//! Invariant: an [`AccountId`] commits to the account's first identity key; every other id is random.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::{Hash, PublicKey};

/// Text or bytes that are not an identifier of the expected kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Neither UUID text nor 16 bytes.
    #[error("not a UUID")]
    NotUuid,
    /// A UUID of another version than this kind of id has.
    #[error("a UUID of version {actual}, expected version {expected}")]
    Version {
        /// The version this kind of id has.
        expected: usize,
        /// The version found.
        actual: usize,
    },
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, version $version:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = "uuid"))]
        pub struct $name(Uuid);

        impl $name {
            /// The id's 16 bytes.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            fn checked(uuid: Uuid) -> Result<Self, IdError> {
                match uuid.get_version_num() {
                    $version => Ok(Self(uuid)),
                    actual => Err(IdError::Version { expected: $version, actual }),
                }
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;

            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                Self::checked(Uuid::from_slice(bytes).map_err(|_| IdError::NotUuid)?)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::checked(Uuid::try_parse(text).map_err(|_| IdError::NotUuid)?)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serialize_uuid(&self.0, serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::checked(deserialize_uuid(deserializer)?).map_err(de::Error::custom)
            }
        }
    };
}

macro_rules! random_id {
    ($($name:ident),+) => {
        $(impl $name {
            /// An id from 16 random bytes, of which 122 bits are kept.
            pub fn from_random(bytes: [u8; 16]) -> Self {
                Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
            }
        })+
    };
}

id!(
    /// An account: UUID version 8 (RFC 9562, section 5.8) whose 122 free bits are those of the first 16 bytes of
    /// SHA-256(first identity key).
    AccountId, version 8
);
id!(
    /// A device of an account: UUID version 4.
    DeviceId, version 4
);
id!(
    /// A group, in MLS and at the relay alike: UUID version 4.
    GroupId, version 4
);
id!(
    /// A relay's identity, made with its store and pinned by devices at registration: UUID version 4.
    RelayId, version 4
);
id!(
    /// One life of a relay's store; another value means that the store was restored or moved: UUID version 4.
    Incarnation, version 4
);
id!(
    /// One life of a device's store, from when it is opened until it is opened again or opens a further stream: UUID version 4.
    InstanceId, version 4
);
id!(
    /// A pipe between a device that is to be linked and one that links it, known to both and to nobody else: UUID version 4.
    PipeId, version 4
);
id!(
    /// A message: UUID version 7 (RFC 9562, section 5.7), whose time is the relay's time as the device knows it.
    MessageId, version 7
);

random_id!(DeviceId, GroupId, RelayId, Incarnation, InstanceId, PipeId);

impl AccountId {
    /// The id of the account whose first identity key is `key`.
    pub fn from_identity_key(key: &PublicKey) -> Self {
        let digest = *Hash::of(key.as_bytes()).as_bytes();
        let bytes = std::array::from_fn(|i| digest[i]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// Whether this is the id of the account whose first identity key is `key`.
    pub fn commits_to(&self, key: &PublicKey) -> bool {
        *self == Self::from_identity_key(key)
    }
}

impl MessageId {
    /// A message id from a time in milliseconds since the Unix epoch and 10 random bytes, of which 74 bits are kept.
    pub fn from_parts(time_ms: u64, random: [u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(time_ms, &random).into_uuid())
    }

    /// The time in the id, in milliseconds since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        let [a, b, c, d, e, f, ..] = *self.0.as_bytes();
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }
}

fn serialize_uuid<S: Serializer>(uuid: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        serializer.collect_str(uuid)
    } else {
        serializer.serialize_bytes(uuid.as_bytes())
    }
}

fn deserialize_uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = Uuid;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a UUID, as text or as 16 bytes")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Uuid, E> {
            Uuid::try_parse(text).map_err(|_| E::custom(IdError::NotUuid))
        }

        fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Uuid, E> {
            Uuid::from_slice(bytes).map_err(|_| E::custom(IdError::NotUuid))
        }
    }

    if deserializer.is_human_readable() {
        deserializer.deserialize_any(Visitor)
    } else {
        deserializer.deserialize_bytes(Visitor)
    }
}
