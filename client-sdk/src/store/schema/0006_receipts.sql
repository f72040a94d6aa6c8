-- Who has got and read this account's messages, and what others are told of theirs.

-- Why a message failed.
ALTER TABLE messages ADD COLUMN failure TEXT CHECK (failure IN ('not_member', 'group_stuck', 'refused'));
-- How many devices of others the message went to; NULL until it has its place among the others. How many of them have said
-- that they have it, and that it was read.
ALTER TABLE messages ADD COLUMN devices INTEGER;
ALTER TABLE messages ADD COLUMN delivered INTEGER NOT NULL DEFAULT 0;
ALTER TABLE messages ADD COLUMN read INTEGER NOT NULL DEFAULT 0;
CREATE INDEX messages_by_sender ON messages (group_id, sender, position);

-- Up to which position another device has said that it has this account's messages, and that they were read.
CREATE TABLE receipts (
    group_id        BLOB    NOT NULL REFERENCES groups (id),
    device          BLOB    NOT NULL,
    delivered       INTEGER NOT NULL,
    read            INTEGER NOT NULL,
    PRIMARY KEY (group_id, device)
) STRICT, WITHOUT ROWID;

-- Positions in the history: from where on nothing is missing; up to where the app has said that it was read; and for both,
-- up to where others are told, and up to where the receipt goes that is under way.
ALTER TABLE groups ADD COLUMN whole_from INTEGER NOT NULL DEFAULT 0;
ALTER TABLE groups ADD COLUMN read_to INTEGER NOT NULL DEFAULT 0;
ALTER TABLE groups ADD COLUMN told_delivered INTEGER NOT NULL DEFAULT 0;
ALTER TABLE groups ADD COLUMN told_read INTEGER NOT NULL DEFAULT 0;
ALTER TABLE groups ADD COLUMN telling_delivered INTEGER NOT NULL DEFAULT 0;
ALTER TABLE groups ADD COLUMN telling_read INTEGER NOT NULL DEFAULT 0;
