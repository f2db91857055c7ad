"""The store's file: its tables, and how it is opened so that what was committed survives a power cut."""

from __future__ import annotations

import sqlite3
import uuid
from pathlib import Path

VERSION = 1
BUSY_SECONDS = 30.0
"""How long one process waits for another that writes."""

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE items (
    id INTEGER PRIMARY KEY,                  -- the order in which they are served
    key TEXT NOT NULL UNIQUE,                -- Item.key: the same item is not added twice
    kind TEXT NOT NULL,
    batch TEXT NOT NULL,
    round INTEGER NOT NULL,
    candidates TEXT NOT NULL,                -- JSON
    shown TEXT NOT NULL,                     -- JSON: the order in which the first annotator sees them
    labels_wanted INTEGER NOT NULL,
    labels INTEGER NOT NULL DEFAULT 0        -- derived: standing judgements that are no skips
);
CREATE INDEX labels_of_a_batch ON items (batch, labels_wanted, labels);
CREATE INDEX open_items ON items (batch, id) WHERE labels < labels_wanted;

-- The log. Nothing in it is ever changed or removed, not even by a mistake of ours.
CREATE TABLE judgements (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    item INTEGER NOT NULL REFERENCES items (id),
    annotator TEXT NOT NULL,
    action TEXT NOT NULL,
    value TEXT NOT NULL,                     -- JSON
    seconds REAL NOT NULL,
    shown TEXT NOT NULL,                     -- JSON
    reason TEXT NOT NULL,
    time REAL NOT NULL
);
CREATE INDEX judgements_of_an_annotator ON judgements (annotator, seq);
CREATE TRIGGER judgements_stay BEFORE DELETE ON judgements
    BEGIN SELECT RAISE(ABORT, 'judgements are never removed'); END;
CREATE TRIGGER judgements_stay_as_they_are BEFORE UPDATE ON judgements
    BEGIN SELECT RAISE(ABORT, 'judgements are never changed'); END;

-- Derived from the log: the last judgement of each annotator about each item, undone ones left out.
CREATE TABLE standing (
    item INTEGER NOT NULL,
    annotator TEXT NOT NULL,
    seq INTEGER NOT NULL,
    action TEXT NOT NULL,
    PRIMARY KEY (item, annotator)
) WITHOUT ROWID;
CREATE INDEX standing_of_an_annotator ON standing (annotator, seq);

-- Who has which item before them, until when, and in which order they see it.
CREATE TABLE leases (
    item INTEGER NOT NULL,
    annotator TEXT NOT NULL,
    shown TEXT NOT NULL,
    expires REAL NOT NULL,
    PRIMARY KEY (item, annotator)
) WITHOUT ROWID;
CREATE INDEX leases_of_an_annotator ON leases (annotator, expires);
"""


def open_database(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time; a new file gets its tables.

    WAL with synchronous=FULL: a transaction is on the disk before its commit returns (https://sqlite.org/pragma.html).
    Foreign disks such as NFS do not keep the locks that this rests on.

    Raises:
        OSError: its folder does not exist, or it cannot be written to.
        ValueError: the file is no store, or one of another version.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"expected a folder for the store of judgements at {path.parent}, got none")
    if path.is_dir():
        raise IsADirectoryError(f"expected a file for the store of judgements at {path}, got a folder")
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("BEGIN IMMEDIATE")  # two processes may both find a new file
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and tables == 0:
            for statement in _statements(SCHEMA):
                connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES ('store', ?)", (uuid.uuid4().hex,))
            connection.execute(f"PRAGMA user_version = {VERSION}")
        elif version != VERSION:
            raise ValueError(f"expected a store of judgements of version {VERSION} at {path}, got version {version}")
        connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        connection.close()
        raise OSError(f"expected to be able to write to the store of judgements at {path}, got: {error}") from error
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ValueError(f"expected a store of judgements at {path}, got something else: {error}") from error
    except ValueError:
        connection.close()
        raise
    return connection


def _statements(script: str) -> list[str]:
    """Each statement of a script; `executescript` would commit in between."""
    found, text = [], ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            found.append(text)
            text = ""
    return found
