//! Requests and what comes of them.

use std::time::Duration;

use http::{Method, StatusCode, header};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use serde::{Serialize, de::DeserializeOwned};
use undertone_wire::{Bytes, Encoding, ErrorCode, PROBLEM_MEDIA_TYPE, Problem, TIME_HEADER};

use crate::SOON;

/// How long to wait between two attempts at the same request.
const AGAIN: Duration = Duration::from_millis(20);

/// How long to go on with the same request.
const PATIENCE: Duration = Duration::from_secs(120);

/// Somebody who sends requests, with or without a session.
#[derive(Debug, Clone)]
pub struct Api {
    /// Where the relay is.
    pub url: String,
    /// How bodies are written.
    pub encoding: Encoding,
    /// The session.
    pub token: Option<Bytes>,
    http: reqwest::Client,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its media type; empty if it names none.
    pub media_type: String,
    /// Its body.
    pub body: Vec<u8>,
}

/// A client that speaks HTTP in clear, and TLS with nobody: it trusts no authority.
///
/// # Panics
/// If TLS cannot be set up.
pub fn plain_http() -> reqwest::Client {
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
    let builder = builder.with_safe_default_protocol_versions().expect("ring speaks TLS 1.2 and 1.3");
    let tls = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).build().expect("there is nothing to fail")
}

impl Api {
    /// Somebody without a session, who speaks CBOR.
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned(), encoding: Encoding::Cbor, token: None, http: plain_http() }
    }

    /// The same in another encoding.
    pub fn speaking(&self, encoding: Encoding) -> Self {
        Self { encoding, ..self.clone() }
    }

    /// The same with a session.
    pub fn with_token(&self, token: &Bytes) -> Self {
        Self { token: Some(token.clone()), ..self.clone() }
    }

    /// The same at another node.
    pub fn at(&self, url: impl AsRef<str>) -> Self {
        Self { url: url.as_ref().to_owned(), ..self.clone() }
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, None).await
    }

    /// `POST`.
    pub async fn post<T: Serialize>(&self, path: &str, body: &T) -> Reply {
        self.send(Method::POST, path, Some(self.encoding.encode(body))).await
    }

    /// `PUT`.
    pub async fn put<T: Serialize>(&self, path: &str, body: &T) -> Reply {
        self.send(Method::PUT, path, Some(self.encoding.encode(body))).await
    }

    /// Sends a request that must be answered.
    ///
    /// # Panics
    /// If it is not.
    pub async fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Reply {
        self.attempt(method, path, body).await.unwrap()
    }

    /// Sends a request once. An error is an answer that was lost, or a request: nobody knows.
    ///
    /// # Errors
    /// If no answer came.
    pub async fn attempt(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> reqwest::Result<Reply> {
        let media_type = self.encoding.media_type();
        let request = self.http.request(method, format!("{}{path}", self.url)).header(header::ACCEPT, media_type);
        let mut request = request.timeout(SOON);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", text_of(token)));
        }
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, media_type).body(body);
        }
        Reply::read(request.send().await?).await
    }

    /// Posts the same bytes until the relay says yes or no. The answer comes with how often they were repeated.
    ///
    /// # Panics
    /// If it says neither in two minutes.
    pub async fn insist<T: Serialize>(&self, path: &str, body: &T) -> (Reply, u64) {
        let bytes = self.encoding.encode(body);
        let mut repeated = 0;
        let answered = async {
            let mut tick = tokio::time::interval(AGAIN);
            loop {
                tick.tick().await;
                match self.attempt(Method::POST, path, Some(bytes.clone())).await {
                    Ok(reply) if !reply.is_undecided() => return reply,
                    Ok(_) | Err(_) => repeated += 1,
                }
            }
        };
        let reply = tokio::time::timeout(PATIENCE, answered).await.expect("the relay answers in the end");
        (reply, repeated)
    }
}

/// A token as it is written in a header.
pub fn text_of(token: &Bytes) -> String {
    String::from_utf8(Encoding::Json.encode(token)).unwrap().trim_matches('"').to_owned()
}

impl Reply {
    /// Reads an answer to its end.
    ///
    /// # Errors
    /// If it breaks off.
    ///
    /// # Panics
    /// If it does not tell the relay's time.
    pub async fn read(response: reqwest::Response) -> reqwest::Result<Self> {
        let time = response.headers().get(TIME_HEADER).expect("every answer tells the time");
        assert!(time.to_str().unwrap().parse::<u64>().unwrap() > 0);
        let media_type = response.headers().get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap().to_owned());
        let status = response.status();
        let body = response.bytes().await?.to_vec();
        Ok(Self { status, media_type: media_type.unwrap_or_default(), body })
    }

    /// Whether the relay says neither yes nor no: it failed, or has no time.
    pub fn is_undecided(&self) -> bool {
        matches!(self.status, StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE)
    }

    /// The body of a yes.
    #[track_caller]
    pub fn yes<T: DeserializeOwned>(self) -> T {
        assert!(self.status.is_success(), "{}: {}", self.status, String::from_utf8_lossy(&self.body));
        Encoding::from_media_type(&self.media_type).unwrap().decode(&self.body).unwrap()
    }

    /// A yes that says nothing.
    #[track_caller]
    pub fn done(self) {
        let said = String::from_utf8_lossy(&self.body);
        assert_eq!((self.status, self.body.len()), (StatusCode::NO_CONTENT, 0), "{said}");
    }

    /// A no with this code.
    #[track_caller]
    pub fn no(self, code: ErrorCode) -> Problem {
        let problem = self.problem().unwrap_or_else(|| panic!("expected {code}, got yes"));
        assert_eq!(problem.code, code, "{problem:?}");
        problem
    }

    /// What a no says; `None` for a yes.
    #[track_caller]
    pub fn problem(&self) -> Option<Problem> {
        if self.status.is_success() {
            return None;
        }
        assert_eq!(self.media_type, PROBLEM_MEDIA_TYPE);
        let problem: Problem = Encoding::Json.decode(&self.body).unwrap();
        assert_eq!((problem.status, problem.code.status()), (self.status.as_u16(), self.status.as_u16()));
        Some(problem)
    }
}
