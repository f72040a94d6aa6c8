-- Which copy of the device's store takes from the queue: what it said when it was last opened.
ALTER TABLE cursors ADD COLUMN instance BLOB;
