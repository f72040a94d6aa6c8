-- What a device that is to be linked and one that links it pass each other. The first request (is_answer 0, number 0) begins
-- a pipe; all parts of a pipe end when it does.
CREATE TABLE pipe_parts (
    pipe_hash  BLOB NOT NULL,
    is_answer  INTEGER NOT NULL CHECK (is_answer IN (0, 1)),
    number     INTEGER NOT NULL,
    content    BLOB NOT NULL,
    expires_ms INTEGER NOT NULL,
    PRIMARY KEY (pipe_hash, is_answer, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX pipe_parts_by_expiry ON pipe_parts (expires_ms);
