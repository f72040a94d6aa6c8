//! Errors: RFC 9457 problems with a stable `code`.
//!
//! Codes are closed on write and open on read: an unknown one is kept as text. A refusal that the protocol foresees
//! carries what the caller needs to go on ([`StaleGroup`], the accounts of `stale_devices`).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Account, StaleGroup};

/// The body of every answer with a status of 400 or above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `urn:undertone:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status.
    pub status: u16,
    /// What machines read.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub code: ErrorCode,
    /// What happened, in general.
    pub title: String,
    /// What happened here, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// With `too_large`, `limit_reached` and `too_many_requests`: which limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitReached>,
    /// With `stale_group`: where the group stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_group: Option<StaleGroup>,
    /// With `stale_devices`: the accounts concerned, and no others, with their newest device lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale_devices: Vec<Account>,
    /// With `clock_skew` and `outcome_unknown`: the relay's time, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
}

/// A limit that a request went over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LimitReached {
    /// The limit's name, as in [`Limits`](crate::Limits).
    pub name: String,
    /// Its value.
    pub value: u64,
}

impl Problem {
    /// A problem with nothing but its code.
    pub fn new(code: ErrorCode) -> Self {
        Self {
            kind: format!("urn:undertone:problem:{code}"),
            status: code.status(),
            title: code.title().to_owned(),
            code,
            detail: None,
            limit: None,
            stale_group: None,
            stale_devices: Vec::new(),
            time_ms: None,
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $status:literal;)+) => {
        /// What machines read of a [`Problem`].
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)+
            /// A code that this version does not know.
            Unknown(String),
        }

        impl ErrorCode {
            /// All codes that a relay of this version writes.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The code's text.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $code,)+
                    Self::Unknown(code) => code,
                }
            }

            /// The HTTP status that goes with it.
            pub fn status(&self) -> u16 {
                match self {
                    $(Self::$variant => $status,)+
                    Self::Unknown(_) => 500,
                }
            }

            fn from_text(text: String) -> Self {
                match text.as_str() {
                    $($code => Self::$variant,)+
                    _ => Self::Unknown(text),
                }
            }
        }
    };
}

codes! {
    /// The request cannot be understood.
    Malformed = "malformed", 400;
    /// The message id's time is too far ahead; `time_ms` has the relay's.
    ClockSkew = "clock_skew", 400;
    /// No session, or it has ended, or the device is no longer listed. Log in again.
    Unauthenticated = "unauthenticated", 401;
    /// To register here takes an invite, and this is none that holds: it is missing, used up, expired or revoked.
    InviteRequired = "invite_required", 403;
    /// Nobody can register here.
    RegistrationClosed = "registration_closed", 403;
    /// There is nothing here, or nothing for the caller.
    NotFound = "not_found", 404;
    /// The path does not take this method.
    MethodNotAllowed = "method_not_allowed", 405;
    /// None of the encodings in `Accept` is spoken here.
    NotAcceptable = "not_acceptable", 406;
    /// The account is registered already, with another list or name.
    AccountExists = "account_exists", 409;
    /// Another account has the username.
    UsernameTaken = "username_taken", 409;
    /// The device list is not the next one; fetch the account and look again.
    StaleDeviceList = "stale_device_list", 409;
    /// Another device has created a group with this id.
    GroupExists = "group_exists", 409;
    /// The group has moved on, or the caller is no longer a member; `stale_group` has the rest.
    StaleGroup = "stale_group", 409;
    /// The ciphertexts are not for exactly the listed devices; `stale_devices` has the current lists.
    StaleDevices = "stale_devices", 409;
    /// The queue of a receiving device takes no more direct messages until the device has taken some. Try later.
    QueueFull = "queue_full", 409;
    /// The message id was used for another body.
    MessageIdReused = "message_id_reused", 409;
    /// A device to be added is not registered at this relay.
    UnknownDevice = "unknown_device", 409;
    /// A newer stream of the device has replaced this one.
    Replaced = "replaced", 409;
    /// That part of the pipe is there already, with other content.
    PartTaken = "part_taken", 409;
    /// Another copy of the device's store has taken from its queue since this one did.
    OtherInstance = "other_instance", 409;
    /// The message id is older than the window: whether it was accepted is no longer known.
    OutcomeUnknown = "outcome_unknown", 410;
    /// Larger than a limit allows; `limit` names it.
    TooLarge = "too_large", 413;
    /// The body's media type is none of those spoken here.
    UnsupportedMediaType = "unsupported_media_type", 415;
    /// A signature does not verify.
    BadSignature = "bad_signature", 422;
    /// A device list breaks a rule; `detail` says which.
    BadDeviceList = "bad_device_list", 422;
    /// A key package breaks a rule; `detail` says which.
    BadKeyPackage = "bad_key_package", 422;
    /// A prekey or a sealing key breaks a rule; `detail` says which.
    BadPrekey = "bad_prekey", 422;
    /// The lifetime of a key package, prekey or sealing key is over, too short or too long.
    BadLifetime = "bad_lifetime", 422;
    /// A cipher suite that this relay does not take.
    UnsupportedSuite = "unsupported_suite", 422;
    /// An MLS message or its authenticated data breaks a rule; `detail` says which.
    BadMessage = "bad_message", 422;
    /// More of something than a limit allows; `limit` names it.
    LimitReached = "limit_reached", 422;
    /// More requests in a time than a limit allows; `limit` names it. Try later.
    TooManyRequests = "too_many_requests", 429;
    /// The relay failed. Trying again is safe.
    Internal = "internal", 500;
    /// The relay is stopping or overloaded. Trying again is safe.
    Unavailable = "unavailable", 503;
}

impl ErrorCode {
    fn title(&self) -> &'static str {
        match self {
            Self::Malformed => "The request cannot be understood",
            Self::ClockSkew => "The message id's time is too far ahead",
            Self::Unauthenticated => "Log in first",
            Self::InviteRequired => "It takes an invite that holds",
            Self::RegistrationClosed => "Nobody can register here",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "The path does not take this method",
            Self::NotAcceptable => "No encoding in common",
            Self::AccountExists => "The account is registered already",
            Self::UsernameTaken => "The username is taken",
            Self::StaleDeviceList => "The device list is not the next one",
            Self::GroupExists => "The group exists already",
            Self::StaleGroup => "The group has moved on",
            Self::StaleDevices => "The ciphertexts are not for exactly the listed devices",
            Self::QueueFull => "A receiving device's queue is full",
            Self::MessageIdReused => "The message id was used for another body",
            Self::UnknownDevice => "A device is not registered here",
            Self::Replaced => "A newer stream has replaced this one",
            Self::PartTaken => "The part of the pipe is there already",
            Self::OtherInstance => "Another copy of the device's store has taken from its queue",
            Self::OutcomeUnknown => "Whether the message was accepted is no longer known",
            Self::TooLarge => "Too large",
            Self::UnsupportedMediaType => "The media type is not spoken here",
            Self::BadSignature => "A signature does not verify",
            Self::BadDeviceList => "The device list breaks a rule",
            Self::BadKeyPackage => "A key package breaks a rule",
            Self::BadPrekey => "A prekey breaks a rule",
            Self::BadLifetime => "A key's lifetime does not fit",
            Self::UnsupportedSuite => "The cipher suite is not supported",
            Self::BadMessage => "The message breaks a rule",
            Self::LimitReached => "A limit is reached",
            Self::TooManyRequests => "Too many requests in too short a time",
            Self::Internal => "The relay failed",
            Self::Unavailable => "The relay is not available",
            Self::Unknown(_) => "Unknown problem",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from_text)
    }
}
