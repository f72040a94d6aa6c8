-- The devices that any list of their account has named which was seen here.
CREATE TABLE once_listed (
    account         BLOB    NOT NULL,
    device          BLOB    NOT NULL,
    PRIMARY KEY (account, device)
) STRICT, WITHOUT ROWID;

-- What this account's devices are called. The relay does not know it.
CREATE TABLE device_names (
    device          BLOB    NOT NULL PRIMARY KEY,
    name            TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
