-- What a message costs does not grow with the history, nor with what else waits to be sent.

-- This account's own messages are found by their id alone.
CREATE INDEX messages_by_content ON messages (content_id);

-- The first of a group's rows is found without looking at the others.
DROP INDEX outbox_by_group;
CREATE INDEX outbox_by_place ON outbox (group_id, state, first DESC, id);

-- So is one that sends no message.
CREATE INDEX outbox_by_task ON outbox (group_id, task) WHERE content_id IS NULL;

-- And so are those that wait for an entry of the queue.
CREATE INDEX outbox_by_wait ON outbox (wait_for_seq) WHERE wait_for_seq > 0;
