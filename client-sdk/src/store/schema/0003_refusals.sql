-- `attempts` counts whatever kept a task from being done. Two kinds are counted apart, because each ends it at some point.

-- How often the relay refused it for a reason that should pass.
ALTER TABLE outbox ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;

-- How often the relay, since the task was last started over, did not know of commits that were applied here.
ALTER TABLE outbox ADD COLUMN setbacks INTEGER NOT NULL DEFAULT 0;

-- When the last-resort key package was last replaced because it had been handed out; 0 if never.
ALTER TABLE profile ADD COLUMN last_resort_renewed_ms INTEGER NOT NULL DEFAULT 0;
