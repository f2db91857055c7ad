"""Serving the labelling page from a thread, while the terminal counts the labels."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import threading
import time
from pathlib import Path
from types import TracebackType

import h11
import uvicorn
from rich.console import Console
from rich.markup import escape
from uvicorn.protocols.http.h11_impl import H11Protocol

from rlhf_gym.files import expanded
from rlhf_gym.labeling import PageSettings
from rlhf_gym.labeling.app import Session, create_app
from rlhf_gym.labeling.guard import LOOPBACK, Hosts, own_token
from rlhf_gym.labeling.store import LabelStore, check_name

try:
    import resource
except ImportError:  # a system without such limits
    resource = None  # type: ignore[assignment]

TOKEN_FILE = ".label-token"
"""The token's file in the run's folder; a page that is open stays valid over a restart."""
GUIDELINES_FILE = "guidelines.md"
"""The guidelines' file in the run's folder."""
DEFAULT_GUIDELINES = """\
Prefer the response that you would rather have received if you had written the prompt.

- Does it do what the prompt asks for, or continue it sensibly? This comes first.
- Is what it says right, as far as you can tell, and harmless?
- Is it clear and well written? Longer is not better.

If both are about equally good, choose the tie. Skip what you cannot judge: somebody else will get it.
Judge each pair by itself. The side on which a response stands means nothing.
"""

_DEFAULT_PORT = 8765
_MAX_GUIDELINES = 50_000  # characters
_START_SECONDS = 30.0
_HEAD_SECONDS = 10.0  # how long the head of a request may take
_MOST_CONNECTIONS = 256
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_POLL_SECONDS = 0.25
_THANKS_SECONDS = 2.0  # the page is served on for so long after the last label, so that it can say that all is done


def serve(
    store: LabelStore,
    batch: str,
    folder: Path,
    console: Console,
    *,
    settings: PageSettings | None = None,
    target: int | None = None,
    title: str = "",
) -> None:
    """Serve a batch until it is labelled, or until there are `target` labels. Ctrl-C stops it, and nothing is lost.

    Args:
        store: the store.
        batch: the batch of its items.
        folder: the folder of the token and the guidelines.
        console: where the address and the number of labels are printed.
        settings: where the page is served.
        target: how many labels are enough; None for all that are wanted.
        title: the page's title; the folder's name by default.

    Raises:
        ValueError, OSError: the page cannot be served.
    """
    settings = PageSettings() if settings is None else settings
    session = Session(
        store,
        batch,
        load_token(folder),
        title=title or folder.name,
        guidelines=read_guidelines(settings.guidelines, folder),
        target=target,
        lease_seconds=60 * settings.lease_minutes,
        hosts=allowed_hosts(settings.host),
        annotators=tuple(check_name(name) for name in settings.annotators),
    )
    if not is_loopback(settings.host) and settings.certificate is None:
        console.print(
            f"[bold yellow]warning:[/bold yellow] listening on {escape(settings.host)}: everybody who can reach this "
            "machine and has the token can label, and the connection is not encrypted (--certificate and --key)",
            highlight=False,
            soft_wrap=True,
        )
    tls = {"certificate": settings.certificate, "key": settings.key}
    with LabelServer(session, settings.host, settings.port, **tls) as server:
        for name, url in server.urls.items():
            whose = f" ({name})" if name else ""
            console.print(f"  label here{escape(whose)}: [bold]{escape(url)}[/bold]", highlight=False, soft_wrap=True)
        with console.status("") as status:
            finished = False
            while not finished:
                finished = server.finished
                labels = f"{store.progress(batch).labels:,} of {session.enough:,} labels"
                status.update(f"{labels}; Ctrl-C stops, everything is kept")
                time.sleep(_THANKS_SECONDS if finished else _POLL_SECONDS)


def load_token(folder: Path) -> str:
    """The folder's token; where there is none, a new one is made that only its owner can read."""
    path = folder / TOKEN_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text(encoding="utf-8").strip()
        if len(token) < 16:
            raise ValueError(
                f"expected a token of at least 16 characters in {path}, got {len(token)}: remove the file for a new one"
            ) from None
        return token
    token = secrets.token_urlsafe(24)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(token + "\n")
    return token


def read_guidelines(path: Path | None, folder: Path) -> str:
    """The guidelines of the given file, else of the folder's guidelines.md, else the built-in ones.

    Raises:
        OSError: the given file does not exist.
        ValueError: it is not text, or too long to read.
    """
    if path is None:
        path = folder / GUIDELINES_FILE
        if not path.is_file():
            return DEFAULT_GUIDELINES
    try:
        text = expanded(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {path}, got {error}") from error
    if len(text) > _MAX_GUIDELINES:
        raise ValueError(f"expected guidelines of at most {_MAX_GUIDELINES:,} characters, got {len(text):,} in {path}")
    return text


def allowed_hosts(host: str) -> Hosts:
    """The names under which a browser may ask for a page that listens on `host`."""
    wildcard = host in ("0.0.0.0", "::", "")
    own = {socket.gethostname().lower(), socket.getfqdn().lower()} if wildcard else {host.lower()}
    return Hosts(LOOPBACK | own, any_address=wildcard)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    return host in LOOPBACK or host.startswith("127.")


def _bind(host: str, port: int | None) -> socket.socket:
    """A socket that listens on this port, or on the first free one from 8765 on."""
    ports = range(_DEFAULT_PORT, _DEFAULT_PORT + 20) if port is None else (port,)
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
    asked = f"port {ports[0]}" if len(ports) == 1 else f"port {ports[0]} to {ports[-1]}"
    raise OSError(f"expected to listen on {host}, {asked}, got: {problem.strerror}. Choose another --port") from problem


class Connection(H11Protocol):
    """A connection that is closed where no request comes in time, and refused where there are too many.

    uvicorn has a time limit between requests, and none for a request that never ends.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, or refuse it at once."""
        super().connection_made(transport)
        if len(self.connections) > _most_connections():
            transport.write(_BUSY)
            transport.close()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        """Read on; the time limit ends with the head of a request."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        elif self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time limit."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)


def _most_connections() -> int:
    """Half of the files that the process may have open are left to the store and to the rest of the program."""
    files = 2 * _MOST_CONNECTIONS if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(8, min(_MOST_CONNECTIONS, files // 2))


class LabelServer:
    """The page, served inside a `with` statement."""

    def __init__(
        self,
        session: Session,
        host: str = "127.0.0.1",
        port: int | None = None,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        """Take the port. Nothing is served before the `with`.

        Raises:
            OSError: the port is in use, or there are no such certificate and key.
            ValueError: they are no certificate and its key.
        """
        for path in (certificate, key):
            if path is not None and not path.is_file():
                raise FileNotFoundError(f"expected a PEM file at {path}, got none")
        self.session = session
        self.host = host
        self.scheme = "http" if certificate is None else "https"
        config = uvicorn.Config(
            create_app(session),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=3,
            server_header=False,
            http=Connection,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        try:
            config.load()  # a certificate that cannot be read is an error here, not in the thread
        except ssl.SSLError as error:
            raise ValueError(f"expected a PEM certificate and its key, got {certificate} and {key}: {error}") from error
        self._socket = _bind(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="labelling page", daemon=True
        )

    @property
    def url(self) -> str:
        """The page's address for anybody, or for the first annotator where each has one of their own."""
        return next(iter(self.urls.values()))

    @property
    def urls(self) -> dict[str, str]:
        """The page's address for each annotator by name, or for anybody, under "".

        The token stands behind the #, which browsers do not send.
        """
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        token = self.session.token
        tokens = {name: own_token(token, name) for name in self.session.annotators} or {"": token}
        return {name: f"{self.scheme}://{host}:{self.port}/#token={own}" for name, own in tokens.items()}

    @property
    def finished(self) -> bool:
        """Whether there are as many labels as were asked for, or only skipped items are left."""
        store = self.session.store
        labels = store.progress(self.session.batch).labels
        return labels >= self.session.enough or not store.has_pending(self.session.batch)

    def __enter__(self) -> LabelServer:
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
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
