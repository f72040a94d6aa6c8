-- The local database of one device. It is encrypted as a whole (SQLCipher); openmls keeps its own tables beside these.

-- Who this device is. One row.
CREATE TABLE profile (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    relay_url       TEXT    NOT NULL,
    relay_id        BLOB    NOT NULL,
    identity        BLOB    NOT NULL, -- secret keys, device list and credential, in CBOR
    username        TEXT,
    registered      INTEGER NOT NULL, -- 0 until the relay has said yes
    token           BLOB,             -- bearer token of the present session
    cursor          INTEGER NOT NULL  -- number of the last queue entry that was applied
) STRICT;

-- Accounts this device has seen, with the newest device list of each that verified.
CREATE TABLE contacts (
    account         BLOB    NOT NULL PRIMARY KEY,
    username        TEXT,
    list_version    INTEGER NOT NULL,
    list            BLOB    NOT NULL, -- signed device list, in CBOR
    claimed_version INTEGER NOT NULL DEFAULT 0 -- the highest that one of the account's devices has named
) STRICT, WITHOUT ROWID;

CREATE TABLE groups (
    id              BLOB    NOT NULL PRIMARY KEY,
    name            TEXT    NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN ('active', 'left', 'removed', 'stuck')),
    commit_seq      INTEGER NOT NULL, -- number of the last commit that was applied
    rejoin_key      BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

-- The leaves of each group's tree as of its last applied commit; they stay when the group is left.
CREATE TABLE members (
    group_id        BLOB    NOT NULL REFERENCES groups (id),
    account         BLOB    NOT NULL,
    device          BLOB    NOT NULL,
    gone            INTEGER NOT NULL DEFAULT 0, -- 1: left or deleted, its leaf still to be removed by a commit
    looks           INTEGER NOT NULL DEFAULT 1, -- how many reasons there are to look at the account's device list
    PRIMARY KEY (group_id, account, device)
) STRICT, WITHOUT ROWID;

CREATE INDEX members_to_look_at ON members (account, looks) WHERE looks > 0;

-- The history. `position` is the order of the relay; a message not yet confirmed stands where it was written.
CREATE TABLE messages (
    position        INTEGER PRIMARY KEY,
    group_id        BLOB    NOT NULL REFERENCES groups (id),
    content_id      BLOB    NOT NULL,
    sender          BLOB    NOT NULL, -- account
    sent_at_ms      INTEGER NOT NULL,
    status          TEXT    NOT NULL CHECK (status IN ('queued', 'sent', 'failed', 'received')),
    content         BLOB    NOT NULL, -- in CBOR, as it came, with whatever this version does not know
    UNIQUE (group_id, sender, content_id)
) STRICT;
CREATE INDEX messages_by_group ON messages (group_id, position);

-- What is to be done at the relay, oldest first within each group.
CREATE TABLE outbox (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    group_id        BLOB    NOT NULL REFERENCES groups (id),
    task            BLOB    NOT NULL, -- what, in CBOR
    content_id      BLOB,             -- of a message
    state           TEXT    NOT NULL CHECK (state IN ('waiting', 'posted', 'accepted')),
    blocks          INTEGER NOT NULL, -- 1: later tasks of the group wait until it is done, not only accepted
    not_before_ms   INTEGER NOT NULL DEFAULT 0,
    wait_for_seq    INTEGER NOT NULL DEFAULT 0, -- try again once this queue entry was applied
    attempts        INTEGER NOT NULL DEFAULT 0, -- refusals and failures so far, lost races left out
    message_id      BLOB,             -- at the relay
    request         BLOB,             -- the exact body that is posted until the relay says yes or no
    wire_hash       BLOB              -- SHA-256 of the ciphertext in it, by which its own row is known
) STRICT;
CREATE INDEX outbox_by_group ON outbox (group_id, state, id);
CREATE INDEX outbox_by_hash ON outbox (wire_hash) WHERE wire_hash IS NOT NULL;

-- Key packages made but not yet known to have reached the relay: the exact body that is posted until it says yes.
CREATE TABLE publications (
    message_id      BLOB    NOT NULL PRIMARY KEY,
    request         BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

-- What the app has not taken yet.
CREATE TABLE events (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    event           BLOB    NOT NULL
) STRICT;
