//! Pipes: by which a device that has no account yet, and one that has, pass each other what links the new one.
//!
//! Requests are a stranger's, the first of which begins the pipe; answers are those of whoever has a session. What is in
//! them is sealed for the other.
//!
//! Invariant: a part is written once, and its pipe lives for its time and no longer. Who reads or writes is not kept: a
//! session is asked for so that strangers do not fill the store, and forgotten.

use axum::{extract::State, response::Response};
use http::StatusCode;
use serde::Deserialize;
use undertone_wire::{ErrorCode, Hash, PIPE_PARTS_MAX, PipeId, PipePart, Problem, path};

use crate::{
    auth::Caller,
    encoding::{Accept, Body, Named, Parameters},
    error::Error,
    limits,
    node::Node,
    store::{
        Tx,
        pipes::{self, Part, Room},
    },
    strangers::Stranger,
};

/// Which of a pipe's requests or answers.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PartQuery {
    /// Its number, from 0; there are two.
    #[param(value_type = u64)]
    number: PartNumber,
}

/// The number of a part.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
struct PartNumber(u64);

impl TryFrom<u64> for PartNumber {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        match number < PIPE_PARTS_MAX {
            true => Ok(Self(number)),
            false => Err(format!("parts are numbered from 0, and there are {PIPE_PARTS_MAX}")),
        }
    }
}

/// What a new device has put into a pipe.
#[utoipa::path(get, path = path::PIPE_REQUESTS, tag = "pipes", security(()), params(("pipe" = String, Path), PartQuery),
    responses((status = 200, body = PipePart), (status = "default", body = Problem)))]
pub(crate) async fn request(
    State(node): State<Node>,
    _: Stranger,
    Named(pipe): Named<PipeId>,
    Parameters(query): Parameters<PartQuery>,
    accept: Accept,
) -> Result<Response, Error> {
    Ok(accept.answer(&part(&node, &request_of(pipe, query)).await?))
}

/// Puts something into a pipe for the device that links; request 0 begins the pipe. Repeating it changes nothing.
#[utoipa::path(post, path = path::PIPE_REQUESTS, tag = "pipes", security(()), params(("pipe" = String, Path), PartQuery),
    request_body = PipePart, responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn put_request(
    State(node): State<Node>,
    _: Stranger,
    Named(pipe): Named<PipeId>,
    Parameters(query): Parameters<PartQuery>,
    Body(PipePart { content }): Body<PipePart>,
) -> Result<StatusCode, Error> {
    limits::bytes("pipe_request_bytes_max", node.limits.pipe_request_bytes_max, content.len())?;
    let (writing, part) = (node.clone(), request_of(pipe, query));
    let written = node
        .db
        .write_for_stranger(move |tx| Box::pin(async move { put(tx, &writing, &part, content.as_slice()).await }));
    written.await.map(|()| StatusCode::NO_CONTENT)
}

/// What a listed device has answered in a pipe.
#[utoipa::path(get, path = path::PIPE_ANSWERS, tag = "pipes", security(()), params(("pipe" = String, Path), PartQuery),
    responses((status = 200, body = PipePart), (status = "default", body = Problem)))]
pub(crate) async fn answer(
    State(node): State<Node>,
    _: Stranger,
    Named(pipe): Named<PipeId>,
    Parameters(query): Parameters<PartQuery>,
    accept: Accept,
) -> Result<Response, Error> {
    Ok(accept.answer(&part(&node, &answer_of(pipe, query)).await?))
}

/// Answers in a pipe that somebody has begun. Repeating it changes nothing.
#[utoipa::path(post, path = path::PIPE_ANSWERS, tag = "pipes", params(("pipe" = String, Path), PartQuery),
    request_body = PipePart, responses((status = 204), (status = "default", body = Problem)))]
pub(crate) async fn put_answer(
    State(node): State<Node>,
    caller: Caller,
    Named(pipe): Named<PipeId>,
    Parameters(query): Parameters<PartQuery>,
    Body(PipePart { content }): Body<PipePart>,
) -> Result<StatusCode, Error> {
    limits::bytes("pipe_answer_bytes_max", node.limits.pipe_answer_bytes_max, content.len())?;
    let (writing, part) = (node.clone(), answer_of(pipe, query));
    let written = node.db.write(move |tx| {
        Box::pin(async move {
            caller.still_holds(tx, writing.now_ms()).await?;
            put(tx, &writing, &part, content.as_slice()).await
        })
    });
    written.await.map(|()| StatusCode::NO_CONTENT)
}

fn request_of(pipe: PipeId, query: PartQuery) -> Part {
    Part { pipe_hash: Hash::of(pipe.as_bytes()), is_answer: false, number: query.number.0 }
}

fn answer_of(pipe: PipeId, query: PartQuery) -> Part {
    Part { is_answer: true, ..request_of(pipe, query) }
}

async fn part(node: &Node, part: &Part) -> Result<PipePart, Error> {
    let content = pipes::content(&mut node.db.read().await?, part, node.now_ms()).await?;
    Ok(PipePart { content: content.ok_or_else(Error::not_found)?.into() })
}

/// Writes a part, unless it is there.
async fn put(tx: &mut Tx, node: &Node, part: &Part, content: &[u8]) -> Result<(), Error> {
    let (now_ms, limits) = (node.now_ms(), &node.limits);
    let room = Room { pipes_max: limits.pipes_max, bytes_max: limits.pipes_bytes_max };
    let written = if part.begins() {
        let expires_ms = now_ms.saturating_add(limits.pipe_ttl_s.saturating_mul(1_000));
        pipes::begin(tx, &part.pipe_hash, content, expires_ms, now_ms, room).await?
    } else {
        pipes::add(tx, part, content, now_ms, room).await?
    };
    if written {
        return Ok(());
    }
    match pipes::content(tx, part, now_ms).await? {
        Some(there) if there == content => Ok(()),
        Some(_) => Err(Error::refused(ErrorCode::PartTaken, "begin another pipe")),
        None if part.begins() || pipes::content(tx, &part.first(), now_ms).await?.is_some() => {
            Err(Error::refused(ErrorCode::Unavailable, "too many devices are being linked; try again in a few minutes"))
        }
        None => Err(Error::not_found()),
    }
}
