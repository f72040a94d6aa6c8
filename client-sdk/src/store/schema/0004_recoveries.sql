-- How often something was missed since the relay was asked where the groups stand.
ALTER TABLE profile ADD COLUMN look_at_groups INTEGER NOT NULL DEFAULT 0;

-- Groups whose state here is of no use: what is done to be in them again. A row stays when that is done, so that it is not
-- done all the time.
CREATE TABLE recoveries (
    group_id        BLOB    NOT NULL PRIMARY KEY REFERENCES groups (id),
    step            TEXT    NOT NULL CHECK (step IN ('none', 'rejoin', 'accepted', 'ask')),
    not_before_ms   INTEGER NOT NULL,
    attempts        INTEGER NOT NULL, -- how often this step did not work
    began_ms        INTEGER NOT NULL, -- from when on it was last to be done
    request         BLOB,             -- the exact body that is posted until the relay says yes or no
    wire_hash       BLOB,             -- SHA-256 of the commit in it, by which its own row is known
    aside           BLOB              -- the group as it is once that commit is accepted
) STRICT, WITHOUT ROWID;
