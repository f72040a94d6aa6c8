-- The identity key that the user has compared with its owner's, and whether another one has taken the place of the one before
-- without the user having said anything to it.
ALTER TABLE contacts ADD COLUMN verified BLOB;
ALTER TABLE contacts ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
-- Which device has named the version in `claimed_version`. One that is listed no more has no say.
ALTER TABLE contacts ADD COLUMN claimed_by BLOB;
-- How many reasons there are to look at an account's device list, in whatever groups it is or is not.
ALTER TABLE contacts ADD COLUMN looks INTEGER NOT NULL DEFAULT 0;
CREATE INDEX contacts_to_look_at ON contacts (account) WHERE looks > 0;
CREATE INDEX contacts_changed ON contacts (account) WHERE changed = 1;

-- 1: what is to be sent to an account whose identity key has changed waits for the user.
ALTER TABLE profile ADD COLUMN hold_changed INTEGER NOT NULL DEFAULT 0;
