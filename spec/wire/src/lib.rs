//! The Undertone protocol as types: what a relay and a device say to each other, and the signed structures both check.
//!
//! The prose is in `spec/protocol.md`; where a rule can be a type or a function, it is here, once, for both sides. This
//! crate opens no socket, reads no clock and holds no state.
//!
//! Every body exists in two encodings made from the same types: JSON, so that `curl` works, and CBOR for the SDK.
//! Byte strings and identifiers are base64url and UUID text in JSON and raw bytes in CBOR; decoding takes both forms.
//!
//! ```
//! use undertone_wire::{AccountId, Encoding, PublicKey};
//!
//! // An account id commits to the account's first identity key.
//! let identity = PublicKey::from([7; 32]);
//! let account = AccountId::from_identity_key(&identity);
//! assert!(account.commits_to(&identity));
//!
//! let json = Encoding::Json.encode(&account);
//! assert_eq!(Encoding::Json.decode::<AccountId>(&json)?, account);
//! # Ok::<(), undertone_wire::DecodeError>(())
//! ```

mod account;
mod bytes;
mod connection;
mod credential;
mod device_list;
mod direct;
mod encoding;
mod ephemeral;
mod error;
mod frame;
mod group;
mod ids;
mod keys;
mod limits;
pub mod path;
mod pipe;
mod prekeys;
mod queue;
mod recovery;
mod signing;

pub use account::{
    Account, Challenge, LoginRequest, RecoveryRequest, RegisterRequest, Registration, Relay, Session,
    UpdateDeviceListRequest, Username, UsernameError,
};
pub use bytes::{Bytes, Hash, InviteCode, InviteCodeError, LengthError, Nonce, PublicKey, Signature, X25519Key};
pub use connection::{ConnectionString, ConnectionStringError};
pub use credential::{CredentialError, LeafCredential};
pub use device_list::{
    Certificate, DeviceEntry, DeviceList, DeviceListError, KeySet, ROTATIONS_MAX, RecoveryKey, Rotation,
    RotationAuthority, SignedCertificate, SignedDeviceList, chain_continues, verify_rotations,
};
pub use direct::{DirectCiphertext, DirectRecipient, SendDirectRequest};
pub use encoding::{DecodeError, Encoding};
pub use ephemeral::{DirectEphemeralRequest, GroupEphemeralRequest};
pub use error::{ErrorCode, LimitReached, Problem};
pub use frame::{ByeReason, ClientFrame, ServerFrame, subprotocol};
pub use group::{
    AuthenticatedData, CommitRequest, CommitResponse, CreateGroupRequest, Group, GroupCommit, GroupCommits, GroupList,
    GroupMember, GroupMembers, GroupPosition, GroupSummary, LeaveRequest, SendRequest, SendResponse, StaleGroup,
    UnackedCommit, WelcomeParts, WelcomeSecrets,
};
pub use ids::{AccountId, DeviceId, GroupId, IdError, Incarnation, InstanceId, MessageId, PipeId, RelayId};
pub use keys::{
    ClaimRequest, ClaimResponse, ClaimedKeyPackage, KeyCounts, KeyPackageCount, PublishRequest, ReconcileRequest,
    ReconcileResponse, suite,
};
pub use limits::Limits;
pub use pipe::{PIPE_PARTS_MAX, PipePart};
pub use prekeys::{
    ClaimPrekeysRequest, ClaimPrekeysResponse, ClaimedPrekey, DeviceSealingKey, Prekey, PrekeyCount,
    PublishPrekeysRequest, SealingKey, SealingKeys,
};
pub use queue::{AckRequest, Delivery, Envelope, FetchResponse, InstanceRequest, InstanceResponse, Span};
pub use recovery::{RejoinRequest, Succession, SuccessorRequest};
pub use signing::{Domain, public_key, sign, verify};

/// Name of the response header in which the relay tells its time, in milliseconds since the Unix epoch.
///
/// Devices learn their clock's offset from it and make message ids from the relay's time.
pub const TIME_HEADER: &str = "undertone-time";

/// Media type of a [`Problem`] (RFC 9457).
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";
