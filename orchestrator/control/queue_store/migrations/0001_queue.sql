-- Who this database belongs to. Tokens and clients tell servers apart by the id.
CREATE TABLE server_identity (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    id TEXT NOT NULL,
    created_s REAL NOT NULL
) STRICT;

-- The right to act on this database: see domain/lease.py.
CREATE TABLE server_lease (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    holder TEXT NOT NULL,
    token INTEGER NOT NULL,
    renewals INTEGER NOT NULL,
    ttl_s REAL NOT NULL,
    released INTEGER NOT NULL,
    process TEXT NOT NULL
) STRICT;

-- Shares of the cluster. `quota` and `most` are JSON objects: amounts by Ray's resource names.
CREATE TABLE queues (
    name TEXT PRIMARY KEY,
    weight REAL NOT NULL CHECK (weight > 0),
    quota TEXT NOT NULL,
    most TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Resolved specs by their sha256: runs with equal specs share one.
CREATE TABLE specs (
    digest TEXT PRIMARY KEY,
    text TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of submission
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    group_name TEXT,
    queue TEXT NOT NULL,
    team TEXT NOT NULL,
    user TEXT NOT NULL,
    priority INTEGER NOT NULL,
    spec_digest TEXT NOT NULL REFERENCES specs (digest),
    directory TEXT NOT NULL,
    bundle TEXT NOT NULL,                   -- JSON: amounts of one worker
    placement TEXT NOT NULL,
    shape TEXT NOT NULL,                    -- runs of one shape take as long for a step
    limit_s REAL,
    retries INTEGER NOT NULL,
    submitted_s REAL NOT NULL,
    -- What follows changes.
    state TEXT NOT NULL,
    reason TEXT,
    settled INTEGER NOT NULL,               -- 1: final, and nothing is left to be done for it
    changes INTEGER NOT NULL,               -- number of its newest event
    since_s REAL NOT NULL,
    started_s REAL,
    ended_s REAL,
    active_s REAL NOT NULL,
    min_workers INTEGER NOT NULL,
    max_workers INTEGER NOT NULL,
    grant_number INTEGER NOT NULL,
    granted TEXT NOT NULL,                  -- JSON: workers by node
    booked TEXT NOT NULL,                   -- JSON: workers by node
    launched INTEGER NOT NULL,              -- number of the grant that a driver was last started with
    granted_s REAL,                         -- when its grant last changed
    attempt INTEGER NOT NULL,
    failures INTEGER NOT NULL,              -- of the budget for retries
    retry_at_s REAL,
    lost_drivers INTEGER NOT NULL,          -- since the last progress
    step INTEGER NOT NULL,
    total_steps INTEGER,
    loss REAL,
    step_time_s REAL
) STRICT;
CREATE INDEX runs_unsettled ON runs (seq) WHERE settled = 0;
CREATE INDEX runs_by_state ON runs (state, seq);
CREATE INDEX runs_by_queue ON runs (queue, state, seq);
CREATE INDEX runs_by_user ON runs (user, state, seq);
CREATE INDEX runs_by_group ON runs (group_name, state, seq) WHERE group_name IS NOT NULL;
CREATE INDEX runs_by_name ON runs (name, seq);

-- What waiting runs are promised: when, and where. `places` is JSON: workers by node.
CREATE TABLE reservations (
    run TEXT PRIMARY KEY,
    start_s REAL NOT NULL,
    places TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Every change of a run with its cause. `number` orders all of them, `ordinal` those of one run.
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL REFERENCES runs (seq),
    ordinal INTEGER NOT NULL,
    time_s REAL NOT NULL,
    kind TEXT NOT NULL,
    source TEXT,
    target TEXT NOT NULL,
    message TEXT NOT NULL,
    data TEXT NOT NULL,
    UNIQUE (run, ordinal)
) STRICT;
CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events
BEGIN SELECT RAISE (ABORT, 'events are never changed'); END;
CREATE TRIGGER events_are_never_removed BEFORE DELETE ON events
BEGIN SELECT RAISE (ABORT, 'events are never removed'); END;

-- `run` comes after `needs`.
CREATE TABLE dependencies (
    run INTEGER NOT NULL REFERENCES runs (seq),
    needs INTEGER NOT NULL REFERENCES runs (seq),
    PRIMARY KEY (run, needs)
) STRICT, WITHOUT ROWID;
CREATE INDEX dependencies_by_need ON dependencies (needs);

-- `digest`: of the submission. `runs`: JSON list of ids.
CREATE TABLE idempotency_keys (
    caller TEXT NOT NULL,
    key TEXT NOT NULL,
    digest TEXT NOT NULL,
    runs TEXT NOT NULL,
    created_s REAL NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_s);

-- How long a step took in runs of one shape: seconds times workers.
CREATE TABLE shapes (
    shape TEXT PRIMARY KEY,
    worker_seconds REAL NOT NULL,
    updated_s REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    team TEXT NOT NULL,
    user TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('viewer', 'submitter', 'admin')),
    sha256 TEXT NOT NULL UNIQUE,
    created_s REAL NOT NULL,
    expires_s REAL,
    last_used_s REAL,
    revoked INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE drains (
    node TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    deadline_s REAL,
    by_user TEXT NOT NULL,
    created_s REAL NOT NULL
) STRICT, WITHOUT ROWID;
