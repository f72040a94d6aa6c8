//! Ephemeral content, such as typing and presence: passed on to who is there, and never stored.
//!
//! Invariant: nobody learns whether it arrived. It reaches a device only through its open stream, after everything of its
//! queue that the node knew of when it heard this.

use axum::extract::State;
use http::StatusCode;
use undertone_wire::{DirectCiphertext, DirectEphemeralRequest, GroupEphemeralRequest, GroupId, Problem, path};

use crate::{
    auth::Caller,
    encoding::{Body, Named, malformed},
    error::Error,
    groups, limits,
    messages::check_standing,
    node::Node,
    nodes::{self, Said, ToGroup},
    store::groups as stored_groups,
};

/// Passes ephemeral content on to the group's member devices. The sender must stand where the group stands.
#[utoipa::path(post, path = path::GROUP_EPHEMERAL, tag = "groups", params(("group" = String, Path)),
    request_body = GroupEphemeralRequest, responses((status = 202), (status = "default", body = Problem)))]
pub(crate) async fn to_group(
    State(node): State<Node>,
    caller: Caller,
    Named(group_id): Named<GroupId>,
    Body(request): Body<GroupEphemeralRequest>,
) -> Result<StatusCode, Error> {
    let GroupEphemeralRequest { at, epoch, ciphertext } = request;
    limits::bytes("ephemeral_bytes_max", node.limits.ephemeral_bytes_max, ciphertext.len())?;
    let checked = async {
        let mut conn = node.db.read().await?;
        let position = stored_groups::position(&mut conn, &group_id).await?;
        let standing = stored_groups::standing(&mut conn, &group_id, &caller.device).await?;
        check_standing(position, standing.as_ref(), at, epoch)
    };
    if let Err(error) = checked.await {
        return Err(groups::with_unacked(&node, &caller, &group_id, error).await);
    }
    nodes::say(&node, vec![Said::Group(ToGroup { group_id, at, epoch, ciphertext })]).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Passes ephemeral content on to single devices.
#[utoipa::path(post, path = path::EPHEMERAL, tag = "messages", request_body = DirectEphemeralRequest,
    responses((status = 202), (status = "default", body = Problem)))]
pub(crate) async fn direct(
    State(node): State<Node>,
    _: Caller,
    Body(request): Body<DirectEphemeralRequest>,
) -> Result<StatusCode, Error> {
    let max = node.limits.direct_accounts_max.saturating_mul(node.limits.account_devices_max);
    if request.ciphertexts.len() as u64 > max || !request.ciphertexts.is_sorted_by(|a, b| a.device_id < b.device_id) {
        return Err(malformed("devices come once each, in ascending order, no more than a direct message has"));
    }
    for each in &request.ciphertexts {
        limits::bytes("ephemeral_bytes_max", node.limits.ephemeral_bytes_max, each.ciphertext.len())?;
    }
    let said = |each: DirectCiphertext| Said::Device { device_id: each.device_id, ciphertext: each.ciphertext };
    nodes::say(&node, request.ciphertexts.into_iter().map(said).collect()).await?;
    Ok(StatusCode::ACCEPTED)
}
