//! Errors: what a request may come to instead of an answer, and the one place that turns it into HTTP.
//!
//! Refusals are values that carry what the caller needs to go on. Failures are told to the log, without a word about
//! whom they struck, and to the caller as `internal` or `unavailable`.

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use undertone_wire::{Account, Encoding, ErrorCode, LimitReached, PROBLEM_MEDIA_TYPE, Problem, StaleGroup};

use crate::{clock::RandomError, store::StoreError};

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum Error {
    /// Refused; the text says what to do, or is empty when the code says it all.
    Refused(ErrorCode, Cow<'static, str>),
    /// Larger or more than a limit allows.
    OverLimit(ErrorCode, LimitReached),
    /// The message id's time does not fit the relay's, which is given.
    WrongTime(ErrorCode, u64),
    /// The group has moved on, or without the caller.
    StaleGroup(StaleGroup),
    /// The ciphertexts are not for exactly the devices of these accounts.
    StaleDevices(Vec<Account>),
    /// The store failed.
    Store(StoreError),
    /// Others changed in between what this depends on. It begins again by itself.
    Again,
    /// Something else failed that must not.
    Failed(&'static str),
}

impl Error {
    /// A refusal that says what to do.
    pub(crate) fn refused(code: ErrorCode, what_to_do: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused(code, what_to_do.into())
    }

    /// There is nothing here, or nothing for the caller.
    pub(crate) fn not_found() -> Self {
        Self::refused(ErrorCode::NotFound, "")
    }

    /// The session does not hold.
    pub(crate) fn unauthenticated() -> Self {
        Self::refused(ErrorCode::Unauthenticated, "log in and send the token as `Authorization: Bearer`")
    }

    fn problem(self) -> Problem {
        match self {
            Self::Refused(code, detail) => {
                Problem { detail: (!detail.is_empty()).then(|| detail.into_owned()), ..Problem::new(code) }
            }
            Self::OverLimit(code, limit) => {
                let detail = match code {
                    ErrorCode::TooManyRequests => {
                        "too many requests from this address; try again in a minute".to_owned()
                    }
                    _ => format!("`{}` is {}", limit.name, limit.value),
                };
                Problem { limit: Some(limit), detail: Some(detail), ..Problem::new(code) }
            }
            Self::WrongTime(code, time_ms) => Problem { time_ms: Some(time_ms), ..Problem::new(code) },
            Self::StaleGroup(stale) => Problem { stale_group: Some(stale), ..Problem::new(ErrorCode::StaleGroup) },
            Self::StaleDevices(accounts) => {
                Problem { stale_devices: accounts, ..Problem::new(ErrorCode::StaleDevices) }
            }
            Self::Store(StoreError::Busy) => {
                // Said quietly: a flood of requests shall not become one of lines.
                tracing::debug!("the store is busy");
                Problem::new(ErrorCode::Unavailable)
            }
            Self::Again => Problem::new(ErrorCode::Unavailable),
            Self::Store(error) => {
                tracing::error!(%error, "the store failed");
                Problem::new(ErrorCode::Internal)
            }
            Self::Failed(what) => {
                tracing::error!("{what}");
                Problem::new(ErrorCode::Internal)
            }
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<RandomError> for Error {
    fn from(_: RandomError) -> Self {
        Self::Failed("the operating system gives no random bytes")
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let media_type = HeaderValue::from_static(PROBLEM_MEDIA_TYPE);
        let mut response =
            (status, [(header::CONTENT_TYPE, media_type)], Encoding::Json.encode(&problem)).into_response();
        if problem.code == ErrorCode::TooManyRequests {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        response
    }
}

/// When who asked too often may try again, in seconds (RFC 9110, section 10.2.3): rates are per minute.
const RETRY_AFTER_S: &str = "60";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_say_nothing_of_what_failed() {
        let code_of = |error: Error| {
            let problem = error.problem();
            assert_eq!((problem.detail, problem.limit, problem.stale_group), (None, None, None));
            problem.code
        };
        assert_eq!(code_of(StoreError::Busy.into()), ErrorCode::Unavailable);
        assert_eq!(code_of(StoreError::Corrupt("a row").into()), ErrorCode::Internal);
        assert_eq!(code_of(StoreError::Interrupted.into()), ErrorCode::Internal);
        assert_eq!(code_of(Error::Failed("something")), ErrorCode::Internal);
        assert_eq!(code_of(RandomError.into()), ErrorCode::Internal);
    }
}
