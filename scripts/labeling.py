"""python scripts/labeling.py: the labelling page under faults, and how long its answers take.

    python scripts/labeling.py faults                      # four clients for a minute
    python scripts/labeling.py faults --seconds 3600 --comparisons 40000 --kills 60 --locks 60 --full-disks 40
    python scripts/labeling.py leases --items 100000

Clients, each a process, ask the server of `rlhf-gym label` for pairs and send judgements. Under faults the server is
killed (SIGKILL) at random moments and started again, another process locks its database, and the operating system
refuses what it writes to the disk. Clients send one judgement in fifty twice at once, and close one connection in fifty
before the answer and one in fifty within the request. What gets no answer, or 503, is sent again. At the end each
client's own list of acknowledged judgements is compared with the log that `rlhf-gym preferences export --log` writes.
Left out: a power cut, which only a machine of its own can show (the store commits with synchronous=FULL).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import os
import random
import resource
import socket
import sqlite3
import tempfile
import time
import uuid
import warnings
from collections import Counter
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

import rlhf_gym.labeling.server  # noqa: F401 (what a server has imported already when it is forked)
from rlhf_gym.cli import main as run_command
from rlhf_gym.labeling.store import STORE_FILE, Judgement, LabelStore

TOKEN = "a-token-for-this-alone"
GIVE_UP_SECONDS = 120.0
ODD = 0.02  # the share of judgements that are sent twice, not waited for, or cut off


class Outcome(NamedTuple):
    """What came of it, in judgements and requests."""

    acknowledged: int
    """Judgements that clients were told are stored."""
    stored: int
    """Those in the log."""
    lost: int
    """Those that were acknowledged and are not in the log."""
    doubled: int
    """Those in the log more than once, by their ids or by their items."""
    wrong: int
    """Those that were stored for another pair or the other side."""
    refused: int = 0
    """Requests that were answered with 503."""
    unanswered: int = 0
    """Requests that got no answer; those that clients cut off themselves do not count."""


@dataclass(frozen=True)
class Faults:
    """Clients label while the page meets faults; nothing may be lost, doubled or wrong."""

    comparisons: int = 2000
    """Pairs to label."""
    clients: int = 4
    """How many label at once."""
    seconds: float = 60.0
    """How long the clients take for it, faults aside; 0 for as fast as they can."""
    kills: int = 5
    """How often the server is killed and started again."""
    locks: int = 5
    """How often its database is locked."""
    full_disks: int = 5
    """How often its disk is full."""
    longest: float = 15.0
    """The longest that a lock or a full disk lasts, in seconds; the store waits 10 for a lock."""
    seed: int = 0
    """Seed of the moments and of what clients do."""


@dataclass(frozen=True)
class Leases:
    """How long the page's answers take by the number of labels there are."""

    items: int = 100_000
    """Comparisons in the store."""
    clients: int = 4
    """How many label at once, as fast as they can."""
    judgements: int = 2000
    """Judgements that are timed, at each number of labels."""
    seed: int = 0
    """Seed of what clients do."""


# --- the clients --------------------------------------------------------------------------------------------------


class Client:
    """One annotator, who keeps a list of the judgements that the page has acknowledged."""

    def __init__(self, name: str, port: int, *, faults: bool, seed: int) -> None:
        self.name = name
        self.faults = faults
        self.rng = random.Random(seed)
        self.port = port
        self.connection = self.connect()
        self.seconds: dict[str, list[float]] = {"/api/lease": [], "/api/judgements": []}
        self.refused = 0
        self.unanswered = 0

    def connect(self) -> http.client.HTTPConnection:
        """A new connection; it stays open over many requests."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def label(self, path: Path, done: Any, pause: float, most: int | None = None) -> None:
        """Label until nothing is left; a line for each acknowledged judgement goes to the file."""
        with path.open("w") as file:
            count = 0
            while (got := self.ask("/api/lease", {"count": 5}))["items"] or got["waiting"]:
                for item in got["items"]:
                    place = self.rng.randrange(2)
                    identity = uuid.UUID(int=self.rng.getrandbits(128)).hex
                    self.judge({"id": identity, "item": item["id"], "action": "chosen", "value": [place]})
                    file.write(json.dumps([identity, item["id"], place]) + "\n")
                    file.flush()
                    count += 1
                    with done.get_lock():
                        done.value += 1
                    time.sleep(self.rng.expovariate(1 / pause) if pause else 0)
                if most is not None and count >= most:
                    break
                time.sleep(0 if got["items"] else 0.02)
        spent = {"refused": self.refused, "unanswered": self.unanswered, "seconds": self.seconds}
        path.with_suffix(".json").write_text(json.dumps(spent))

    def judge(self, body: dict[str, Any]) -> None:
        """Send a judgement: under faults sometimes cut off, without waiting for the answer, or twice at once."""
        how = self.rng.random() if self.faults else 1.0
        if how < 3 * ODD:
            connections = [self.connect() for _ in range(2 if how < ODD else 1)]
            with contextlib.suppress(OSError, http.client.HTTPException):
                for connection in connections:
                    self.send(connection, "/api/judgements", body, cut=how > 2 * ODD)
                if how < ODD:
                    new = [json.loads(c.getresponse().read()).get("new", False) for c in connections]
                    if all(new):
                        raise RuntimeError(f"expected a judgement that is sent twice to be new once, got {new}")
            for connection in connections:
                connection.close()
        self.ask("/api/judgements", body)

    def send(self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any], *, cut: bool) -> None:
        """Send a request, or all of it but the last bytes."""
        text = json.dumps({"annotator": self.name} | body).encode()
        connection.putrequest("POST", path)
        for name, value in (("Authorization", f"Bearer {TOKEN}"), ("Content-Type", "application/json")):
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(text)))
        connection.endheaders(text[:-9] if cut else text)

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """The answer; a request that gets none is sent again, and so is one that is told to come again."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                started = time.perf_counter()
                self.send(self.connection, path, body, cut=False)
                answer = self.connection.getresponse()
                text = answer.read()
                if answer.status == 503 and answer.headers["Retry-After"]:
                    self.refused += 1
                elif answer.status != 200:
                    raise RuntimeError(f"expected status 200 of {path}, got {answer.status}: {text[:200]!r}")
                else:
                    self.seconds[path].append(time.perf_counter() - started)
                    return json.loads(text)
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                self.unanswered += 1
                self.connection.close()
                self.connection = self.connect()
            if time.monotonic() > deadline:
                raise RuntimeError(f"expected an answer of {path} within {GIVE_UP_SECONDS:.0f} seconds, got none")
            time.sleep(0.02)


# --- the server and its faults --------------------------------------------------------------------------------------


def serve(folder: Path, port: int) -> None:
    """Serve the labelling page until all is labelled, or until the process is killed."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        run_command(["label", str(folder), "--items", str(folder / "items.jsonl"), "--port", str(port)])


def start(work: Any, *arguments: Any) -> BaseProcess:
    """A process that has everything imported already."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking: whatever threads there are do nothing here
        process.start()
    return process


def prepare(folder: Path, comparisons: int) -> int:
    """Write the items and the token; a free port."""
    items = [{"prompt": f"p{i}", "responses": ["a", "b"]} for i in range(comparisons)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / ".label-token").write_text(TOKEN + "\n")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def served(server: BaseProcess, folder: Path, port: int) -> BaseProcess:
    """The server, started again where it has ended, as one does that cannot write when it starts."""
    return server if server.is_alive() else start(serve, folder, port)


def kill(server: BaseProcess) -> None:
    """SIGKILL."""
    server.kill()
    server.join()


def lock(folder: Path, seconds: float) -> None:
    """Keep everybody else from writing to the database for so long."""
    other = sqlite3.connect(folder / STORE_FILE, timeout=60, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    time.sleep(seconds)
    other.execute("ROLLBACK")
    other.close()


def fill_disk(server: BaseProcess, seconds: float) -> None:
    """Have every write of the server to a file refused for so long."""
    assert server.pid is not None
    before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    time.sleep(seconds)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)


def torture(folder: Path, settings: Faults) -> Outcome:
    """Label under faults in this folder, and compare what is told with what is stored."""
    rng = random.Random(settings.seed)
    port = prepare(folder, settings.comparisons)
    done = multiprocessing.get_context("fork").Value("i", 0)
    server = start(serve, folder, port)
    lists = [folder / f"client-{i}.jsonl" for i in range(settings.clients)]
    people = []
    for i, path in enumerate(lists):
        client = Client(f"client {i}", port, faults=True, seed=settings.seed + i)
        pause = settings.clients * settings.seconds / settings.comparisons
        people.append(start(client.label, path, done, pause))
    kinds = [*["kill"] * settings.kills, *["lock"] * settings.locks, *["full disk"] * settings.full_disks]
    rng.shuffle(kinds)
    for moment, kind in zip(sorted(rng.randrange(settings.comparisons) for _ in kinds), kinds, strict=True):
        while done.value < moment and any(process.is_alive() for process in people):
            server = served(server, folder, port)
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)
        lasts = rng.random() * settings.longest
        if kind == "kill":
            kill(server)
            server = start(serve, folder, port)
        elif kind == "lock":
            lock(folder, lasts)
        elif server.is_alive():
            fill_disk(server, lasts)
    while any(process.is_alive() for process in people):
        server = served(server, folder, port)
        time.sleep(0.01)
    kill(server)
    check_ends(people)
    return compare(folder, lists)


def check_ends(people: list[BaseProcess]) -> None:
    """Raise a RuntimeError where a client has failed."""
    if failed := [process.name for process in people if process.exitcode != 0]:
        raise RuntimeError(f"expected every client to come to its end, got failures of {', '.join(failed)}")


def compare(folder: Path, lists: list[Path]) -> Outcome:
    """The clients' own lists against the log."""
    told = [json.loads(line) for file in lists for line in file.read_text().splitlines()]
    with contextlib.redirect_stdout(None):
        run_command(["preferences", "export", str(folder), str(folder / "log.jsonl"), "--log"])
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    stored = {
        judgement["id"]: (judgement["item"], judgement["shown"].index(judgement["value"][0])) for judgement in log
    }
    doubled = len(log) - len(stored) + sum(count - 1 for count in Counter(j["item"] for j in log).values())
    lost = sum(identity not in stored for identity, _, _ in told)
    wrong = sum(identity in stored and stored[identity] != (item, place) for identity, item, place in told)
    counts = [json.loads(file.with_suffix(".json").read_text()) for file in lists]
    refused, unanswered = (sum(count[name] for count in counts) for name in ("refused", "unanswered"))
    return Outcome(len(told), len(log), lost, doubled, wrong, refused, unanswered)


# --- how long it takes ----------------------------------------------------------------------------------------------


def label_beforehand(folder: Path, share: float, annotators: int) -> None:
    """Judge the first items, by so many annotators in turn, without the page."""
    with LabelStore(folder / STORE_FILE) as store:
        (batch,) = store.batches()
        items = store.items(batch)
        said = {judgement.item for judgement in store.judgements(batch)}
        store.record_all(
            [
                Judgement(f"before {item.id}", item.id, f"client {item.id % annotators}", "chosen", (0,), 1.0)
                for item in items[: int(share * len(items))]
                if item.id not in said
            ]
        )


def measure(folder: Path, settings: Leases) -> None:
    """Print how long leases and judgements take, as a table."""
    port = prepare(folder, settings.items)
    done = multiprocessing.get_context("fork").Value("i", 0)
    print(f"{settings.items:,} comparisons, {settings.clients} clients; milliseconds: median, 99 %, highest")
    print(f"{'labels before':>14} {'leases':>24} {'judgements':>24}")
    lists = [folder / f"client-{i}.jsonl" for i in range(settings.clients)]
    for turn, share in enumerate((0.0, 0.5, 0.9)):
        if share:
            label_beforehand(folder, share, settings.clients)
        server = start(serve, folder, port)
        people = []
        for i, path in enumerate(lists):
            seed = settings.seed + i + turn * settings.clients  # no id of a judgement comes again
            client = Client(f"client {i}", port, faults=False, seed=seed)
            people.append(start(client.label, path, done, 0.0, settings.judgements // settings.clients))
        for process in people:
            process.join()
        kill(server)
        check_ends(people)
        found = [json.loads(path.with_suffix(".json").read_text())["seconds"] for path in lists]
        cells = []
        for path in ("/api/lease", "/api/judgements"):
            spent = 1000 * np.concatenate([each[path][5:] for each in found])
            cells.append(f"{np.median(spent):7.1f} {np.quantile(spent, 0.99):7.1f} {spent.max():7.1f}")
        print(f"{int(share * settings.items):>14,} {cells[0]:>24} {cells[1]:>24}", flush=True)


def main() -> None:
    settings = tyro.cli(Faults | Leases, description=__doc__)  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(settings, Leases):
            measure(Path(folder), settings)
            return
        began = time.monotonic()
        outcome = torture(Path(folder), settings)
        print(f"seed {settings.seed}, {settings.clients} clients, {time.monotonic() - began:.0f} seconds")
        for name, value in outcome._asdict().items():
            print(f"{name:>14} {value:,}")
        if outcome[:5] != (settings.comparisons, settings.comparisons, 0, 0, 0):
            raise SystemExit(f"expected {settings.comparisons:,} judgements, each stored once, got {outcome}")


if __name__ == "__main__":
    main()
