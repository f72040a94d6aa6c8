-- Under which id a conversation goes on at the relay and in MLS: at first its own, then that of the group's successor. An app
-- knows it by `id` throughout.
ALTER TABLE groups ADD COLUMN live BLOB NOT NULL DEFAULT x'';
UPDATE groups SET live = id;
CREATE UNIQUE INDEX groups_by_live ON groups (live);

-- When this device's keys in the group are to be replaced by new ones: in any case, NULL until that is known; and unless
-- somebody commits before.
ALTER TABLE groups ADD COLUMN update_at_ms INTEGER;
ALTER TABLE groups ADD COLUMN update_unless_ms INTEGER;

-- As before, with more steps, and with what is known of why the group cannot go on.
CREATE TABLE recoveries_now (
    group_id        BLOB    NOT NULL PRIMARY KEY REFERENCES groups (id),
    step            TEXT    NOT NULL
        CHECK (step IN ('none', 'rejoin', 'accepted', 'ask', 'wait', 'succeed', 'found', 'follow')),
    not_before_ms   INTEGER NOT NULL,
    attempts        INTEGER NOT NULL, -- how often this step did not work
    began_ms        INTEGER NOT NULL, -- from when on it was last to be done
    request         BLOB,             -- the exact body that is posted until the relay says yes or no
    wire_hash       BLOB,             -- SHA-256 of the commit in it, by which its own row is known
    aside           BLOB,             -- the group as it is once that commit, or this device as the founder, is accepted
    refused         INTEGER NOT NULL DEFAULT 0, -- 1: a commit came that cannot be applied; 0: something is missing
    removed         INTEGER NOT NULL DEFAULT 0, -- 1: by its own word, such a commit has removed this device
    asked_ms        INTEGER,          -- when the members were first asked; NULL if they were not
    others          BLOB,             -- accounts that have asked the members meanwhile, one after the other
    successor       BLOB,             -- the group that goes on from where this device stands, by the relay's word
    successor_at    INTEGER,          -- from which commit
    culprit         BLOB,             -- the account that posted the newest commit, by the relay's word
    unfit           BLOB              -- a successor that is none
) STRICT, WITHOUT ROWID;
INSERT INTO recoveries_now (group_id, step, not_before_ms, attempts, began_ms, request, wire_hash, aside)
    SELECT group_id, step, not_before_ms, attempts, began_ms, request, wire_hash, aside FROM recoveries;
DROP TABLE recoveries;
ALTER TABLE recoveries_now RENAME TO recoveries;

-- 1: before all others of its group.
ALTER TABLE outbox ADD COLUMN first INTEGER NOT NULL DEFAULT 0;

-- Entries of groups of which it is not decided yet whether this device goes on there.
CREATE TABLE held (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    live            BLOB    NOT NULL,
    envelope        BLOB    NOT NULL -- in CBOR
) STRICT;
CREATE INDEX held_by_group ON held (live, id);
