-- What a device that is to be linked and one that links it pass each other. The first request (is_answer 0, number 0) begins
-- a pipe; all parts of a pipe end when it does.
CREATE TABLE pipe_parts (
    pipe_hash  BYTEA NOT NULL,
    is_answer  BIGINT NOT NULL CHECK (is_answer IN (0, 1)),
    number     BIGINT NOT NULL,
    content    BYTEA NOT NULL,
    expires_ms BIGINT NOT NULL,
    PRIMARY KEY (pipe_hash, is_answer, number)
);
CREATE INDEX pipe_parts_by_expiry ON pipe_parts (expires_ms);
