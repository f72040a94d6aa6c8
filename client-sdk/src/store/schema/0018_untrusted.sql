-- A message may also have failed since what the relay says of its receiver does not verify.
ALTER TABLE messages ADD COLUMN why TEXT CHECK (why IN ('not_member', 'group_stuck', 'untrusted', 'refused'));
UPDATE messages SET why = failure WHERE failure IS NOT NULL;
ALTER TABLE messages DROP COLUMN failure;
ALTER TABLE messages RENAME COLUMN why TO failure;
