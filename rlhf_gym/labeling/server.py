"""Serving the page from a thread, while the terminal goes on counting."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

import uvicorn

from rlhf_gym.labeling.app import Session, create_app
from rlhf_gym.labeling.guard import LOOPBACK, Hosts

DEFAULT_PORT = 8765
TOKEN_FILE = ".label-token"
"""In the run's folder, so that a page that is open stays valid over a restart."""
START_SECONDS = 30.0


def load_token(folder: Path) -> str:
    """The folder's token; a new one is made where there is none, readable by its owner alone."""
    path = folder / TOKEN_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text().strip()
        if len(token) < 16:
            raise ValueError(f"expected a token of at least 16 characters in {path}, got {len(token)}: remove the file "
                             "for a new one") from None  # fmt: skip
        return token
    token = secrets.token_urlsafe(24)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


def allowed_hosts(host: str) -> Hosts:
    """Under which names a page that listens on `host` may be asked for."""
    wildcard = host in ("0.0.0.0", "::", "")
    own = {socket.gethostname().lower(), socket.getfqdn().lower()} if wildcard else {host.lower()}
    return Hosts(LOOPBACK | own, any_address=wildcard)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    return host in LOOPBACK or host.startswith("127.")


def bind(host: str, port: int | None) -> socket.socket:
    """A socket to listen on: of that port, or, where None is asked for, the first free one from 8765 on.

    Raises:
        OSError: none is free; the message says how to go on.
    """
    ports = range(DEFAULT_PORT, DEFAULT_PORT + 20) if port is None else (port,)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
        except OSError as error:
            listener.close()
            problem = error
        else:
            listener.listen(128)
            return listener
    raise OSError(f"expected to listen on {host}, port {ports[0]}{f' to {ports[-1]}' if len(ports) > 1 else ''}, got: "
                  f"{problem.strerror}. Choose another --port") from problem  # fmt: skip


class LabelServer:
    """The page, served for as long as the `with` lasts."""

    def __init__(self, session: Session, host: str = "127.0.0.1", port: int | None = None) -> None:
        """Take the port; nothing is served before the `with`."""
        self.session = session
        self.host = host
        self._socket = bind(host, port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(create_app(session), log_level="warning", access_log=False, lifespan="off",
                                ws="none", timeout_graceful_shutdown=3, server_header=False)  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="labelling page", daemon=True
        )

    @property
    def url(self) -> str:
        """Where the page is, token included. It stands behind the #, which browsers keep to themselves."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "[::1]" if self.host == "::" else self.host
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http://{host}:{self.port}/#token={self.session.token}"

    @property
    def finished(self) -> bool:
        """Whether as many labels are there as were asked for, or nothing is left but what was skipped."""
        store, batch = self.session.store, self.session.batch
        return store.progress(batch).labels >= self.session.enough or not store.pending(batch)

    def __enter__(self) -> LabelServer:
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"expected the page to be served on {self.host}:{self.port}, but it did not start")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
