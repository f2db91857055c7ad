"""Judgements by people, in one SQLite file: what is to be judged, who has what before them, and all that was ever said.

What a call of `record` has returned is on the disk and stays there: the log only grows (triggers in the database refuse
anything else), an undo is a record of its own, and each record carries an id of its sender's, so that sending it again
after a lost reply does not double it. Any number of processes and threads may work on one file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from rlhf_gym.preferences.records import Candidate
from rlhf_gym.preferences.store_records import Assignment, Item, Judgement, check_judgement, check_name
from rlhf_gym.preferences.store_schema import open_database

STORE_FILE = "labels.sqlite"
"""The store's name in a run's folder."""
LEASE_SECONDS = 600.0
"""How long an item that somebody has before them is kept from others."""
BLOCK = 8
"""In each so many comparisons, left and right are exactly balanced."""

_JUDGEMENT = "id, item, annotator, action, value, seconds, shown, reason, time"


class ConflictError(ValueError):
    """An id that stands for another judgement already, or nothing to undo."""


class Progress(NamedTuple):
    """How far a batch is."""

    items: int
    """Items in it."""
    wanted: int
    """Labels asked for in all."""
    labels: int
    """Labels there are; skips are none."""
    mine: int
    """Those of the annotator asked about."""
    skipped: int
    """What this annotator has skipped."""
    seconds_per_label: float | None
    """Median time of this annotator's last 20 labels; None before the first."""


class LabelStore:
    """The file of judgements. Use it in a `with`, or `close` it."""

    def __init__(self, path: str | Path) -> None:
        """Open the file, or make it.

        Raises:
            OSError: its folder does not exist, or it cannot be written to.
            ValueError: the file is something else.
        """
        self.path = Path(path).expanduser()
        self._database = open_database(self.path)
        self._lock = threading.RLock()

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    @property
    def name(self) -> str:
        """Names this store and no other."""
        return str(self._rows("SELECT value FROM meta WHERE name = 'store'")[0][0])

    # --- items --------------------------------------------------------------------------------------------------------

    def add(self, items: Sequence[Item], *, seed: int = 0, alone: bool = False) -> int:
        """Add items to judge, to be served in this order; those that are there already stay, and may want more labels.

        The order in which the two of a comparison are shown is random, exactly balanced in each eight items that are
        added at once (and in the rest of them, up to one). The second annotator of an item sees it the other way round.

        Args:
            items: what is to be judged.
            seed: of the orders.
            alone: whether their batches are to hold these and no others. What they held before moves, with all that
                was said about it, to a batch called "…, earlier"; and back, should it be added again.

        Returns:
            How many were new.
        """
        with self._writing():
            known = {row[0] for row in self._rows("SELECT key FROM items")}
            if alone:
                self._database.executemany("UPDATE items SET batch = batch || ', earlier' WHERE batch = ?",
                                           sorted({(item.batch,) for item in items}))  # fmt: skip
            self._database.executemany(
                "UPDATE items SET batch = ?, labels_wanted = max(labels_wanted, ?) WHERE key = ?",
                [(item.batch, item.labels_wanted, item.key) for item in items if item.key in known],
            )
            new = [item for item in dict.fromkeys(items) if item.key not in known]
            rows = [
                (item.key, item.kind, item.batch, item.round, json.dumps([_plain(c) for c in item.candidates]),
                 json.dumps(order), item.labels_wanted)
                for item, order in zip(new, _orders(new, seed + len(known)), strict=True)
            ]  # fmt: skip
            self._database.executemany(
                "INSERT INTO items (key, kind, batch, round, candidates, shown, labels_wanted) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING", rows
            )  # fmt: skip
        return len(new)

    def items(self, batch: str | None = None) -> list[Item]:
        """All items, or those of one batch, in the order in which they are served."""
        where, values = ("", ()) if batch is None else (" WHERE batch = ?", (batch,))
        rows = self._rows(f"SELECT id, kind, batch, round, candidates, labels_wanted FROM items{where} ORDER BY id",
                          values)  # fmt: skip
        return [_item(row) for row in rows]

    def item(self, number: int) -> Item:
        """One item.

        Raises:
            LookupError: there is none of that number.
        """
        rows = self._rows("SELECT id, kind, batch, round, candidates, labels_wanted FROM items WHERE id = ?", (number,))
        if not rows:
            raise LookupError(f"expected the number of an item, got {number}")
        return _item(rows[0])

    def batches(self) -> list[str]:
        """The batches there are, the one that was begun last at the end."""
        return [row[0] for row in self._rows("SELECT batch FROM items GROUP BY batch ORDER BY min(id)")]

    def first_shown(self, number: int) -> tuple[int, ...]:
        """The order in which the first annotator of an item sees it."""
        return tuple(json.loads(self._rows("SELECT shown FROM items WHERE id = ?", (number,))[0][0]))

    # --- lending ------------------------------------------------------------------------------------------------------

    def lease(
        self, annotator: str, batch: str, *, count: int = 1, exclude: Sequence[int] = (), seconds: float = LEASE_SECONDS
    ) -> list[Assignment]:
        """Items for an annotator to judge, first those they have already; nobody else gets them for `seconds`.

        What this annotator has judged or skipped is not served again, and no item that has, together with what others
        hold, as many labels as it wants.

        Args:
            annotator: who.
            batch: of which items.
            count: how many at most.
            exclude: not these (their judgements are on the way).
            seconds: how long others do not get them.
        """
        annotator, now = check_name(annotator), time.time()
        left_out = json.dumps(list(exclude))
        with self._writing():
            rows = self._rows(
                """
                SELECT i.id, i.kind, i.batch, i.round, i.candidates, i.labels_wanted FROM items i
                WHERE i.batch = :batch AND i.labels < i.labels_wanted
                  AND i.id NOT IN (SELECT value FROM json_each(:left_out))
                  AND NOT EXISTS (SELECT 1 FROM standing s WHERE s.item = i.id AND s.annotator = :annotator)
                  AND i.labels + (SELECT count(*) FROM leases l
                                  WHERE l.item = i.id AND l.annotator != :annotator AND l.expires > :now)
                      < i.labels_wanted
                ORDER BY i.id LIMIT :count
                """,
                {"batch": batch, "left_out": left_out, "annotator": annotator, "now": now, "count": count},
            )
            found = [self._assign(_item(row), annotator, now + seconds) for row in rows]
            self._execute(
                "UPDATE leases SET expires = ? WHERE annotator = ? AND expires > ?", (now + seconds, annotator, now)
            )
        return found

    def has_open(self, annotator: str, batch: str, *, exclude: Sequence[int] = ()) -> bool:
        """Whether something is left that this annotator may get, once others have let go of it."""
        rows = self._rows(
            "SELECT 1 FROM items i WHERE i.batch = ? AND i.labels < i.labels_wanted "
            "AND i.id NOT IN (SELECT value FROM json_each(?)) "
            "AND NOT EXISTS (SELECT 1 FROM standing s WHERE s.item = i.id AND s.annotator = ?) LIMIT 1",
            (batch, json.dumps(list(exclude)), check_name(annotator)),
        )
        return bool(rows)

    def pending(self, batch: str) -> int:
        """Items that wait for somebody: those that want labels still, but for those that all who saw them skipped."""
        rows = self._rows(
            "SELECT count(*) FROM items i WHERE i.batch = ? AND i.labels < i.labels_wanted "
            "AND (EXISTS (SELECT 1 FROM leases l WHERE l.item = i.id AND l.expires > ?) "
            "OR NOT EXISTS (SELECT 1 FROM standing s WHERE s.item = i.id AND s.action = 'skip'))",
            (batch, time.time()),
        )
        return int(rows[0][0])

    def _assign(self, item: Item, annotator: str, expires: float) -> Assignment:
        """The item's order for this annotator, and a lease of it (inside a transaction)."""
        shown = self._shown_to(item, annotator)
        self._execute(
            "INSERT INTO leases VALUES (?, ?, ?, ?) "
            "ON CONFLICT (item, annotator) DO UPDATE SET expires = excluded.expires",
            (item.id, annotator, json.dumps(shown), expires),
        )
        return Assignment(item, shown)

    def _shown_to(self, item: Item, annotator: str) -> tuple[int, ...]:
        shown = self.shown(annotator, item.id)
        if shown is not None:
            return shown
        before = self._rows("SELECT count(*) FROM leases WHERE item = ?", (item.id,))[0][0] % len(item.candidates)
        first = self.first_shown(item.id)
        return first[before:] + first[:before]

    def shown(self, annotator: str, number: int) -> tuple[int, ...] | None:
        """The order in which this annotator sees an item; None where it was never lent to them."""
        rows = self._rows("SELECT shown FROM leases WHERE item = ? AND annotator = ?", (number, annotator))
        return tuple(json.loads(rows[0][0])) if rows else None

    def assignment(self, annotator: str, number: int, *, seconds: float = LEASE_SECONDS) -> Assignment:
        """One item for this annotator, whoever else has it."""
        with self._writing():
            return self._assign(self.item(number), check_name(annotator), time.time() + seconds)

    # --- judgements ---------------------------------------------------------------------------------------------------

    def record(self, judgement: Judgement) -> bool:
        """Add a judgement to the log. When this returns it is on the disk.

        Returns:
            Whether it was new: False where the same came before.

        Raises:
            LookupError: no such item.
            ConflictError: its id stands for another judgement, or it undoes what nobody said.
            ValueError: it cannot be said about that item.
        """
        return self.record_all([judgement])[0]

    def record_all(self, judgements: Sequence[Judgement]) -> list[bool]:
        """`record` for many: all of them, or, where one raises, none."""
        with self._writing():
            return [self._record(judgement) for judgement in judgements]

    def _record(self, judgement: Judgement) -> bool:
        judgement = replace(judgement, annotator=check_name(judgement.annotator), time=judgement.time or time.time())
        check_judgement(judgement, self.item(judgement.item))
        before = self.find(judgement.id)
        if before is None:
            self._append(judgement)
        elif before.content() != judgement.content():
            raise ConflictError(f"expected an id of its own, got {judgement.id!r}, which is another judgement's")
        return before is None

    def find(self, identity: str) -> Judgement | None:
        """The record with this id; None where there is none."""
        rows = self._rows(f"SELECT {_JUDGEMENT} FROM judgements WHERE id = ?", (identity,))
        return _judgement(rows[0]) if rows else None

    def _append(self, judgement: Judgement) -> None:
        """Into the log and what is derived from it (inside a transaction)."""
        place = (judgement.item, judgement.annotator)
        rows = self._rows("SELECT action FROM standing WHERE item = ? AND annotator = ?", place)
        counted = bool(rows) and rows[0][0] != "skip"
        if judgement.action == "undo" and not rows:
            raise ConflictError(
                f"expected a judgement to undo, got none of {judgement.annotator!r} about item {judgement.item}"
            )
        done = self._execute(
            f"INSERT INTO judgements ({_JUDGEMENT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (judgement.id, *place, judgement.action, json.dumps(judgement.value), judgement.seconds,
             json.dumps(judgement.shown), judgement.reason, judgement.time),
        )  # fmt: skip
        if judgement.action == "undo":
            self._execute("DELETE FROM standing WHERE item = ? AND annotator = ?", place)
        else:
            self._execute("INSERT OR REPLACE INTO standing VALUES (?, ?, ?, ?)",
                          (*place, done.lastrowid, judgement.action))  # fmt: skip
            self._execute("UPDATE leases SET expires = 0 WHERE item = ? AND annotator = ?", place)
        counts = judgement.action not in ("undo", "skip")
        self._execute("UPDATE items SET labels = labels + ? WHERE id = ?", (int(counts) - int(counted), judgement.item))

    def last(self, annotator: str, batch: str) -> Judgement | None:
        """The last thing an annotator said that still stands; None where there is nothing."""
        rows = self._rows(
            f"SELECT {_qualified()} FROM standing s JOIN judgements j ON j.seq = s.seq JOIN items i ON i.id = s.item "
            "WHERE s.annotator = ? AND i.batch = ? ORDER BY s.seq DESC LIMIT 1", (check_name(annotator), batch)
        )  # fmt: skip
        return _judgement(rows[0]) if rows else None

    def judgements(self, batch: str | None = None) -> list[Judgement]:
        """What stands: of each annotator the last word about each item, in the order in which it was said."""
        where, values = ("", ()) if batch is None else (" WHERE i.batch = ?", (batch,))
        rows = self._rows(
            f"SELECT {_qualified()} FROM standing s JOIN judgements j ON j.seq = s.seq JOIN items i ON i.id = s.item"
            f"{where} ORDER BY j.seq", values
        )  # fmt: skip
        return [_judgement(row) for row in rows]

    def log(self) -> list[Judgement]:
        """Every record there is, undone ones and undos too."""
        return [_judgement(row) for row in self._rows(f"SELECT {_JUDGEMENT} FROM judgements ORDER BY seq")]

    def progress(self, batch: str, annotator: str = "") -> Progress:
        """How far a batch is, and what this annotator did of it."""
        items, wanted, labels = self._rows(
            "SELECT count(*), total(labels_wanted), total(labels) FROM items WHERE batch = ?", (batch,)
        )[0]
        mine = self._rows(
            "SELECT count(*), total(s.action = 'skip') FROM standing s JOIN items i ON i.id = s.item "
            "WHERE s.annotator = ? AND i.batch = ?", (annotator, batch)
        )[0]  # fmt: skip
        recent = self._rows(
            "SELECT j.seconds FROM standing s JOIN judgements j ON j.seq = s.seq "
            "WHERE s.annotator = ? AND s.action != 'skip' ORDER BY s.seq DESC LIMIT 20", (annotator,)
        )  # fmt: skip
        pace = float(np.median([row[0] for row in recent])) if recent else None
        return Progress(items, int(wanted), int(labels), mine[0] - int(mine[1]), int(mine[1]), pace)

    def check(self) -> None:
        """Whether what is derived from the log is what the log says, and the file is sound.

        Raises:
            ValueError: it is not.
        """
        sound = self._rows("PRAGMA integrity_check")[0][0]
        last: dict[tuple[int, str], Judgement] = {}
        for judgement in self.log():
            last[judgement.item, judgement.annotator] = judgement
        expected = {place: j.id for place, j in last.items() if j.action != "undo"}
        found = {(j.item, j.annotator): j.id for j in self.judgements()}
        labels = dict(self._rows("SELECT id, labels FROM items WHERE labels != 0"))
        counted: dict[int, int] = {}
        for place, judgement in last.items():
            if judgement.action not in ("undo", "skip"):
                counted[place[0]] = counted.get(place[0], 0) + 1
        if sound != "ok" or expected != found or labels != counted:
            raise ValueError(f"expected {self.path} to agree with its own log, got {sound}, {len(expected)} judgements "
                             f"by the log, {len(found)} standing")  # fmt: skip

    # --- the database -------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction: all of it, or nothing."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

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
        size = min(BLOCK, len(items) - len(turned))
        half = size // 2 + (int(rng.integers(2)) if size % 2 else 0)
        turned += rng.permutation([1] * half + [0] * (size - half)).tolist()
    return [
        [turn, 1 - turn] if item.kind == "comparison" else rng.permutation(len(item.candidates)).tolist()
        for item, turn in zip(items, turned, strict=True)
    ]


def _plain(candidate: Candidate) -> dict[str, Any]:
    return asdict(candidate)


def _item(row: tuple[Any, ...]) -> Item:
    number, kind, batch, round, candidates, wanted = row
    return Item(kind, tuple(Candidate(**c) for c in json.loads(candidates)), batch, round, wanted, number)


def _judgement(row: tuple[Any, ...]) -> Judgement:
    identity, item, annotator, action, value, seconds, shown, reason, at = row
    return Judgement(identity, item, annotator, action, tuple(json.loads(value)), seconds, tuple(json.loads(shown)),
                     reason, at)  # fmt: skip


def _qualified() -> str:
    return ", ".join(f"j.{name}" for name in _JUDGEMENT.split(", "))
