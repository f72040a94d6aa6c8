//! Requests and what comes of them.

use http::{Method, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};
use undertone_wire::{Bytes, Encoding, ErrorCode, PROBLEM_MEDIA_TYPE, Problem, TIME_HEADER};

/// Somebody who sends requests, with or without a session.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) url: String,
    pub(crate) encoding: Encoding,
    pub(crate) token: Option<Bytes>,
    http: reqwest::Client,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) media_type: String,
    pub(crate) body: Vec<u8>,
}

impl Api {
    pub(crate) fn new(url: &str) -> Self {
        Self { url: url.to_owned(), encoding: Encoding::Cbor, token: None, http: reqwest::Client::new() }
    }

    pub(crate) fn speaking(&self, encoding: Encoding) -> Self {
        Self { encoding, ..self.clone() }
    }

    pub(crate) fn with_token(&self, token: &Bytes) -> Self {
        Self { token: Some(token.clone()), ..self.clone() }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, None).await
    }

    pub(crate) async fn post<T: Serialize>(&self, path: &str, body: &T) -> Reply {
        self.send(Method::POST, path, Some(self.encoding.encode(body))).await
    }

    pub(crate) async fn put<T: Serialize>(&self, path: &str, body: &T) -> Reply {
        self.send(Method::PUT, path, Some(self.encoding.encode(body))).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Reply {
        let media_type = self.encoding.media_type();
        let mut request = self.http.request(method, format!("{}{path}", self.url)).header(header::ACCEPT, media_type);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", text_of(token)));
        }
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, media_type).body(body);
        }
        Reply::read(request.send().await.unwrap()).await
    }
}

/// A token as it is written in a header.
pub(crate) fn text_of(token: &Bytes) -> String {
    String::from_utf8(Encoding::Json.encode(token)).unwrap().trim_matches('"').to_owned()
}

impl Reply {
    pub(crate) async fn read(response: reqwest::Response) -> Self {
        let time = response.headers().get(TIME_HEADER).expect("every answer tells the time");
        assert!(time.to_str().unwrap().parse::<u64>().unwrap() > 0);
        let media_type = response.headers().get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap().to_owned());
        let status = response.status();
        let body = response.bytes().await.unwrap().to_vec();
        Self { status, media_type: media_type.unwrap_or_default(), body }
    }

    /// The body of a yes.
    #[track_caller]
    pub(crate) fn yes<T: DeserializeOwned>(self) -> T {
        assert!(self.status.is_success(), "{}: {}", self.status, String::from_utf8_lossy(&self.body));
        Encoding::from_media_type(&self.media_type).unwrap().decode(&self.body).unwrap()
    }

    /// A yes that says nothing.
    #[track_caller]
    pub(crate) fn done(self) {
        assert_eq!((self.status, self.body.len()), (StatusCode::NO_CONTENT, 0));
    }

    /// A no with this code.
    #[track_caller]
    pub(crate) fn no(self, code: ErrorCode) -> Problem {
        assert!(!self.status.is_success(), "expected {code}, got yes");
        assert_eq!(self.media_type, PROBLEM_MEDIA_TYPE);
        let problem: Problem = Encoding::Json.decode(&self.body).unwrap();
        assert_eq!(problem.code, code, "{problem:?}");
        assert_eq!((problem.status, code.status()), (self.status.as_u16(), self.status.as_u16()));
        problem
    }
}
