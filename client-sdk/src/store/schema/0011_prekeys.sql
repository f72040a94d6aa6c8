-- What others need to write to this device directly.

-- The device's Olm account: the identity key of its sessions, and the private halves of its prekeys.
CREATE TABLE olm_account (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    pickle          BLOB    NOT NULL
) STRICT;

-- The prekeys whose private halves are there.
CREATE TABLE prekeys (
    hash_ref        BLOB    NOT NULL PRIMARY KEY, -- by which the relay knows it
    key             BLOB    NOT NULL UNIQUE,      -- the public half
    fallback        INTEGER NOT NULL,             -- 1: used again and again, until the one after the next
    not_after_ms    INTEGER NOT NULL,
    made_ms         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The private halves of this device's sealing keys: the newest, and those before it as long as something sealed to them may come.
CREATE TABLE sealing_keys (
    hash_ref        BLOB    NOT NULL PRIMARY KEY, -- by which the relay knows it
    secret          BLOB    NOT NULL,
    made_ms         INTEGER NOT NULL,
    replaced_ms     INTEGER                       -- NULL: the newest
) STRICT, WITHOUT ROWID;

-- What a batch is: 0: key packages, 1: prekeys and the sealing key.
ALTER TABLE publications ADD COLUMN kind INTEGER NOT NULL DEFAULT 0;
