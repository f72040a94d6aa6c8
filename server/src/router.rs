//! The table of contents: every path, who answers it, and what stands around all of them.
//!
//! Invariant: every answer tells the relay's time, and every answer that is an error is a problem (RFC 9457). Logs name
//! the path's pattern, never the path.

use std::any::Any;

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::HeaderValue;
use tower_http::{catch_panic::CatchPanicLayer, trace::TraceLayer};
use undertone_wire::{Encoding, ErrorCode, PROBLEM_MEDIA_TYPE, TIME_HEADER, path};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        RefOr,
        path::Operation,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{auth, directory, error::Error, groups, keys, node::Node, queue, stream};

/// Everything the relay serves.
pub(crate) fn router(node: Node) -> Router {
    let (api, _) = api().split_for_parts();
    api.route(path::HEALTH, axum::routing::get(|| async { "ok\n" }))
        .fallback(|| async { Error::not_found() })
        .method_not_allowed_fallback(|| async { Error::refused(ErrorCode::MethodNotAllowed, "") })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(TraceLayer::new_for_http().make_span_with(span))
        .layer(middleware::from_fn_with_state(node.clone(), tell_time))
        .with_state(node)
}

fn api() -> OpenApiRouter<Node> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(directory::relay))
        .routes(routes!(directory::register))
        .routes(routes!(directory::account))
        .routes(routes!(directory::account_by_username))
        .routes(routes!(directory::delete_account))
        .routes(routes!(directory::update_devices))
        .routes(routes!(auth::challenge))
        .routes(routes!(auth::login))
        .routes(routes!(auth::logout))
        .routes(routes!(keys::counts))
        .routes(routes!(keys::publish))
        .routes(routes!(keys::claim))
        .routes(routes!(groups::list, groups::create))
        .routes(routes!(groups::group))
        .routes(routes!(groups::members))
        .routes(routes!(groups::commits, groups::commit))
        .routes(routes!(groups::message))
        .routes(routes!(groups::leave))
        .routes(routes!(queue::fetch))
        .routes(routes!(queue::ack))
        .routes(routes!(stream::stream))
}

/// The description of the API, in JSON; `spec/openapi.json` is a copy.
pub fn openapi() -> Result<String, serde_json::Error> {
    let (_, mut description) = api().split_for_parts();
    for item in description.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        operations.into_iter().flatten().for_each(name_media_types);
    }
    description.to_pretty_json()
}

/// Bodies exist in both encodings; problems are problems.
fn name_media_types(operation: &mut Operation) {
    let [json, cbor] = [Encoding::Json, Encoding::Cbor].map(Encoding::media_type);
    if let Some(RefOr::T(request)) = &mut operation.request_body
        && let Some(body) = request.content.get(json).cloned()
    {
        request.content.insert(cbor.to_owned(), body);
    }
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        let Some(body) = response.content.get(json).cloned() else { continue };
        if status == "default" {
            response.content = [(PROBLEM_MEDIA_TYPE.to_owned(), body)].into_iter().collect();
        } else {
            response.content.insert(cbor.to_owned(), body);
        }
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Undertone relay", description = "Bodies are JSON as described here, or CBOR made from the same types: byte strings and ids are then byte strings.",
         license(name = "MIT OR Apache-2.0")),
    security(("session" = [])),
    components(schemas(undertone_wire::ServerFrame, undertone_wire::ClientFrame)),
    modifiers(&BearerToken)
)]
struct Description;

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("session", scheme);
    }
}

fn span(request: &Request) -> tracing::Span {
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    tracing::debug_span!("request", method = %request.method(), path)
}

async fn tell_time(State(node): State<Node>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(TIME_HEADER, HeaderValue::from(node.now_ms()));
    response
}

fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    Error::Failed("a handler broke off").into_response()
}
