//! Every limit of the protocol with its default. A relay's own values are in `GET /v1/relay`.

use serde::{Deserialize, Serialize};

macro_rules! limits {
    ($($(#[doc = $doc:literal])* $name:ident = $default:expr;)+) => {
        /// What a relay allows. Sizes in bytes, times in seconds unless the name says otherwise.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(default)]
        pub struct Limits {
            $($(#[doc = $doc])* pub $name: u64,)+
        }

        impl Limits {
            /// The name of each limit and what it means, in words that are separated by one or more spaces.
            pub const DOCS: &[(&str, &str)] = &[$((stringify!($name), concat!($($doc),*)),)+];
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }
    };
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const DAY: u64 = 24 * 60 * 60;

limits! {
    /// An application message or a leave notice.
    envelope_bytes_max = 256 * KIB;
    /// A commit.
    commit_bytes_max = 2 * MIB;
    /// The shared part of a Welcome.
    welcome_bytes_max = 2 * MIB;
    /// One joiner's part of a Welcome.
    welcome_secrets_bytes_max = 4 * KIB;
    /// A sealed group info.
    group_info_bytes_max = 2 * MIB;
    /// The body of a request that posts a commit.
    commit_body_bytes_max = 8 * MIB;
    /// The body of a log-in.
    login_body_bytes_max = 16 * KIB;
    /// The body of any other request.
    body_bytes_max = MIB;
    /// A key package.
    key_package_bytes_max = 24 * KIB;
    /// A device list.
    device_list_bytes_max = 128 * KIB;
    /// A frame that a device sends on its stream.
    client_frame_bytes_max = 4 * KIB;
    /// Connections at a time; more wait to be taken.
    connections_max = 10_000;
    /// Requests to register, to log in, challenges included, and for pipes without a session, from one IPv4 address, or from
    /// one IPv6 network of 64 bits, in a minute. More are refused with `too_many_requests`. Each node counts for itself.
    stranger_requests_minute_max = 120;
    /// Requests that a session has open at a time. More are refused with `unavailable`.
    session_requests_max = 16;
    /// Member devices of a group.
    group_devices_max = 1_000;
    /// Groups of which a device is a member.
    device_groups_max = 1_000;
    /// Devices that one commit adds.
    commit_added_max = 100;
    /// Devices of an account.
    account_devices_max = 16;
    /// Changes of an account's identity key.
    rotations_max = 64;
    /// Sessions of a device; a new one ends the oldest.
    device_sessions_max = 8;
    /// One-time keys of a device, for each kind and suite.
    one_time_keys_max = 200;
    /// One-time keys left at which a device is told `keys_low`, for each kind and suite.
    keys_low_at = 20;
    /// Claims of one account's key packages or prekeys by another account in an hour before it gets last-resort ones. Each node
    /// counts for itself.
    claims_per_pair_hour_max = 20;
    /// Claims of one account's key packages or prekeys by all others together in an hour before they get last-resort ones. Each
    /// node counts for itself.
    claims_per_account_hour_max = 200;
    /// Requests of a device to be let into a group again, in an hour. More are refused with `too_many_requests`. Each node
    /// counts for itself.
    rejoins_per_group_hour_max = 4;
    /// Successors of a group that a device founds in an hour. More are refused with `too_many_requests`. Each node counts for
    /// itself.
    successors_per_group_hour_max = 1;
    /// Entries that may wait for a device, of direct messages and of groups together.
    queue_entries_max = 10_000;
    /// Bytes of ciphertext that may wait for a device, of direct messages and of groups together.
    queue_bytes_max = 64 * MIB;
    /// Entries of direct messages among those that wait for a device. The rest is for groups. A direct message beyond is
    /// refused with `queue_full`.
    queue_direct_entries_max = 2_500;
    /// Bytes of direct messages among those that wait for a device. The rest is for groups. A direct message beyond is
    /// refused with `queue_full`.
    queue_direct_bytes_max = 16 * MIB;
    /// Entries that each group may always have waiting for a device, even when the groups' part of its queue is full.
    /// Beyond, a new entry displaces the oldest of the same group, and the device is told what it missed.
    queue_group_entries_min = 100;
    /// Bytes that each group may always have waiting for a device, even when the groups' part of its queue is full.
    /// Beyond, a new entry displaces the oldest of the same group, and the device is told what it missed.
    queue_group_bytes_min = MIB;
    /// Accounts that one direct message is for.
    direct_accounts_max = 16;
    /// A ciphertext of ephemeral content.
    ephemeral_bytes_max = 4 * KIB;
    /// What a new device puts into a pipe at a time.
    pipe_request_bytes_max = 16 * KIB;
    /// What a listed device answers in a pipe at a time.
    pipe_answer_bytes_max = 512 * KIB;
    /// Pipes at a time. More are refused with `unavailable`.
    pipes_max = 5_000;
    /// Bytes in all pipes together. More are refused with `unavailable`.
    pipes_bytes_max = 256 * MIB;
    /// How long a pipe lives.
    pipe_ttl_s = 600;
    /// Entries in one answer to a fetch.
    fetch_entries_max = 256;
    /// Bytes of ciphertext in one answer to a fetch; one entry always fits.
    fetch_bytes_max = 4 * MIB;
    /// Longest `wait` of a fetch.
    fetch_wait_s_max = 55;
    /// How long the same message id gets the same answer.
    idempotency_window_s = DAY;
    /// How far ahead of the relay's time a message id's time may be.
    clock_ahead_s_max = 600;
    /// How long commits and what was not acked are kept.
    retention_s = 30 * DAY;
    /// How long a challenge lives.
    challenge_ttl_s = 60;
    /// How long a session lives.
    session_ttl_s = 30 * DAY;
    /// Longest lifetime of a key package, from `not_before` to `not_after`, and of a prekey or sealing key, from now on.
    key_package_lifetime_s_max = 92 * DAY;
    /// What must be left of the lifetime of a key package, prekey or sealing key when it is published or handed out.
    key_package_remaining_s_min = 37 * DAY;
}
