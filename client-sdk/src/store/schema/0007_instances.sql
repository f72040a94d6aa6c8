-- Which life of the store this is: the id that the relay has, and the one that is being swapped for it.
ALTER TABLE profile ADD COLUMN instance BLOB;
ALTER TABLE profile ADD COLUMN next_instance BLOB;
-- 1: the store is a copy of an earlier state, and takes over.
ALTER TABLE profile ADD COLUMN takes_over INTEGER NOT NULL DEFAULT 0;
