//! The edge of HTTP: bodies, paths and queries in, answers out, in the encoding the caller asked for.
//!
//! Invariant: a handler sees parsed values only, and whatever cannot be parsed is answered with a problem. Bodies are
//! measured before they are read.

use std::{fmt::Display, str::FromStr, time::Duration};

use axum::{
    RequestPartsExt as _,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use serde::{Serialize, de::DeserializeOwned};
use undertone_wire::{CommitRequest, Encoding, ErrorCode, Limits};

use crate::{error::Error, limits, node::Node};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A request's body, decoded by its `Content-Type`.
pub(crate) struct Body<T>(pub(crate) T);

/// Which of the limits a body of this type is measured by.
pub(crate) trait Measured {
    /// The limit's name and value.
    fn limit(limits: &Limits) -> (&'static str, u64) {
        ("body_bytes_max", limits.body_bytes_max)
    }
}

impl Measured for undertone_wire::AckRequest {}
impl Measured for undertone_wire::ClaimPrekeysRequest {}
impl Measured for undertone_wire::ClaimRequest {}
impl Measured for undertone_wire::CreateGroupRequest {}
impl Measured for undertone_wire::DirectEphemeralRequest {}
impl Measured for undertone_wire::GroupEphemeralRequest {}
impl Measured for undertone_wire::InstanceRequest {}
impl Measured for undertone_wire::LeaveRequest {}
impl Measured for undertone_wire::PipePart {}
impl Measured for undertone_wire::RejoinRequest {}
impl Measured for undertone_wire::SuccessorRequest {}
impl Measured for undertone_wire::PublishPrekeysRequest {}
impl Measured for undertone_wire::PublishRequest {}
impl Measured for undertone_wire::ReconcileRequest {}
impl Measured for undertone_wire::RecoveryRequest {}
impl Measured for undertone_wire::RegisterRequest {}
impl Measured for undertone_wire::SendDirectRequest {}
impl Measured for undertone_wire::SendRequest {}
impl Measured for undertone_wire::UpdateDeviceListRequest {}

/// A log-in comes from anybody.
impl Measured for undertone_wire::LoginRequest {
    fn limit(limits: &Limits) -> (&'static str, u64) {
        ("login_body_bytes_max", limits.login_body_bytes_max)
    }
}

/// A commit comes with its Welcome and group info.
impl Measured for CommitRequest {
    fn limit(limits: &Limits) -> (&'static str, u64) {
        ("commit_body_bytes_max", limits.commit_body_bytes_max)
    }
}

impl<T: DeserializeOwned + Measured> FromRequest<Node> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, node: &Node) -> Result<Self, Error> {
        let encoding = content_encoding(request.headers())?;
        let (name, max) = T::limit(&node.limits);
        limits::bytes(name, max, announced_bytes(request.headers()))?;

        let body = tokio::time::timeout(BODY_TIMEOUT, whole(request.into_body(), name, max))
            .await
            .map_err(|_| malformed("the body did not arrive in time"))??;
        encoding.decode(&body).map(Self).map_err(|error| malformed(error.to_string()))
    }
}

/// A body read to its end, but not beyond the limit.
async fn whole(body: axum::body::Body, limit: &'static str, max: u64) -> Result<Vec<u8>, Error> {
    let mut chunks = body.into_data_stream();
    let mut whole = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| malformed("the body broke off"))?;
        limits::bytes(limit, max, whole.len() + chunk.len())?;
        whole.extend_from_slice(&chunk);
    }
    Ok(whole)
}

fn content_encoding(headers: &HeaderMap) -> Result<Encoding, Error> {
    let unsupported = || Error::refused(ErrorCode::UnsupportedMediaType, "send application/json or application/cbor");
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media_type.and_then(Encoding::from_media_type).ok_or_else(unsupported)
}

fn announced_bytes(headers: &HeaderMap) -> usize {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    length.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The encoding in which the caller wants its answer: the first in `Accept` that is spoken here, JSON if it names none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accept(Encoding);

impl Accept {
    /// An answer with a body.
    pub(crate) fn answer<T: Serialize>(self, body: &T) -> Response {
        let media_type = HeaderValue::from_static(self.0.media_type());
        (StatusCode::OK, [(header::CONTENT_TYPE, media_type)], self.0.encode(body)).into_response()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Accept {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        accepted(&parts.headers).map(Self).ok_or_else(|| {
            Error::refused(ErrorCode::NotAcceptable, "answers come as application/json or application/cbor")
        })
    }
}

fn accepted(headers: &HeaderMap) -> Option<Encoding> {
    let mut ranges = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|range| range.split(';').next().unwrap_or_default().trim())
        .peekable();
    if ranges.peek().is_none() {
        return Some(Encoding::Json);
    }
    ranges.find_map(|range| match range {
        "*/*" | "application/*" => Some(Encoding::Json),
        named => Encoding::from_media_type(named),
    })
}

/// The id or name in a path.
pub(crate) struct Named<T>(pub(crate) T);

impl<S, T> FromRequestParts<S> for Named<T>
where
    S: Send + Sync,
    T: FromStr<Err: Display>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let Path(text) = parts.extract::<Path<String>>().await.map_err(|_| malformed("the path is not UTF-8"))?;
        text.parse().map(Self).map_err(|error: T::Err| malformed(error.to_string()))
    }
}

/// The parameters of a query.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<S, T> FromRequestParts<S> for Parameters<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let query = Query::try_from_uri(&parts.uri);
        query.map(|Query(parameters)| Self(parameters)).map_err(|error| malformed(error.body_text()))
    }
}

/// A refusal of what cannot be understood, with the reason.
pub(crate) fn malformed(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::refused(ErrorCode::Malformed, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted_of(accept: &[&str]) -> Option<Encoding> {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, value.parse().unwrap());
        }
        accepted(&headers)
    }

    #[test]
    fn answers_come_in_the_first_encoding_that_both_speak() {
        assert_eq!(accepted_of(&[]), Some(Encoding::Json));
        assert_eq!(accepted_of(&["*/*"]), Some(Encoding::Json));
        assert_eq!(accepted_of(&["text/html, application/cbor;q=0.5"]), Some(Encoding::Cbor));
        assert_eq!(accepted_of(&["text/html", "application/json"]), Some(Encoding::Json));
        assert_eq!(accepted_of(&["text/html"]), None);
    }
}
