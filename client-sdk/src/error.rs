//! What can go wrong, and what an app can do about it.
//!
//! Invariant: `Display` of every error is fit for a log: no keys, no content, no ids of people.

use undertone_api::ApiError;
use undertone_wire::{DeviceListError, ErrorCode};

use crate::{crypto::CryptoError, linking::NotLinked, store::StoreError};

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The relay cannot be reached.
    #[error("{0}")]
    Offline(ApiError),
    /// What answers, at every address there is, is another relay than the one where the account is registered. Once that
    /// is seen it is asked for nothing but which relay it is, as often as one that cannot be reached is looked for.
    #[error("{}", ApiError::OtherRelay)]
    OtherRelay,
    /// The relay said no.
    #[error("the relay refused: {0}")]
    Refused(ApiError),
    /// The username belongs to another account.
    #[error("the username is taken")]
    UsernameTaken,
    /// To register at this relay takes an invite that holds, and there was none, or one that is used up, expired or revoked.
    #[error("this relay asks for an invite, or for another than this one: ask whoever runs it")]
    InviteRequired,
    /// Nobody can register at this relay.
    #[error("nobody can register at this relay")]
    RegistrationClosed,
    /// No such account is registered at the relay.
    #[error("no such account is registered at this relay")]
    UnknownAccount,
    /// There is no such group in this store.
    #[error("there is no such group here")]
    UnknownGroup,
    /// There is no such message in the group's history.
    #[error("there is no such message in this history")]
    UnknownMessage,
    /// This device is not a member of the group, or no longer.
    #[error("this device is not a member of the group")]
    NotMember,
    /// The relay has lost the group, or a commit of it that this device has applied.
    #[error("the group cannot go on: the relay has lost it, or a commit of it")]
    GroupStuck,
    /// The account is not a member of the group.
    #[error("that account is not a member of the group")]
    NoSuchMember,
    /// The account has no device that can be added now.
    #[error("that account has no device that can be added now: it has published no usable key packages")]
    NoKeyPackages,
    /// What another device or the relay presented does not verify.
    #[error("what was presented does not verify: {0}")]
    Untrusted(String),
    /// The store holds an account already.
    #[error("the store holds an account already")]
    AlreadyRegistered,
    /// The store holds no account yet.
    #[error("the store holds no account yet: register first")]
    NotRegistered,
    /// The new device was not linked.
    #[error("{0}")]
    NotLinked(NotLinked),
    /// An argument is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// The store is open in another process.
    #[error("the store is in use by another process")]
    StoreInUse,
    /// The store's key does not fit.
    #[error("the store cannot be opened with this key")]
    WrongKey,
    /// The local store failed.
    #[error("{0}")]
    Store(String),
    /// The client was shut down.
    #[error("the client was shut down")]
    Closed,
}

/// What an app can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Try again when the relay can be reached.
    Offline,
    /// The relay's answer is final; tell the user.
    Refused,
    /// What was asked for is not there.
    NotFound,
    /// The group is not this device's.
    NotMember,
    /// Somebody presents what they should not; tell the user.
    Untrusted,
    /// The call was wrong.
    Invalid,
    /// The store is in use elsewhere, or its key does not fit.
    StoreUnavailable,
    /// The local store failed.
    Store,
}

impl Error {
    /// What an app can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Offline(_) => ErrorKind::Offline,
            Self::Refused(_)
            | Self::UsernameTaken
            | Self::InviteRequired
            | Self::RegistrationClosed
            | Self::NoKeyPackages => ErrorKind::Refused,
            Self::UnknownAccount | Self::UnknownGroup | Self::UnknownMessage | Self::NoSuchMember => {
                ErrorKind::NotFound
            }
            Self::NotMember | Self::GroupStuck => ErrorKind::NotMember,
            Self::Untrusted(_) | Self::OtherRelay => ErrorKind::Untrusted,
            Self::NotLinked(NotLinked::Changed) => ErrorKind::Untrusted,
            Self::NotLinked(_) => ErrorKind::Refused,
            Self::AlreadyRegistered | Self::NotRegistered | Self::Invalid(_) => ErrorKind::Invalid,
            Self::StoreInUse | Self::WrongKey => ErrorKind::StoreUnavailable,
            Self::Store(_) | Self::Closed => ErrorKind::Store,
        }
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::OtherRelay => Self::OtherRelay,
            error if !error.is_a_no() => Self::Offline(error),
            error => match error.code() {
                Some(ErrorCode::UsernameTaken) => Self::UsernameTaken,
                Some(ErrorCode::InviteRequired) => Self::InviteRequired,
                Some(ErrorCode::RegistrationClosed) => Self::RegistrationClosed,
                _ => Self::Refused(error),
            },
        }
    }
}

impl From<NotLinked> for Error {
    fn from(why: NotLinked) -> Self {
        Self::NotLinked(why)
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::InUse => Self::StoreInUse,
            StoreError::WrongKey => Self::WrongKey,
            StoreError::Closed => Self::Closed,
            StoreError::BadPassphrase => Self::Invalid(error.to_string()),
            other => Self::Store(other.to_string()),
        }
    }
}

impl From<CryptoError> for Error {
    fn from(error: CryptoError) -> Self {
        match error {
            CryptoError::Invalid(reason) => Self::Untrusted(reason),
            CryptoError::Storage(reason) => Self::Store(reason),
        }
    }
}

impl From<DeviceListError> for Error {
    fn from(error: DeviceListError) -> Self {
        Self::Untrusted(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use undertone_wire::Problem;

    use super::*;

    fn said(code: ErrorCode, status: u16) -> Error {
        ApiError::Refused(Box::new(Problem { status, ..Problem::new(code) })).into()
    }

    #[test]
    fn a_code_that_is_not_known_is_read_by_its_status() {
        let unknown = || ErrorCode::Unknown("of_a_later_version".into());
        for status in [500, 501, 503, 507, 599] {
            assert!(matches!(said(unknown(), status), Error::Offline(_)), "{status}");
        }
        for status in [400, 404, 409, 422, 499] {
            assert!(matches!(said(unknown(), status), Error::Refused(_)), "{status}");
        }
        assert!(matches!(said(ErrorCode::Internal, 500), Error::Offline(_)));
        assert!(matches!(said(ErrorCode::NotFound, 404), Error::Refused(_)));
        assert!(matches!(said(ErrorCode::UsernameTaken, 409), Error::UsernameTaken));
    }

    #[test]
    fn another_relay_is_neither_offline_nor_a_refusal() {
        assert_eq!(Error::from(ApiError::OtherRelay).kind(), ErrorKind::Untrusted);
        assert_eq!(Error::OtherRelay.to_string(), ApiError::OtherRelay.to_string());
    }
}
