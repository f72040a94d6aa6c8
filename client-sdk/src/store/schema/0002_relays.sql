-- The addresses of the relay, in the order in which they are tried.
CREATE TABLE relay_urls (
    position        INTEGER PRIMARY KEY,
    url             TEXT    NOT NULL UNIQUE,
    strange         INTEGER NOT NULL DEFAULT 0 -- 1: it was another relay's, and the app was told
) STRICT;

INSERT INTO relay_urls (position, url) SELECT 0, relay_url FROM profile;
ALTER TABLE profile DROP COLUMN relay_url;

-- 1: the relay has handed out the last-resort key package, and no new one has been made since.
ALTER TABLE profile ADD COLUMN last_resort_used INTEGER NOT NULL DEFAULT 0;
