-- What the user has said of accounts: that they are known, or that nothing of theirs is to be seen. Nothing said: strangers.
CREATE TABLE standings (
    account         BLOB    NOT NULL PRIMARY KEY,
    blocked         INTEGER NOT NULL -- 1: blocked; 0: known
) STRICT, WITHOUT ROWID;
INSERT INTO standings (account, blocked) SELECT DISTINCT account, 0 FROM members;

-- The stranger who has added this device, until the user says whether that is wanted. Until then nothing is done in the group.
ALTER TABLE groups ADD COLUMN requested_by BLOB;
