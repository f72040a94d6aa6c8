-- Which group goes on for those who were members after the commit at_commit and before the next.
CREATE TABLE successors (
    group_id       BYTEA NOT NULL REFERENCES groups (group_id),
    at_commit      BIGINT NOT NULL,
    successor      BYTEA NOT NULL,
    posted_hour_ms BIGINT NOT NULL,
    PRIMARY KEY (group_id, at_commit)
);
CREATE INDEX successors_by_hour ON successors (posted_hour_ms);
