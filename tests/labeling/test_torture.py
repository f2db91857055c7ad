"""10,000 comparisons labelled over HTTP while the server is killed ten times, and the same scaled down.

Four clients, each a process, ask the server of `rlhf-gym label` for pairs and send judgements; one in fifty is sent
twice on purpose. The server is killed (SIGKILL) at random moments and started again; a client that gets no answer sends
the same judgement again. At the end each client's own list of acknowledged judgements is compared with the log that
`rlhf-gym preferences export --log` writes: none may be lost, none doubled, none about another pair or the other side.
Left out: a power cut, which only a machine of its own can show (the store commits with synchronous=FULL).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import os
import random
import socket
import time
import uuid
import warnings
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlhf_gym.cli import main as rlhf_gym

TOKEN = "a-token-for-this-alone"
GIVE_UP_SECONDS = 120.0


class Outcome(NamedTuple):
    """The outcome of the test, in judgements."""

    acknowledged: int
    """Those that clients were told are stored."""
    stored: int
    """Those in the log."""
    lost: int
    """Those that were acknowledged and are not in the log."""
    doubled: int
    """Those in the log more than once, by their ids or by their items."""
    wrong: int
    """Those that were stored for another pair or the other side."""


def serve(folder: Path, port: int) -> None:
    """Serve the labelling page until all is labelled, or until the process is killed."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        rlhf_gym(["label", str(folder), "--items", str(folder / "items.jsonl"), "--port", str(port)])


def client(name: str, port: int, list_path: Path, done: Any, seed: int) -> None:
    """Label until nothing is left; a line for each acknowledged judgement goes to a file."""
    rng = random.Random(seed)
    with list_path.open("w") as file:
        while (got := ask(port, "/api/lease", {"annotator": name, "count": 5}))["items"] or got["waiting"]:
            for item in got["items"]:
                place = rng.randrange(2)
                identity = uuid.UUID(int=rng.getrandbits(128)).hex
                body = {"annotator": name, "id": identity, "item": item["id"], "action": "chosen", "value": [place]}
                for _ in range(2 if rng.random() < 0.02 else 1):
                    ask(port, "/api/judgements", body)
                file.write(json.dumps([identity, item["id"], place]) + "\n")
                file.flush()
                with done.get_lock():
                    done.value += 1
            time.sleep(0 if got["items"] else 0.02)


def ask(port: int, path: str, body: dict[str, Any]) -> Any:
    """The answer; a request that gets none is sent again."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"expected status 200 of {path}, got {answer.status}: {text[:200]!r}")
            return json.loads(text)
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        finally:
            connection.close()


def torture(folder: Path, comparisons: int, kills: int, clients: int, seed: int = 0) -> Outcome:
    """Run the test in this folder."""
    rng = random.Random(seed)
    items = [{"prompt": f"p{i}", "responses": ["a", "b"]} for i in range(comparisons)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / ".label-token").write_text(TOKEN + "\n")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    done = multiprocessing.get_context("fork").Value("i", 0)
    server = start(serve, folder, port)
    lists = [folder / f"client-{i}.jsonl" for i in range(clients)]
    people = [start(client, f"client {i}", port, lists[i], done, seed + i) for i in range(clients)]
    for moment in sorted(rng.randrange(comparisons) for _ in range(kills)):
        while done.value < moment and any(process.is_alive() for process in people):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)
        server.kill()
        server.join()
        server = start(serve, folder, port)
    for process in people:
        process.join()
    server.kill()
    server.join()
    failed = [process.name for process in people if process.exitcode != 0]
    if failed:
        raise RuntimeError(f"expected every client to come to its end, got failures of {', '.join(failed)}")
    return compare(folder, lists)


def start(work: Any, *arguments: Any) -> BaseProcess:
    """A process that has everything imported already."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking: whatever threads there are do nothing here
        process.start()
    return process


def compare(folder: Path, lists: list[Path]) -> Outcome:
    """The clients' own lists against the log."""
    told = [json.loads(line) for file in lists for line in file.read_text().splitlines()]
    with contextlib.redirect_stdout(None):
        rlhf_gym(["preferences", "export", str(folder), str(folder / "log.jsonl"), "--log"])
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    stored = {
        judgement["id"]: (judgement["item"], judgement["shown"].index(judgement["value"][0])) for judgement in log
    }
    doubled = len(log) - len(stored) + sum(count - 1 for count in Counter(j["item"] for j in log).values())
    lost = sum(identity not in stored for identity, _, _ in told)
    wrong = sum(identity in stored and stored[identity] != (item, place) for identity, item, place in told)
    return Outcome(len(told), len(log), lost, doubled, wrong)


@pytest.mark.parametrize(
    ("comparisons", "kills", "clients"), [(200, 2, 3), pytest.param(10_000, 10, 4, marks=pytest.mark.slow)]
)
def test_nothing_is_lost_or_doubled(tmp_path: Path, comparisons: int, kills: int, clients: int) -> None:
    assert torture(tmp_path, comparisons, kills, clients) == (comparisons, comparisons, 0, 0, 0)
    # and the comparison itself can tell: a list of one more
    extra = tmp_path / "client-9.jsonl"
    extra.write_text('["never-stored", 1, 0]\n')
    assert compare(tmp_path, [extra]).lost == 1
