-- The key that each leaf signs with: who has the name of a listed device and another key is not that device. NULL for those
-- that stood there before, until the group's next commit.
ALTER TABLE members ADD COLUMN mls_key BLOB CHECK (length(mls_key) = 32);
