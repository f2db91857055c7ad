"""The label store: what people are asked to judge and everything they ever said, in one SQLite file.

A judgement that `record` has returned is on the disk and stays there. The log only grows: triggers in the database
refuse changes and deletions, and an undo is a record of its own. Each record carries an id made by its sender, so that
sending it again after a lost reply does not double it. Any number of processes and threads may use one file.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from rlhf_gym.files import LONE_SURROGATE, expanded, is_text
from rlhf_gym.lm.chat import Prompt, Response, as_prompt, as_response, to_json
from rlhf_gym.preferences.records import Candidate, CandidatePair
from rlhf_gym.settings.stages import ItemKind

STORE_FILE = "labels.sqlite"
"""The store's name in a run's folder."""
LEASE_SECONDS = 600.0
"""How long an item that is shown to one annotator is kept from the others."""
MAX_NAME = 60
"""The most characters of an annotator's name."""
MAX_REASON = 4000
"""The most characters of a reason."""
MAX_SECONDS = 86_400.0
"""The longest time that a judgement may have taken."""

_VERSION = 1
_BUSY_SECONDS = 10.0  # how long one process waits for another that writes
_MOST_OWN = 1000  # of so many annotators and batches a store keeps counts; those of others it counts anew
_BALANCED = 8  # in each block of so many comparisons, left and right are exactly balanced

# --- records ----------------------------------------------------------------------------------------------------------

Action = Literal["chosen", "tie", "ranking", "ratings", "skip", "undo"]

ACTIONS: dict[ItemKind, tuple[Action, ...]] = {
    "comparison": ("chosen", "tie", "skip", "undo"),
    "ranking": ("ranking", "skip", "undo"),
    "rating": ("ratings", "skip", "undo"),
}
"""What can be said about each kind of item."""


class ConflictError(ValueError):
    """An id already stands for another judgement, or there is nothing to undo."""


@dataclass(frozen=True)
class Item:
    """Responses to one prompt that are to be judged."""

    kind: ItemKind
    """"comparison" of two, "ranking" of K ≥ 2, or "rating" of K ≥ 1."""
    candidates: tuple[Candidate, ...]
    """The K responses in the item's own order, which annotators do not see."""
    batch: str = ""
    """The batch it belongs to; a labelling session serves one batch."""
    round: int = 0
    """The round of collecting."""
    labels_wanted: int = 1
    """How many annotators are to judge it; two or more show how far they agree."""
    id: int = 0
    """Its number in the store; 0 while it is not in one."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ItemKind):
            raise ValueError(f"expected an item of kind {', '.join(get_args(ItemKind))}, got {self.kind!r}")
        k = len(self.candidates)
        if self.kind == "comparison" and k != 2:
            raise ValueError(f"expected 2 responses in a comparison, got {k}")
        if k < (1 if self.kind == "rating" else 2):
            raise ValueError(
                f"expected at least {1 if self.kind == 'rating' else 2} responses in a {self.kind}, got {k}"
            )
        if len({candidate.prompt for candidate in self.candidates}) != 1:
            raise ValueError(f"expected responses to one prompt, got {[c.prompt for c in self.candidates]!r}")
        if self.labels_wanted < 1:
            raise ValueError(f"expected labels_wanted >= 1, got {self.labels_wanted}")

    @property
    def prompt(self) -> Prompt:
        """The prompt that all candidates answer."""
        return self.candidates[0].prompt

    @property
    def responses(self) -> tuple[Response, ...]:
        """The candidates' responses."""
        return tuple(candidate.response for candidate in self.candidates)

    @property
    def key(self) -> str:
        """A hash of kind, batch, round, prompt, responses and sources: equal items have equal keys."""
        texts = [[to_json(c.response), c.source] for c in self.candidates]
        content = json.dumps([self.kind, self.batch, self.round, to_json(self.prompt), texts])
        return hashlib.sha256(content.encode()).hexdigest()


class Assignment(NamedTuple):
    """An item that is lent to an annotator."""

    item: Item
    """The item."""
    shown: tuple[int, ...]
    """Indices of its candidates in the order this annotator sees them, the first on the left or on top."""


@dataclass(frozen=True)
class Judgement:
    """One record of the log: what an annotator said about an item. Later records overrule earlier ones."""

    id: str
    """An id made by the sender, so that sending the record again does not double it."""
    item: int
    """The item's number."""
    annotator: str
    """The annotator's name."""
    action: Action
    """"undo" takes back what this annotator said last about the item."""
    value: tuple[float, ...] = ()
    """By the item's own order: the index chosen, the rank of each (1 the best), the rating of each, or nothing."""
    seconds: float = 0.0
    """How long the judgement took, in seconds."""
    shown: tuple[int, ...] = ()
    """The order shown, as in `Assignment`; empty where unknown."""
    reason: str = ""
    """The annotator's reason, in their own words."""
    time: float = 0.0
    """Seconds since 1970 at which it was stored; the store sets it where it is 0."""


class Progress(NamedTuple):
    """How much of a batch is labelled."""

    items: int
    """Items in the batch."""
    wanted: int
    """Labels wanted in all."""
    labels: int
    """Labels there are; skips do not count."""
    mine: int
    """Labels by the annotator asked about."""
    skipped: int
    """Items that this annotator has skipped."""
    seconds_per_label: float | None
    """Median time of this annotator's last 20 labels; None before the first."""


def comparisons(pairs: Sequence[CandidatePair], *, batch: str = "", round: int = 0, labels: int = 1) -> list[Item]:
    """Items that ask which of two responses is better."""
    return [Item("comparison", tuple(pair), batch, round, labels) for pair in pairs]


def check_name(name: str) -> str:
    """An annotator's name without the blanks around it.

    Raises:
        ValueError: the name is blank, too long, or not printable.
    """
    stripped = name.strip()
    if not 0 < len(stripped) <= MAX_NAME or not stripped.isprintable():
        raise ValueError(f"expected an annotator's name of 1 to {MAX_NAME} printable characters, got {name[:80]!r}")
    return stripped


def _check_judgement(judgement: Judgement, item: Item) -> None:
    action = judgement.action
    k = len(item.candidates)
    if not 0 < len(judgement.id) <= 100 or not judgement.id.isprintable():
        raise ValueError(f"expected a judgement's id of 1 to 100 printable characters, got {judgement.id[:120]!r}")
    if action not in ACTIONS[item.kind]:
        raise ValueError(f"expected one of {', '.join(ACTIONS[item.kind])} for a {item.kind}, got {action!r}")
    if judgement.shown and sorted(judgement.shown) != list(range(k)):
        raise ValueError(f"expected shown to be an order of {k} responses, got {judgement.shown}")
    if not 0 <= judgement.seconds <= MAX_SECONDS:
        raise ValueError(f"expected seconds in [0, {MAX_SECONDS:.0f}], got {judgement.seconds}")
    if len(judgement.reason) > MAX_REASON:
        raise ValueError(f"expected a reason of at most {MAX_REASON} characters, got {len(judgement.reason)}")
    try:
        judgement.reason.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"expected a reason that is text, got {error.reason} at {error.start}") from error
    value = judgement.value
    if action == "chosen" and (len(value) != 1 or value[0] not in range(k)):
        raise ValueError(f"expected the index of the chosen one of {k} responses, got {list(value)}")
    if action == "ranking" and (len(value) != k or any(rank not in range(1, k + 1) for rank in value)):
        raise ValueError(f"expected {k} ranks from 1 to {k}, one for each response, got {list(value)}")
    if action == "ratings" and (len(value) != k or not all(math.isfinite(rating) for rating in value)):
        raise ValueError(f"expected {k} finite ratings, one for each response, got {list(value)}")
    if action in ("tie", "skip", "undo") and value:
        raise ValueError(f"expected no value with {action!r}, got {list(value)}")


# --- the database -----------------------------------------------------------------------------------------------------

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE items (
    id INTEGER PRIMARY KEY,                  -- items are served in this order
    key TEXT NOT NULL UNIQUE,                -- Item.key: the same item is not added twice
    kind TEXT NOT NULL,
    batch TEXT NOT NULL,
    round INTEGER NOT NULL,
    candidates TEXT NOT NULL,                -- JSON
    shown TEXT NOT NULL,                     -- JSON: the order in which the first annotator sees them
    labels_wanted INTEGER NOT NULL,
    labels INTEGER NOT NULL DEFAULT 0        -- derived: standing judgements that are not skips
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

-- Which item is lent to whom, until when, and in which order they see it.
CREATE TABLE leases (
    item INTEGER NOT NULL,
    annotator TEXT NOT NULL,
    shown TEXT NOT NULL,
    expires REAL NOT NULL,
    PRIMARY KEY (item, annotator)
) WITHOUT ROWID;

CREATE INDEX leases_of_an_annotator ON leases (annotator, expires);
"""

_ITEM = "i.id, i.kind, i.batch, i.round, i.candidates, i.labels_wanted"
_JUDGEMENT = "j.id, j.item, j.annotator, j.action, j.value, j.seconds, j.shown, j.reason, j.time"
_STANDING = "standing s JOIN judgements j ON j.seq = s.seq JOIN items i ON i.id = s.item"
_OPEN = """items i WHERE i.batch = :batch AND i.labels < i.labels_wanted AND i.id >= :first
    AND i.id NOT IN (SELECT value FROM json_each(:exclude))
    AND NOT EXISTS (SELECT 1 FROM standing s WHERE s.item = i.id AND s.annotator = :annotator)"""
_NO_ITEM = 2**63 - 1  # the largest number that SQLite holds


def _open_database(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time; a new file gets its tables.

    With WAL and synchronous=FULL a transaction is on the disk before its commit returns
    (https://sqlite.org/pragma.html). Network disks such as NFS may not keep the locks that this needs.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"expected a folder for the store of judgements at {path.parent}, got none")
    if path.is_dir():
        raise IsADirectoryError(f"expected a file for the store of judgements at {path}, got a folder")
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("BEGIN IMMEDIATE")  # two processes may both find a new file
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and tables == 0:
            for statement in _SCHEMA.split("\n\n"):  # `executescript` would commit in between
                connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES ('store', ?)", (uuid.uuid4().hex,))
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise ValueError(f"expected a store of judgements of version {_VERSION} at {path}, got version {version}")
        connection.execute("UPDATE meta SET value = value")  # a file that cannot be written to fails here, not later
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


@dataclass
class _Own:
    """What one annotator has done in a batch, so that no lease counts it anew."""

    judged: int
    """Items with a standing judgement of theirs, skips included."""
    skipped: int
    """Those that they have skipped."""
    first: int = 0
    """No item with a smaller number is open to them."""


class LabelStore:
    """The label file. Use it in a `with` statement, or `close` it."""

    def __init__(self, path: str | Path) -> None:
        """Open the file, or make it.

        Raises:
            OSError: its folder does not exist, or it cannot be written to.
            ValueError: the file is no store, or one of another version.
        """
        self.path = expanded(path)
        self._database = _open_database(self.path)
        self._lock = threading.RLock()
        self._totals: dict[str, list[int]] = {}  # of each batch: items, labels wanted, labels; as of `_seen`
        self._own: dict[tuple[str, str], _Own] = {}  # of each batch and annotator; as of `_seen`
        self._seen = -1

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    @property
    def name(self) -> str:
        """An id that no other store has."""
        return str(self._rows("SELECT value FROM meta WHERE name = 'store'")[0][0])

    # --- items --------------------------------------------------------------------------------------------------------

    def add(self, items: Sequence[Item], *, seed: int = 0, exclusive: bool = False) -> int:
        """Add items to judge, to be served in this order. An item that is there already may only want more labels.

        Which response of a comparison stands first is random, and exactly balanced in each eight items that are added
        at once. The second annotator of an item sees it the other way round.

        Args:
            items: what is to be judged.
            seed: seed of the orders.
            exclusive: whether their batches are to hold these items and no others. What the batches held before moves
                to a batch called "…, earlier" with all its judgements. An item that is added again moves back.

        Returns:
            How many items were new.
        """
        for item in items:
            if not is_text(json.dumps(asdict(item), ensure_ascii=False)):
                raise ValueError(f"expected text to judge, got {LONE_SURROGATE} in {str(item.responses)[:60]!r}")
        with self._writing():
            self._forget()
            known = {row[0] for row in self._rows("SELECT key FROM items")}
            if exclusive:
                for batch in sorted({item.batch for item in items}):
                    self._execute("UPDATE items SET batch = batch || ', earlier' WHERE batch = ?", (batch,))
            self._database.executemany(
                "UPDATE items SET batch = ?, labels_wanted = max(labels_wanted, ?) WHERE key = ?",
                [(item.batch, item.labels_wanted, item.key) for item in items if item.key in known],
            )
            new = list({item.key: item for item in items if item.key not in known}.values())
            for item, shown in zip(new, _orders(new, seed + len(known)), strict=True):
                candidates = json.dumps([asdict(candidate) for candidate in item.candidates])
                self._execute(
                    "INSERT INTO items (key, kind, batch, round, candidates, shown, labels_wanted) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (item.key, item.kind, item.batch, item.round, candidates, json.dumps(shown), item.labels_wanted),
                )
        return len(new)

    def items(self, batch: str | None = None) -> list[Item]:
        """The items of a batch, or all items, in the order in which they are served."""
        where = "WHERE :batch IS NULL OR i.batch = :batch"
        return [
            _item(row) for row in self._rows(f"SELECT {_ITEM} FROM items i {where} ORDER BY i.id", {"batch": batch})
        ]

    def item(self, number: int) -> Item:
        """The item of this number.

        Raises:
            LookupError: there is none.
        """
        rows = self._rows(f"SELECT {_ITEM} FROM items i WHERE i.id = ?", (number,))
        if not rows:
            raise LookupError(f"expected the number of an item, got {number}")
        return _item(rows[0])

    def batches(self) -> list[str]:
        """The names of the batches; the one that was begun last stands last."""
        return [row[0] for row in self._rows("SELECT batch FROM items GROUP BY batch ORDER BY min(id)")]

    # --- lending ------------------------------------------------------------------------------------------------------

    def lease(
        self, annotator: str, batch: str, *, count: int = 1, exclude: Sequence[int] = (), seconds: float = LEASE_SECONDS
    ) -> list[Assignment]:
        """Items for an annotator to judge, those they already have first. Nobody else gets them for `seconds`.

        What this annotator has judged or skipped is not served again. An item is not served either once its labels and
        the annotators who have it now are as many as it wants.

        Args:
            annotator: the annotator's name.
            batch: the batch of the items.
            count: the most items.
            exclude: items to leave out, because their judgements are on the way.
            seconds: how long others do not get them.
        """
        now = time.time()
        with self._writing():
            asked = self._asked(annotator, batch, exclude) | {"now": now, "count": count}
            rows = self._rows(
                f"""SELECT {_ITEM} FROM {_OPEN}
                AND i.labels + (SELECT count(*) FROM leases l
                                WHERE l.item = i.id AND l.annotator != :annotator AND l.expires > :now)
                    < i.labels_wanted
                ORDER BY i.id LIMIT :count""",
                asked,
            )
            found = [self._assign(_item(row), asked["annotator"], now + seconds) for row in rows]
            self._execute(
                "UPDATE leases SET expires = ? WHERE annotator = ? AND expires > ?",
                (now + seconds, asked["annotator"], now),
            )
        return found

    def has_open(self, annotator: str, batch: str, *, exclude: Sequence[int] = ()) -> bool:
        """Whether this annotator may get something more once others have given it back."""
        with self._lock:
            return bool(self._rows(f"SELECT 1 FROM {_OPEN} LIMIT 1", self._asked(annotator, batch, exclude)))

    def has_pending(self, batch: str) -> bool:
        """Whether an item still wants labels and has not been skipped by everybody who saw it."""
        rows = self._rows(
            "SELECT 1 FROM items i WHERE i.batch = ? AND i.labels < i.labels_wanted "
            "AND (EXISTS (SELECT 1 FROM leases l WHERE l.item = i.id AND l.expires > ?) "
            "OR NOT EXISTS (SELECT 1 FROM standing s WHERE s.item = i.id AND s.action = 'skip')) LIMIT 1",
            (batch, time.time()),
        )
        return bool(rows)

    def shown(self, annotator: str, number: int) -> tuple[int, ...] | None:
        """The order in which this annotator sees an item; None where it was never lent to them."""
        rows = self._rows("SELECT shown FROM leases WHERE item = ? AND annotator = ?", (number, annotator))
        return tuple(json.loads(rows[0][0])) if rows else None

    def assignment(self, annotator: str, number: int, *, seconds: float = LEASE_SECONDS) -> Assignment:
        """Lend one item to this annotator, whoever else has it."""
        with self._writing():
            return self._assign(self.item(number), check_name(annotator), time.time() + seconds)

    def _assign(self, item: Item, annotator: str, expires: float) -> Assignment:
        """Lend an item to an annotator, inside a transaction."""
        shown = self.shown(annotator, item.id)
        if shown is None:
            first = json.loads(self._rows("SELECT shown FROM items WHERE id = ?", (item.id,))[0][0])
            turn = self._rows("SELECT count(*) FROM leases WHERE item = ?", (item.id,))[0][0] % len(first)
            shown = (*first[turn:], *first[:turn])
        self._execute(
            "INSERT INTO leases VALUES (?, ?, ?, ?) "
            "ON CONFLICT (item, annotator) DO UPDATE SET expires = excluded.expires",
            (item.id, annotator, json.dumps(shown), expires),
        )
        return Assignment(item, shown)

    # --- judgements ---------------------------------------------------------------------------------------------------

    def record(self, judgement: Judgement) -> bool:
        """Add a judgement to the log. When this returns it is on the disk.

        Returns:
            Whether it was new: False where the same judgement came before.

        Raises:
            LookupError: there is no such item.
            ConflictError: its id stands for another judgement, or there is nothing to undo.
            ValueError: it cannot be said about that item.
        """
        return self.record_all([judgement])[0]

    def record_all(self, judgements: Sequence[Judgement]) -> list[bool]:
        """`record` many judgements: all of them, or none where one raises."""
        with self._writing():
            return [self._record(judgement) for judgement in judgements]

    def _record(self, judgement: Judgement) -> bool:
        judgement = replace(judgement, annotator=check_name(judgement.annotator), time=judgement.time or time.time())
        _check_judgement(judgement, self.item(judgement.item))
        before = self.find(judgement.id)
        if before is None:
            self._append(judgement)
        elif replace(before, seconds=judgement.seconds, shown=judgement.shown, time=judgement.time) != judgement:
            raise ConflictError(f"expected an id of its own, got {judgement.id!r}, which is another judgement's")
        return before is None

    def _append(self, judgement: Judgement) -> None:
        """Write to the log and to what is derived from it, inside a transaction."""
        place = (judgement.item, judgement.annotator)
        before = self._rows("SELECT action FROM standing WHERE item = ? AND annotator = ?", place)
        if judgement.action == "undo" and not before:
            raise ConflictError(
                f"expected a judgement to undo, got none of {judgement.annotator!r} about item {judgement.item}"
            )
        added = self._execute(
            "INSERT INTO judgements VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                judgement.id,
                *place,
                judgement.action,
                json.dumps(judgement.value),
                judgement.seconds,
                json.dumps(judgement.shown),
                judgement.reason,
                judgement.time,
            ),
        )
        if judgement.action == "undo":
            self._execute("DELETE FROM standing WHERE item = ? AND annotator = ?", place)
        else:
            standing = (*place, added.lastrowid, judgement.action)
            self._execute("INSERT OR REPLACE INTO standing VALUES (?, ?, ?, ?)", standing)
            self._execute("UPDATE leases SET expires = 0 WHERE item = ? AND annotator = ?", place)
        counted = bool(before) and before[0][0] != "skip"
        change = int(judgement.action not in ("undo", "skip")) - int(counted)
        self._execute("UPDATE items SET labels = labels + ? WHERE id = ?", (change, judgement.item))
        batch = self.item(judgement.item).batch
        if batch in self._totals:
            self._totals[batch][2] += change
        for (own_batch, annotator), own in self._own.items():
            if own_batch != batch:
                continue
            if annotator == judgement.annotator:
                own.judged += int(judgement.action != "undo") - int(bool(before))
                own.skipped += int(judgement.action == "skip") - int(bool(before) and before[0][0] == "skip")
            if change < 0 or judgement.action == "undo":
                own.first = min(own.first, judgement.item)

    def find(self, identity: str) -> Judgement | None:
        """The record with this id; None where there is none."""
        rows = self._rows(f"SELECT {_JUDGEMENT} FROM judgements j WHERE j.id = ?", (identity,))
        return _judgement(rows[0]) if rows else None

    def last(self, annotator: str, batch: str) -> Judgement | None:
        """The last judgement of an annotator that still stands; None where there is none."""
        rows = self._rows(
            f"SELECT {_JUDGEMENT} FROM {_STANDING} WHERE s.annotator = ? AND i.batch = ? ORDER BY s.seq DESC LIMIT 1",
            (check_name(annotator), batch),
        )
        return _judgement(rows[0]) if rows else None

    def judgements(self, batch: str | None = None) -> list[Judgement]:
        """The judgements that stand: of each annotator the last about each item, in the order in which they came."""
        rows = self._rows(
            f"SELECT {_JUDGEMENT} FROM {_STANDING} WHERE :batch IS NULL OR i.batch = :batch ORDER BY j.seq",
            {"batch": batch},
        )
        return [_judgement(row) for row in rows]

    def log(self) -> list[Judgement]:
        """Every record there is, undone ones and undos included."""
        return [_judgement(row) for row in self._rows(f"SELECT {_JUDGEMENT} FROM judgements j ORDER BY j.seq")]

    def progress(self, batch: str, annotator: str = "") -> Progress:
        """How much of a batch is labelled, and how much of that by this annotator."""
        with self._lock:
            items, wanted, labels = self._totals_of(batch)
            own = self._own_of(batch, annotator)
        recent = self._rows(
            f"SELECT j.seconds FROM {_STANDING} WHERE s.annotator = ? AND s.action != 'skip' "
            "ORDER BY s.seq DESC LIMIT 20",
            (annotator,),
        )
        pace = float(np.median([row[0] for row in recent])) if recent else None
        return Progress(items, wanted, labels, own.judged - own.skipped, own.skipped, pace)

    def _totals_of(self, batch: str) -> list[int]:
        """Items, labels wanted and labels of a batch, counted anew where another connection has written since."""
        self._forget_what_is_old()
        if batch not in self._totals:
            count = "SELECT count(*), total(labels_wanted), total(labels) FROM items WHERE batch = ?"
            self._totals[batch] = [int(number) for number in self._rows(count, (batch,))[0]]
        return self._totals[batch]

    def _own_of(self, batch: str, annotator: str) -> _Own:
        """What an annotator has done in a batch, counted anew where another connection has written since."""
        self._forget_what_is_old()
        own = self._own.pop((batch, annotator), None)
        if own is None:
            count = f"SELECT count(*), total(s.action = 'skip') FROM {_STANDING} WHERE s.annotator = ? AND i.batch = ?"
            own = _Own(*(int(number) for number in self._rows(count, (annotator, batch))[0]))
        self._own[batch, annotator] = own  # the last of all
        if len(self._own) > _MOST_OWN:
            del self._own[next(iter(self._own))]  # of who asked longest ago
        return own

    def _forget_what_is_old(self) -> None:
        seen = self._rows("PRAGMA data_version")[0][0]  # https://sqlite.org/pragma.html#pragma_data_version
        if seen != self._seen:
            self._forget()
            self._seen = seen

    def _forget(self) -> None:
        self._totals.clear()
        self._own.clear()

    def check(self) -> None:
        """Check that the file is sound, and that what is derived from the log agrees with it.

        Raises:
            ValueError: it does not.
        """
        sound = self._rows("PRAGMA integrity_check")[0][0]
        last = {(judgement.item, judgement.annotator): judgement for judgement in self.log()}
        expected = {place: judgement.id for place, judgement in last.items() if judgement.action != "undo"}
        found = {(judgement.item, judgement.annotator): judgement.id for judgement in self.judgements()}
        labels = dict(self._rows("SELECT id, labels FROM items WHERE labels != 0"))
        counted: dict[int, int] = {}
        for judgement in last.values():
            if judgement.action not in ("undo", "skip"):
                counted[judgement.item] = counted.get(judgement.item, 0) + 1
        if sound != "ok" or expected != found or labels != counted:
            raise ValueError(
                f"expected {self.path} to agree with its own log, got {sound}, {len(expected)} judgements by the log, "
                f"{len(found)} standing"
            )

    # --- statements ---------------------------------------------------------------------------------------------------

    def _asked(self, annotator: str, batch: str, exclude: Sequence[int]) -> dict[str, Any]:
        """The parameters of the query `_OPEN`, which begins at the first item that is open to the annotator."""
        annotator = check_name(annotator)
        own = self._own_of(batch, annotator)
        asked = {"annotator": annotator, "batch": batch, "exclude": "[]", "first": own.first}
        found = self._rows(f"SELECT i.id FROM {_OPEN} ORDER BY i.id LIMIT 1", asked)
        own.first = found[0][0] if found else _NO_ITEM
        return asked | {"exclude": json.dumps(list(exclude)), "first": own.first}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction: all of it happens, or nothing."""
        with self._lock:
            self._execute("BEGIN IMMEDIATE")
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                self._forget()
                if self._database.in_transaction:  # a full disk may have ended it
                    self._execute("ROLLBACK")
                raise

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._database.execute(statement, values)

    def _rows(self, statement: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()


def _orders(items: Sequence[Item], seed: int) -> list[list[int]]:
    """An order for each item: of two, either way equally often in each block; of more, at random."""
    rng = np.random.default_rng(seed)
    turned: list[int] = []
    while len(turned) < len(items):
        size = min(_BALANCED, len(items) - len(turned))
        half = size // 2 + (int(rng.integers(2)) if size % 2 else 0)
        turned += rng.permutation([1] * half + [0] * (size - half)).tolist()
    return [
        [turn, 1 - turn] if item.kind == "comparison" else rng.permutation(len(item.candidates)).tolist()
        for item, turn in zip(items, turned, strict=True)
    ]


def _item(row: tuple[Any, ...]) -> Item:
    number, kind, batch, round, candidates, wanted = row
    made = [
        Candidate(**(record | {"prompt": as_prompt(record["prompt"]), "response": as_response(record["response"])}))
        for record in json.loads(candidates)
    ]
    return Item(kind, tuple(made), batch, round, wanted, number)


def _judgement(row: tuple[Any, ...]) -> Judgement:
    identity, item, annotator, action, value, seconds, shown, reason, stored = row
    value = tuple(json.loads(value))
    shown = tuple(json.loads(shown))
    return Judgement(identity, item, annotator, action, value, seconds, shown, reason, stored)
