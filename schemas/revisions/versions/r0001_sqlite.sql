CREATE TABLE IF NOT EXISTS messages (
    conversation_id BLOB NOT NULL,
    id BLOB NOT NULL,
    sender_id BLOB NOT NULL,
    body TEXT NOT NULL,
    kind TEXT DEFAULT 'text' NOT NULL,
    thread_id BLOB,
    attachments BLOB DEFAULT (x'') NOT NULL,
    edited_at BIGINT,
    deleted BOOLEAN DEFAULT 0 NOT NULL,
    version BIGINT DEFAULT '0' NOT NULL,
    attributes TEXT DEFAULT '{}' NOT NULL,
    PRIMARY KEY (conversation_id, id)
);

CREATE TABLE IF NOT EXISTS users (
    id BLOB NOT NULL,
    username TEXT NOT NULL,
    email TEXT,
    display_name TEXT DEFAULT '' NOT NULL,
    status TEXT DEFAULT 'active' NOT NULL,
    updated_at BIGINT DEFAULT '0' NOT NULL,
    deleted BOOLEAN DEFAULT 0 NOT NULL,
    version BIGINT DEFAULT '0' NOT NULL,
    attributes TEXT DEFAULT '{}' NOT NULL,
    PRIMARY KEY (id)
);

CREATE TABLE IF NOT EXISTS claims (
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    routing BLOB NOT NULL,
    owner BLOB NOT NULL,
    version BIGINT DEFAULT '0' NOT NULL,
    deleted BOOLEAN DEFAULT 0 NOT NULL,
    PRIMARY KEY (kind, value)
);

CREATE TABLE IF NOT EXISTS datalayer_meta (
    domain TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    deployment TEXT NOT NULL,
    role TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    PRIMARY KEY (domain, attempt)
);

CREATE TABLE IF NOT EXISTS datalayer_token (
    domain TEXT NOT NULL,
    migration TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    value BIGINT NOT NULL,
    PRIMARY KEY (domain)
);

CREATE TABLE IF NOT EXISTS datalayer_guard (
    domain TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    place INTEGER NOT NULL,
    installed BOOLEAN NOT NULL,
    fence TEXT NOT NULL,
    flip INTEGER NOT NULL,
    lapse_at BIGINT NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (domain, attempt)
);

CREATE TABLE IF NOT EXISTS datalayer_pass (
    domain TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    PRIMARY KEY (domain, attempt)
);

CREATE TABLE IF NOT EXISTS datalayer_replaced (
    "key" BLOB
);
