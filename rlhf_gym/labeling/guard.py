"""Access checks before the labelling page: token, Host and Origin headers, and the size of requests.

The token keeps strangers out. The Host header is checked against DNS rebinding, where a foreign name resolves to this
machine. The Origin header is checked against requests that another site's page makes a browser send.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 65_536
"""The most bytes of a request."""

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


class Guard:
    """ASGI middleware that refuses bad requests and adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp, token: str, hosts: Hosts) -> None:
        """Guard `app`; paths under /api/ need the token."""
        self.app = app
        self.token = token.encode()
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

        refusal = self.refusal(scope["method"], scope["path"], Headers(scope=scope))
        if refusal is None:
            await self.app(scope, receive, send_with_headers)
            return
        status, reason = refusal
        body = json.dumps({"error": reason}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """(status, reason) of a refusal; None for a request that may pass."""
        host = headers.get("host", "")
        origin = headers.get("origin")
        if not self.hosts.allow(host):
            return 421, f"expected one of the hosts {', '.join(sorted(self.hosts.names))}, got {host!r}"
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return 403, f"expected requests of this page alone, got one of {origin!r}"
        if path.startswith("/api/"):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self.token):
                return 401, "expected the token that was printed when the page was started, got none or another one"
        if method in ("POST", "PUT", "PATCH"):
            return _body_refusal(headers)
        return None


def _body_refusal(headers: Headers) -> tuple[int, str] | None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return 415, f"expected application/json, got {kind!r}"
    length = headers.get("content-length", "")
    if not length.isdecimal():
        return 411, f"expected a content-length, got {length!r}"
    if int(length) > MAX_BODY:
        return 413, f"expected at most {MAX_BODY} bytes, got {length}"
    return None
