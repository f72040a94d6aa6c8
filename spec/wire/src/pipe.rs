//! Pipes: by which a device that has no account yet, and one that has, pass each other what links the new one (protocol,
//! section 2). The relay sees neither what is in them nor, on the new device's side, whose they are.

use serde::{Deserialize, Serialize};

use crate::Bytes;

/// A part of a pipe, in `POST` and `GET` of `/v1/pipes/{pipe}/requests` and `/v1/pipes/{pipe}/answers`.
///
/// Requests are the new device's, the first of which begins the pipe; answers are those of a device with a session. Both are
/// numbered from 0. A part is written once; the same again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PipePart {
    /// Opaque.
    pub content: Bytes,
}

/// So many requests, and so many answers, a pipe has at most.
pub const PIPE_PARTS_MAX: u64 = 2;
