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
use undertone_wire::{Encoding, ErrorCode, Hash, PROBLEM_MEDIA_TYPE, TIME_HEADER, path};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        RefOr,
        path::Operation,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{auth, directory, ephemeral, error::Error, groups, keys, messages, node::Node, pipes, queue, stream};

/// Everything the relay serves.
pub(crate) fn router(node: Node) -> Router {
    let (api, _) = api().split_for_parts();
    api.route(path::HEALTH, axum::routing::get(|| async { "ok\n" }))
        .route(path::READY, axum::routing::get(ready))
        .fallback(|| async { Error::not_found() })
        .method_not_allowed_fallback(|| async { Error::refused(ErrorCode::MethodNotAllowed, "") })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(node.clone(), take_turn))
        // What failed is said where it failed; being busy is no failure.
        .layer(TraceLayer::new_for_http().make_span_with(span).on_failure(()))
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
        .routes(routes!(directory::recover))
        .routes(routes!(auth::challenge))
        .routes(routes!(auth::login))
        .routes(routes!(auth::logout))
        .routes(routes!(pipes::request, pipes::put_request))
        .routes(routes!(pipes::answer, pipes::put_answer))
        .routes(routes!(keys::counts))
        .routes(routes!(keys::reconcile))
        .routes(routes!(keys::key_packages::publish))
        .routes(routes!(keys::key_packages::claim))
        .routes(routes!(keys::prekeys::publish))
        .routes(routes!(keys::prekeys::claim))
        .routes(routes!(keys::prekeys::sealing_keys))
        .routes(routes!(groups::list, groups::create))
        .routes(routes!(groups::group))
        .routes(routes!(groups::members))
        .routes(routes!(groups::commits, groups::commit))
        .routes(routes!(messages::to_group))
        .routes(routes!(messages::direct))
        .routes(routes!(ephemeral::to_group))
        .routes(routes!(ephemeral::direct))
        .routes(routes!(groups::leave))
        .routes(routes!(groups::rejoin))
        .routes(routes!(groups::succession, groups::succeed))
        .routes(routes!(queue::fetch))
        .routes(routes!(queue::ack))
        .routes(routes!(queue::instance))
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

/// Whether this node should be sent requests.
async fn ready(State(node): State<Node>) -> Result<&'static str, Error> {
    match node.is_ready().await {
        true => Ok("ready\n"),
        false => Err(Error::refused(ErrorCode::Unavailable, "this node is stopping or cut off")),
    }
}

fn span(request: &Request) -> tracing::Span {
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    tracing::debug_span!("request", method = %request.method(), path)
}

/// Refuses what a session asks for while it has enough requests open. A stream counts until it is open.
async fn take_turn(State(node): State<Node>, request: Request, next: Next) -> Response {
    let Some(token) = auth::bearer_token(request.headers()) else { return next.run(request).await };
    let Some(_turn) = node.turns.begin(Hash::of(token.as_slice()), node.limits.session_requests_max) else {
        let what_to_do = "this session has too many requests open; wait for their answers";
        return Error::refused(ErrorCode::Unavailable, what_to_do).into_response();
    };
    next.run(request).await
}

async fn tell_time(State(node): State<Node>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(TIME_HEADER, HeaderValue::from(node.now_ms()));
    response
}

fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    Error::Failed("a handler broke off").into_response()
}
