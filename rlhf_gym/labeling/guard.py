"""Access checks before the labelling page: token, Host and Origin headers, and the size of requests.

The token keeps strangers out. The Host header is checked against DNS rebinding, where a foreign name resolves to this
machine. The Origin header is checked against requests that another site's page makes a browser send.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 65_536
"""The most bytes of a request."""
BODY_SECONDS = 10.0
"""How long the body of a request may take."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every answer: nothing inline, nothing from other sites, no frame around the page."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Hosts:
    """The names under which a browser may ask for the page."""

    names: frozenset[str] = LOOPBACK
    """Host names and addresses, in lower case."""
    any_address: bool = False
    """Whether any IP address is allowed too, as for a page that listens on all of them. Addresses cannot be rebound."""

    def allow(self, host: str) -> bool:
        """Whether a Host header, with port or without, is allowed."""
        name = host_name(host)
        return name in self.names or (self.any_address and is_address(name))


def host_name(host: str) -> str:
    """The name in a Host header: without port and brackets, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def is_address(name: str) -> bool:
    """Whether the host is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def own_token(token: str, annotator: str) -> str:
    """The token that lets in this annotator alone, made from the page's: the same at every start."""
    return hmac.new(token.encode(), annotator.encode(), hashlib.sha256).hexdigest()[:32]


class Guard:
    """ASGI middleware that refuses bad requests and adds `HEADERS` to every answer.

    Who is let in stands in `scope["state"]["annotator"]`: the name that the token belongs to, or "" for the page's own.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Hosts, annotators: Sequence[str] = ()) -> None:
        """Guard `app`; paths under /api/ need the token, or where there are named annotators one of theirs."""
        self.app = app
        self.tokens = {own_token(token, name).encode(): name for name in annotators} or {token.encode(): ""}
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why it is refused."""
        if scope["type"] != "http":  # lifespan; there are no websockets
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *ours]
            await send(message)

        headers = Headers(scope=scope)
        refusal = self.refusal(scope["method"], scope["path"], headers)
        if refusal is None:
            body = await _read(receive)
            if isinstance(body, bytes):
                scope.setdefault("state", {})["annotator"] = self.annotator(headers) or ""
                await self.app(scope, _replay(body, receive), send_with_headers)
                return
            refusal = body
        status, reason = refusal
        said = json.dumps({"error": reason}).encode()
        answer = [(b"content-type", b"application/json"), (b"content-length", str(len(said)).encode())]
        if status == 401:
            answer.append((b"www-authenticate", b"Bearer"))
        if status in (408, 413):
            answer.append((b"connection", b"close"))  # what is still on its way is not read
        await send_with_headers({"type": "http.response.start", "status": status, "headers": answer})
        await send({"type": "http.response.body", "body": said})

    def annotator(self, headers: Headers) -> str | None:
        """The name whose token the request carries; "" for the page's own token, None without a right one."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        matches = [name for token, name in self.tokens.items() if hmac.compare_digest(given.encode(), token)]
        return matches[0] if matches and scheme.lower() == "bearer" else None

    def refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """(status, reason) of a refusal; None for a request that may pass."""
        host = headers.get("host", "")
        origin = headers.get("origin")
        if not self.hosts.allow(host):
            return 421, f"expected one of the hosts {', '.join(sorted(self.hosts.names))}, got {host!r}"
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return 403, f"expected requests of this page alone, got one of {origin!r}"
        if path.startswith("/api/") and self.annotator(headers) is None:
            return 401, "expected the token that was printed when the page was started, got none or another one"
        if method in ("POST", "PUT", "PATCH"):
            return _body_refusal(headers)
        return None


async def _read(receive: Receive) -> bytes | tuple[int, str]:
    """The body of a request, or why it is refused: what a header says of its length proves nothing."""
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return 400, "expected the whole request, got the end of the connection"
                body += message.get("body", b"")
                if len(body) > MAX_BODY:
                    return 413, f"expected at most {MAX_BODY} bytes, got more"
                if not message.get("more_body", False):
                    return body
    except TimeoutError:
        return 408, f"expected the whole request within {BODY_SECONDS:g} seconds, got {len(body)} bytes of it"


def _replay(body: bytes, receive: Receive) -> Receive:
    """Receive a body that has been read already, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


def _body_refusal(headers: Headers) -> tuple[int, str] | None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return 415, f"expected application/json, got {kind!r}"
    if "transfer-encoding" in headers:
        return 411, f"expected a content-length, got transfer-encoding {headers['transfer-encoding']!r}"
    length = headers.get("content-length", "")
    if not length.isdecimal():
        return 411, f"expected a content-length, got {length!r}"
    if len(length) > 12 or int(length) > MAX_BODY:
        return 413, f"expected at most {MAX_BODY} bytes, got {length}"
    return None
