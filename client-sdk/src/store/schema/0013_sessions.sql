-- Olm sessions with other devices.
CREATE TABLE sessions (
    account         BLOB    NOT NULL,
    device          BLOB    NOT NULL,
    id              TEXT    NOT NULL, -- the same at both ends
    olm_key         BLOB    NOT NULL, -- the identity key at the other end
    generation      INTEGER NOT NULL, -- of two, the one with the higher is used, then the one with the lower id
    read_only       INTEGER NOT NULL, -- 1: the store was set back, so that nothing more is encrypted with it
    pickle          BLOB    NOT NULL,
    PRIMARY KEY (account, device, id)
) STRICT, WITHOUT ROWID;

-- Sessions that began with a fallback prekey, as long as that lives: the same message does not begin one again.
CREATE TABLE begun_by_fallback (
    session         TEXT    NOT NULL PRIMARY KEY,
    prekey          BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

-- The sealing keys of other devices, as they were when they were last asked for.
CREATE TABLE seals (
    account         BLOB    NOT NULL,
    device          BLOB    NOT NULL,
    sealing_key     BLOB    NOT NULL, -- in CBOR
    not_after_ms    INTEGER NOT NULL,
    fetched_ms      INTEGER NOT NULL,
    PRIMARY KEY (account, device)
) STRICT, WITHOUT ROWID;

-- Sessions that begin from now on have at least this generation: those of a store that was set back come after what was there.
ALTER TABLE profile ADD COLUMN generation_floor INTEGER NOT NULL DEFAULT 0;
