-- Messages stand in conversations: in groups, and in what two accounts write to each other directly. What both have in common
-- moves out of `groups`; whatever refers to a group by its id refers to the conversation from now on.
DROP INDEX groups_by_live;
ALTER TABLE groups RENAME TO conversations;

CREATE TABLE groups (
    id              BLOB    NOT NULL PRIMARY KEY REFERENCES conversations (id),
    live            BLOB    NOT NULL, -- under which id it goes on at the relay and in MLS: at first its own
    name            TEXT    NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN ('active', 'left', 'removed', 'stuck')),
    commit_seq      INTEGER NOT NULL, -- number of the last commit that was applied
    rejoin_key      BLOB    NOT NULL,
    update_at_ms    INTEGER,          -- when this device's keys are to be replaced, NULL until that is known
    update_unless_ms INTEGER          -- the same, unless somebody commits before
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX groups_by_live ON groups (live);
INSERT INTO groups (id, live, name, state, commit_seq, rejoin_key, update_at_ms, update_unless_ms)
    SELECT id, live, name, state, commit_seq, rejoin_key, update_at_ms, update_unless_ms FROM conversations;

ALTER TABLE conversations DROP COLUMN live;
ALTER TABLE conversations DROP COLUMN name;
ALTER TABLE conversations DROP COLUMN state;
ALTER TABLE conversations DROP COLUMN commit_seq;
ALTER TABLE conversations DROP COLUMN rejoin_key;
ALTER TABLE conversations DROP COLUMN update_at_ms;
ALTER TABLE conversations DROP COLUMN update_unless_ms;

ALTER TABLE messages RENAME COLUMN group_id TO conversation;
ALTER TABLE outbox RENAME COLUMN group_id TO conversation;
ALTER TABLE receipts RENAME COLUMN group_id TO conversation;
