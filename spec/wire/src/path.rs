//! Paths of the HTTP API. `{..}` stands for an id; [`fill`] puts one in.

/// `GET`: the relay's description.
pub const RELAY: &str = "/v1/relay";
/// `POST`: register.
pub const ACCOUNTS: &str = "/v1/accounts";
/// `GET`: an account by its id.
pub const ACCOUNT: &str = "/v1/accounts/{account}";
/// `POST`: an account by its recovery key, and its next device list.
pub const RECOVERY: &str = "/v1/accounts/{account}/recovery";
/// `GET`: an account by its username.
pub const USERNAME: &str = "/v1/usernames/{username}";
/// `DELETE`: the calling device's account.
pub const OWN_ACCOUNT: &str = "/v1/account";
/// `PUT`: the calling device's account's next device list.
pub const OWN_DEVICES: &str = "/v1/account/devices";
/// `POST`: a nonce to log in with.
pub const CHALLENGE: &str = "/v1/auth/challenge";
/// `POST`: log in.
pub const LOGIN: &str = "/v1/auth/login";
/// `POST`: end the session.
pub const LOGOUT: &str = "/v1/auth/logout";
/// `GET`: counts of the calling device's keys.
pub const KEYS: &str = "/v1/keys";
/// `POST`: publish key packages.
pub const KEY_PACKAGES: &str = "/v1/keys/key-packages";
/// `POST`: claim key packages.
pub const CLAIM: &str = "/v1/keys/claim";
/// `POST`: make the relay's keys those that the calling device still holds.
pub const RECONCILE: &str = "/v1/keys/reconcile";
/// `POST`: publish prekeys and the sealing key.
pub const PREKEYS: &str = "/v1/keys/prekeys";
/// `POST`: claim prekeys.
pub const CLAIM_PREKEYS: &str = "/v1/keys/prekeys/claim";
/// `GET`: the sealing keys of an account's devices.
pub const SEALING_KEYS: &str = "/v1/accounts/{account}/sealing-keys";
/// `POST`: a direct message.
pub const MESSAGES: &str = "/v1/messages";
/// `POST`: ephemeral content for single devices.
pub const EPHEMERAL: &str = "/v1/ephemeral";
/// `GET`: own groups; `POST`: create one.
pub const GROUPS: &str = "/v1/groups";
/// `GET`: a group.
pub const GROUP: &str = "/v1/groups/{group}";
/// `GET`: a group's member devices.
pub const GROUP_MEMBERS: &str = "/v1/groups/{group}/members";
/// `GET`: missed commits; `POST`: a commit.
pub const GROUP_COMMITS: &str = "/v1/groups/{group}/commits";
/// `POST`: an application message.
pub const GROUP_MESSAGES: &str = "/v1/groups/{group}/messages";
/// `POST`: leave a group.
pub const GROUP_LEAVE: &str = "/v1/groups/{group}/leave";
/// `POST`: ask a group's members to be let in again.
pub const GROUP_REJOIN: &str = "/v1/groups/{group}/rejoin";
/// `GET`: which group goes on for the members of an epoch; `POST`: found one.
pub const GROUP_SUCCESSOR: &str = "/v1/groups/{group}/successor";
/// `POST`: ephemeral content for a group's member devices.
pub const GROUP_EPHEMERAL: &str = "/v1/groups/{group}/ephemeral";
/// `GET`: fetch from the calling device's queue.
pub const QUEUE: &str = "/v1/queue";
/// `POST`: ack.
pub const ACK: &str = "/v1/queue/ack";
/// `POST`: which copy of the calling device's store takes from its queue.
pub const INSTANCE: &str = "/v1/queue/instance";
/// `GET`, as a WebSocket: the stream.
pub const STREAM: &str = "/v1/stream";
/// `GET`: what a new device has put into a pipe; `POST`: put it there. `?number=`
pub const PIPE_REQUESTS: &str = "/v1/pipes/{pipe}/requests";
/// `GET`: what a listed device has answered; `POST`: answer. `?number=`
pub const PIPE_ANSWERS: &str = "/v1/pipes/{pipe}/answers";
/// `GET`: whether the relay is alive.
pub const HEALTH: &str = "/healthz";
/// `GET`: whether the relay can take requests: it reaches its store and is not stopping.
pub const READY: &str = "/readyz";

/// A path with its `{..}` replaced by `id`, whose text needs no escaping.
pub fn fill(path: &str, id: impl std::fmt::Display) -> String {
    match (path.split_once('{'), path.split_once('}')) {
        (Some((before, _)), Some((_, after))) => format!("{before}{id}{after}"),
        _ => path.to_owned(),
    }
}
