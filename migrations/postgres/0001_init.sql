-- The relay's store. Ids and byte strings are BYTEA, numbers and times (milliseconds) BIGINT, flags 0 or 1.
-- What each column is for, and why the relay may know it, stands in spec/what-the-relay-knows.md; a test compares.

-- One row. mark says which storage the relay was last seen on, mark_before which it had before that; with neither, the
-- rows are a copy, and the store begins a new incarnation.
CREATE TABLE relay (
    only_row    BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    relay_id    BYTEA NOT NULL,
    incarnation BYTEA NOT NULL,
    mark        TEXT COLLATE "C" NOT NULL,
    mark_before TEXT COLLATE "C" NOT NULL
);

CREATE TABLE accounts (
    account_id BYTEA NOT NULL PRIMARY KEY,
    username   TEXT COLLATE "C" UNIQUE
);

-- The newest list of each account, verbatim.
CREATE TABLE device_lists (
    account_id BYTEA NOT NULL PRIMARY KEY REFERENCES accounts (account_id),
    version    BIGINT NOT NULL,
    list       BYTEA NOT NULL,
    signature  BYTEA NOT NULL
);

CREATE TABLE devices (
    device_id        BYTEA NOT NULL PRIMARY KEY,
    account_id       BYTEA NOT NULL REFERENCES accounts (account_id),
    device_key       BYTEA NOT NULL,
    certificate_hash BYTEA NOT NULL
);
CREATE INDEX devices_by_account ON devices (account_id);

CREATE TABLE challenges (
    nonce      BYTEA NOT NULL PRIMARY KEY,
    expires_ms BIGINT NOT NULL
);
CREATE INDEX challenges_by_expiry ON challenges (expires_ms);

CREATE TABLE sessions (
    token_hash BYTEA NOT NULL PRIMARY KEY,
    device_id  BYTEA NOT NULL REFERENCES devices (device_id),
    expires_ms BIGINT NOT NULL
);
CREATE INDEX sessions_by_device ON sessions (device_id, expires_ms);
CREATE INDEX sessions_by_expiry ON sessions (expires_ms);

-- Who has the code may register, as often as uses are left.
CREATE TABLE invites (
    code_hash  BYTEA NOT NULL PRIMARY KEY,
    uses_left  BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);
CREATE INDEX invites_by_expiry ON invites (expires_ms);

-- A one-time key package that is spent keeps its row, without the key package, until it could not be published again.
CREATE TABLE key_packages (
    hash_ref     BYTEA NOT NULL PRIMARY KEY,
    device_id    BYTEA NOT NULL REFERENCES devices (device_id),
    suite        BIGINT NOT NULL,
    last_resort  BIGINT NOT NULL CHECK (last_resort IN (0, 1)),
    not_after_ms BIGINT NOT NULL,
    incarnation  BYTEA NOT NULL,
    key_package  BYTEA
);
CREATE INDEX key_packages_by_device ON key_packages (device_id);
CREATE INDEX key_packages_to_hand_out ON key_packages (device_id, suite, last_resort, not_after_ms)
    WHERE key_package IS NOT NULL;
CREATE INDEX key_packages_by_expiry ON key_packages (not_after_ms);

CREATE TABLE groups (
    group_id              BYTEA NOT NULL PRIMARY KEY,
    epoch                 BIGINT NOT NULL,
    commit_seq            BIGINT NOT NULL,
    members_version       BIGINT NOT NULL,
    newest_commit_account BYTEA,
    sealed_group_info     BYTEA NOT NULL
);
CREATE INDEX groups_by_newest_commit_account ON groups (newest_commit_account);

-- One row per stay of a device in a group. ended_commit is NULL while it lasts. awaits_removal is 1 when the stay ended
-- without a commit (left, unlinked, account gone) and the device's leaf still stands in the tree. Devices that are gone
-- keep such rows until a commit removes their leaf, so there is no reference to devices.
CREATE TABLE group_members (
    group_id       BYTEA NOT NULL REFERENCES groups (group_id),
    device_id      BYTEA NOT NULL,
    began_commit   BIGINT NOT NULL,
    ended_commit   BIGINT,
    ended_hour_ms  BIGINT,
    awaits_removal BIGINT NOT NULL DEFAULT 0 CHECK (awaits_removal IN (0, 1)),
    PRIMARY KEY (group_id, device_id, began_commit)
);
CREATE INDEX group_members_by_device ON group_members (device_id, ended_commit);
CREATE INDEX group_members_by_end ON group_members (ended_hour_ms) WHERE ended_hour_ms IS NOT NULL;

-- A payload, stored once. pointers counts the rows of queue and commits that point here; with the last one it goes.
-- group_id is NULL for what belongs to no group.
CREATE TABLE envelopes (
    envelope_id     BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind            BIGINT NOT NULL,
    group_id        BYTEA,
    number          BIGINT NOT NULL,
    expires_hour_ms BIGINT NOT NULL,
    pointers        BIGINT NOT NULL CHECK (pointers >= 0),
    payload         BYTEA NOT NULL
);
CREATE INDEX envelopes_by_expiry ON envelopes (expires_hour_ms);

CREATE TABLE commits (
    group_id       BYTEA NOT NULL REFERENCES groups (group_id),
    commit_seq     BIGINT NOT NULL,
    envelope_id    BIGINT NOT NULL,
    added          BYTEA NOT NULL,
    removed        BYTEA NOT NULL,
    posted_hour_ms BIGINT NOT NULL,
    PRIMARY KEY (group_id, commit_seq)
);
CREATE INDEX commits_by_hour ON commits (posted_hour_ms);

-- Apart from devices, so that acks never lock a device row. The last four say what waits in the queue: of groups, and of
-- direct messages.
CREATE TABLE cursors (
    device_id      BYTEA NOT NULL PRIMARY KEY REFERENCES devices (device_id),
    next_seq       BIGINT NOT NULL,
    acked_seq      BIGINT NOT NULL,
    stream         BIGINT NOT NULL,
    group_entries  BIGINT NOT NULL DEFAULT 0 CHECK (group_entries >= 0),
    group_bytes    BIGINT NOT NULL DEFAULT 0 CHECK (group_bytes >= 0),
    direct_entries BIGINT NOT NULL DEFAULT 0 CHECK (direct_entries >= 0),
    direct_bytes   BIGINT NOT NULL DEFAULT 0 CHECK (direct_bytes >= 0)
);

-- One thin row per device and envelope. share is whose part of the queue it takes: a group's (its id), that of direct
-- messages (nothing), or the relay's own (one byte). own_part is what only this device gets: a joiner's Welcome secrets.
CREATE TABLE queue (
    device_id   BYTEA NOT NULL,
    seq         BIGINT NOT NULL,
    envelope_id BIGINT NOT NULL,
    share       BYTEA NOT NULL,
    bytes       BIGINT NOT NULL,
    own_part    BYTEA,
    PRIMARY KEY (device_id, seq)
);
CREATE INDEX queue_by_envelope ON queue (envelope_id);
CREATE INDEX queue_by_share ON queue (device_id, share, seq);

-- What was accepted under a message id, for the idempotency window. Points at no envelope, device or account.
CREATE TABLE message_ids (
    id_hash         BYTEA NOT NULL PRIMARY KEY,
    body_hash       BYTEA NOT NULL,
    expires_hour_ms BIGINT NOT NULL,
    status          BIGINT NOT NULL,
    commit_seq      BIGINT
);
CREATE INDEX message_ids_by_expiry ON message_ids (expires_hour_ms);

-- What is deleted as soon as it is written must be vacuumed often, and rows that are updated in place need room for it.
ALTER TABLE cursors SET (fillfactor = 50);
ALTER TABLE envelopes SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE queue SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE message_ids SET (autovacuum_vacuum_scale_factor = 0.05);
