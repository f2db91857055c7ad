"""The labelling page in a process of its own that can be killed, and people who answer over HTTP."""

from __future__ import annotations

import json
import multiprocessing
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rlhf_gym.labeling.app import Session
from rlhf_gym.labeling.server import LabelServer
from rlhf_gym.labeling.store import LabelStore

TOKEN = "a-token-for-the-tests"


def serve(path: str, batch: str, port: int, guidelines: str = "- Be kind.", target: int | None = None) -> None:
    """Serve until killed."""
    with LabelStore(path) as store:
        session = Session(store, batch, TOKEN, title="a run", guidelines=guidelines, target=target)
        with LabelServer(session, port=port):
            time.sleep(3600)


class Page:
    """A server's process, forked from one that has imported everything and has no threads."""

    def __init__(self, path: Path, batch: str, port: int, **settings: Any) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.label_pages"])
        self._arguments = (str(path), batch, port)
        self._settings = settings
        self._process: BaseProcess | None = None
        self.port = port
        self.url = f"http://127.0.0.1:{port}/#token={TOKEN}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = self._context.Process(target=serve, args=self._arguments, kwargs=self._settings, daemon=True)
        self._process.start()
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/icon.svg", timeout=5).close()
                return
            except OSError:
                assert self._process.is_alive() and time.monotonic() < deadline, "the page did not start"
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.join()


@contextmanager
def page(path: Path, batch: str, port: int, **settings: Any) -> Iterator[Page]:
    """A page that is served, and killed at the end."""
    served = Page(path, batch, port, **settings)
    served.start()
    try:
        yield served
    finally:
        served.kill()


def ask(port: int, path: str, body: dict[str, Any] | None = None, *, token: str = TOKEN, tries: int = 1) -> Any:
    """The answer of the page's server; asked again as often as `tries` allows while it is away."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    for left in reversed(range(tries)):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except (OSError, json.JSONDecodeError):
            if not left:
                raise
            time.sleep(0.05)
    raise AssertionError("tries must be at least 1")


def send(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What the server answers to these bytes, sent with pauses between them, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # closed by the server
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        answer = b""
        with suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                answer += chunk
    return answer
