-- The cipher suite of each group.
ALTER TABLE groups ADD COLUMN suite INTEGER NOT NULL DEFAULT 3;

-- Of each suite, whether the last-resort key package was handed out and is to be replaced, and when one last was for that.
CREATE TABLE last_resorts (
    suite           INTEGER NOT NULL PRIMARY KEY,
    used            INTEGER NOT NULL DEFAULT 0,
    renewed_ms      INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO last_resorts (suite, used, renewed_ms) SELECT 3, last_resort_used, last_resort_renewed_ms FROM profile;
ALTER TABLE profile DROP COLUMN last_resort_used;
ALTER TABLE profile DROP COLUMN last_resort_renewed_ms;
