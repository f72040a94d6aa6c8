-- What is needed to replace sessions that are broken, and to send again what was lost by that.

-- Which message this device has sent in which ciphertext, as long as the other device may still get that.
CREATE TABLE written (
    account         BLOB    NOT NULL, -- to whom
    device          BLOB    NOT NULL,
    hash            BLOB    NOT NULL, -- SHA-256 of the ciphertext
    conversation    BLOB    NOT NULL,
    content_id      BLOB    NOT NULL,
    written_ms      INTEGER NOT NULL,
    PRIMARY KEY (account, device, hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX written_by_time ON written (written_ms);

-- The devices whose sessions were replaced: when that was last done, and for how many messages they were asked again since.
CREATE TABLE healings (
    account         BLOB    NOT NULL,
    device          BLOB    NOT NULL,
    began_ms        INTEGER NOT NULL,
    asked           INTEGER NOT NULL,
    replaced        INTEGER NOT NULL, -- 1: they were; 0: they are to be, once the device has a prekey for that
    PRIMARY KEY (account, device)
) STRICT, WITHOUT ROWID;
