"""python scripts/label_torture.py: 10,000 comparisons labelled over HTTP while the server is killed ten times.

Four clients, each a process, ask the labelling page's server for pairs and send judgements; one in fifty is sent twice
on purpose. The server is killed (SIGKILL) at random moments and started again; a client that gets no answer sends the
same judgement again. At the end each client's own list of acknowledged judgements is compared with the database: none
may be lost, none doubled, none about another pair or the other side. Left out: a power cut, which only a machine of its
own can show (the store commits with synchronous=FULL).
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import socket
import sys
import tempfile
import time
import uuid
import warnings
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_gym.labeling.app import Session
from rlhf_gym.labeling.server import LabelServer
from rlhf_gym.labeling.store import LabelStore, comparisons
from rlhf_gym.preferences import Candidate, CandidatePair

BATCH = "torture"
TOKEN = "a-token-for-this-alone"
GIVE_UP_SECONDS = 120.0


class Outcome(NamedTuple):
    """The outcome of the test."""

    acknowledged: int
    """Judgements that clients were told are stored."""
    stored: int
    """Judgements in the database."""
    lost: int
    """Judgements that were acknowledged and are not in the database."""
    doubled: int
    """In the database more than once, by their ids or by their items."""
    wrong: int
    """Judgements that were stored for another pair or the other side."""
    kills: int
    """Times the server was killed."""
    retries: int
    """Requests that got no answer and were sent again."""
    seconds: float
    """How long the test took."""


def serve(path: Path, port: int) -> None:
    """Run the server until it is killed."""
    with LabelStore(path) as store, LabelServer(Session(store, BATCH, TOKEN), port=port):
        time.sleep(24 * 3600)


def client(name: str, port: int, list_path: Path, done: Any, seed: int) -> None:
    """Label until nothing is left; a line for each acknowledged judgement goes to a file."""
    rng = random.Random(seed)
    retries = 0
    with list_path.open("w") as file:
        while True:
            got, again = ask(port, "/api/lease", {"annotator": name, "count": 5})
            retries += again
            if not got["items"]:
                if not got["waiting"]:
                    break
                time.sleep(0.02)
            for item in got["items"]:
                place = rng.randrange(2)
                identity = uuid.UUID(int=rng.getrandbits(128)).hex
                body = {"annotator": name, "id": identity, "item": item["id"], "action": "chosen", "value": [place]}
                for _ in range(2 if rng.random() < 0.02 else 1):
                    _, again = ask(port, "/api/judgements", body)
                    retries += again
                file.write(json.dumps([identity, item["id"], place]) + "\n")
                file.flush()
                with done.get_lock():
                    done.value += 1
        file.write(json.dumps(["retries", retries, 0]) + "\n")


def ask(port: int, path: str, body: dict[str, Any]) -> tuple[Any, int]:
    """The answer, and how many requests got none before it."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    tries = 0
    data = json.dumps(body)
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
            connection.request("POST", path, data, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"expected status 200 of {path}, got {answer.status}: {text[:200]!r}")
            return json.loads(text), tries
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            if time.monotonic() > deadline:
                raise
            tries += 1
            time.sleep(0.02)
        finally:
            connection.close()


def torture(folder: Path, comparisons_wanted: int, kills: int, clients: int, seed: int = 0) -> Outcome:
    """Run the test in this folder."""
    path = folder / "labels.sqlite"
    rng = random.Random(seed)
    pairs = [CandidatePair(Candidate(f"p{i}", "a"), Candidate(f"p{i}", "b")) for i in range(comparisons_wanted)]
    with LabelStore(path) as store:  # closed before any fork: SQLite's connections must not cross one
        store.add(comparisons(pairs, batch=BATCH))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    done = multiprocessing.get_context("fork").Value("i", 0)
    started = time.perf_counter()
    server = start(serve, path, port)
    lists = [folder / f"client-{i}.jsonl" for i in range(clients)]
    people = [start(client, f"client {i}", port, lists[i], done, seed + i) for i in range(clients)]
    for moment in sorted(rng.randrange(comparisons_wanted) for _ in range(kills)):
        while done.value < moment:
            if not any(process.is_alive() for process in people):
                break
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)
        server.kill()
        server.join()
        server = start(serve, path, port)
    for process in people:
        process.join()
    seconds = time.perf_counter() - started
    server.kill()
    server.join()
    failed = [process.name for process in people if process.exitcode != 0]
    if failed:
        raise RuntimeError(f"expected every client to come to its end, got failures of {', '.join(failed)}")
    return compare(path, lists, kills, seconds)


def start(work: Any, *arguments: Any) -> BaseProcess:
    """A process that has everything imported already."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking: whatever threads there are do nothing here
        process.start()
    return process


def compare(path: Path, lists: list[Path], kills: int, seconds: float) -> Outcome:
    """The clients' own lists against the database."""
    told = [json.loads(line) for file in lists for line in file.read_text().splitlines()]
    retries = sum(row[1] for row in told if row[0] == "retries")
    told = [row for row in told if row[0] != "retries"]
    with LabelStore(path) as store:
        store.check()
        log = store.log()
    stored = {j.id: j for j in log}
    doubled = len(log) - len(stored) + sum(count - 1 for count in Counter(j.item for j in log).values())
    wrong = 0
    for identity, item, place in told:
        judgement = stored.get(identity)
        if judgement is not None:
            wrong += (judgement.item, judgement.shown.index(int(judgement.value[0]))) != (item, place)
    lost = sum(identity not in stored for identity, _, _ in told)
    return Outcome(len(told), len(log), lost, doubled, wrong, kills, retries, seconds)


def main() -> int:
    """The command; 1 where something was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = torture(Path(folder), given.comparisons, given.kills, given.clients, given.seed)
    print(
        f"{given.comparisons:,} comparisons, {given.clients} clients, server killed {result.kills} times, "
        f"{result.retries:,} requests without an answer sent again, {result.seconds:.0f} s"
    )
    print(
        f"acknowledged {result.acknowledged:,}, in the database {result.stored:,}: {result.lost} lost, "
        f"{result.doubled} doubled, {result.wrong} wrong"
    )
    whole = result.acknowledged == result.stored == given.comparisons
    return 0 if whole and not (result.lost or result.doubled or result.wrong) else 1


if __name__ == "__main__":
    sys.exit(main())
