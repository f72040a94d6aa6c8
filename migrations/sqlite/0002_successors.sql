-- Which group goes on for those who were members after the commit at_commit and before the next.
CREATE TABLE successors (
    group_id       BLOB NOT NULL REFERENCES groups (group_id),
    at_commit      INTEGER NOT NULL,
    successor      BLOB NOT NULL,
    posted_hour_ms INTEGER NOT NULL,
    PRIMARY KEY (group_id, at_commit)
) STRICT, WITHOUT ROWID;
CREATE INDEX successors_by_hour ON successors (posted_hour_ms);
