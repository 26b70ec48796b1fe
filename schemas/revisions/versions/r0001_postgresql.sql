CREATE TABLE IF NOT EXISTS messages (
    conversation_id UUID NOT NULL,
    id UUID NOT NULL,
    sender_id UUID NOT NULL,
    body TEXT NOT NULL,
    kind TEXT DEFAULT 'text' NOT NULL,
    thread_id UUID,
    attachments UUID[] DEFAULT '{}' NOT NULL,
    edited_at BIGINT,
    deleted BOOLEAN DEFAULT false NOT NULL,
    version BIGINT DEFAULT '0' NOT NULL,
    attributes JSON DEFAULT '{}' NOT NULL,
    PRIMARY KEY (conversation_id, id)
);

CREATE TABLE IF NOT EXISTS users (
    id UUID NOT NULL,
    username TEXT NOT NULL,
    email TEXT,
    display_name TEXT DEFAULT '' NOT NULL,
    status TEXT DEFAULT 'active' NOT NULL,
    updated_at BIGINT DEFAULT '0' NOT NULL,
    deleted BOOLEAN DEFAULT false NOT NULL,
    version BIGINT DEFAULT '0' NOT NULL,
    attributes JSON DEFAULT '{}' NOT NULL,
    PRIMARY KEY (id)
);

CREATE TABLE IF NOT EXISTS claims (
    kind TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    routing BYTEA NOT NULL,
    owner UUID NOT NULL,
    version BIGINT DEFAULT '0' NOT NULL,
    deleted BOOLEAN DEFAULT false NOT NULL,
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
