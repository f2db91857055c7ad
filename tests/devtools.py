"""A real Chromium, headless, driven over the DevTools protocol with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {"Enter": 13, "Backspace": 8, "Escape": 27, "Tab": 9, "End": 35, "ArrowLeft": 37, "ArrowRight": 39}


def find_chromium() -> str | None:
    """Where Chromium is; None where it is not."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Connection:
    """To the browser, or to one of its tabs."""

    def __init__(self, url: str) -> None:
        host, _, path = url.removeprefix("ws://").partition("/")
        name, _, port = host.partition(":")
        self._socket = socket.create_connection((name, int(port)), timeout=20)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._file = self._socket.makefile("rb")
        assert b"101" in self._file.readline()
        while self._file.readline().strip():
            pass
        self._count = 0
        self.problems: list[str] = []

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and wait for its answer; errors on the page are kept in `problems`."""
        self._count += 1
        self._send(json.dumps({"id": self._count, "method": method, "params": parameters}).encode())
        while True:
            message = json.loads(self._receive())
            if message.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(message["params"]["exceptionDetails"])[:500])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.problems.append(message["params"]["entry"]["text"])
            if message.get("id") == self._count:
                assert "error" not in message, message["error"]
                return message["result"]

    def _send(self, data: bytes) -> None:
        size, mask = len(data), os.urandom(4)
        length = (
            bytes([0x80 | size])
            if size < 126
            else bytes([0xFE]) + size.to_bytes(2, "big")
            if size < 65536
            else bytes([0xFF]) + size.to_bytes(8, "big")
        )
        self._socket.sendall(b"\x81" + length + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))

    def _receive(self) -> bytes:
        data = b""
        while True:
            first, second = self._file.read(2)
            size = second & 0x7F
            if size >= 126:
                size = int.from_bytes(self._file.read(2 if size == 126 else 8), "big")
            part = self._file.read(size)
            if first & 0x0F in (0, 1, 2):
                data += part
                if first & 0x80:
                    return data

    def close(self) -> None:
        """Let go of it."""
        self._file.close()
        self._socket.close()


class Tab(Connection):
    """One tab: evaluates JavaScript, presses keys, takes pictures."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        for domain in ("Runtime", "Log", "Page"):
            self(f"{domain}.enable")

    def evaluate(self, expression: str) -> Any:
        """What an expression amounts to; promises are waited for."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 40.0) -> Any:
        """Until an expression is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, (
                f"{expression} did not come true: {self.evaluate('document.body.innerText')}"
            )
            time.sleep(0.02)
        return value

    def open(self, url: str) -> None:
        """Go to an address."""
        self("Page.navigate", url="about:blank")  # else another #fragment alone would load nothing
        self("Page.navigate", url=url)
        self.wait(
            f"location.href.startsWith({json.dumps(url.partition('#')[0])}) && document.readyState === 'complete'"
        )

    def press(self, key: str) -> None:
        """Press and let go of a key."""
        code = KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        self("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def drag(self, start: str, end: str) -> None:
        """Drag the middle of one element (a selector) a little beyond the middle of another."""
        places = [
            self.evaluate(
                f"(() => {{ const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); "
                "return [box.x + box.width / 2, box.y + box.height / 2] })()"
            )
            for selector in (start, end)
        ]
        (x, y), (_, goal) = places
        goal += 10 if goal > y else -10
        self("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        for step in (0.3, 0.6, 1.0):
            self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y + step * (goal - y), button="left", buttons=1)
        self("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=goal, button="left", clickCount=1)

    def text(self, identity: str) -> str:
        """What an element shows."""
        return self.evaluate(f"document.getElementById({json.dumps(identity)}).innerText")

    def picture(self, path: str | Path, *, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """The page as it looks at that size."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self("Emulation.setEmulatedMedia", features=scheme)
        time.sleep(0.4)
        Path(path).write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))


class Chromium:
    """A browser; each profile of its tabs is a person's of their own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.tabs: list[Tab] = []
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/version", timeout=10) as answer:
            self._browser = Connection(json.load(answer)["webSocketDebuggerUrl"])

    def tab(self) -> Tab:
        """A new tab with storage of its own."""
        context = self._browser("Target.createBrowserContext")["browserContextId"]
        target = self._browser("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        tab = Tab(f"ws://127.0.0.1:{self.port}/devtools/page/{target}")
        self.tabs.append(tab)
        return tab

    def close(self) -> None:
        """Let go of all connections."""
        for tab in self.tabs:
            tab.close()
        self._browser.close()


@contextmanager
def chromium() -> Iterator[Chromium]:
    """Start a browser; it is gone at the end."""
    program = find_chromium()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--hide-scrollbars",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "about:blank",
        ]
        process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port_file, deadline = Path(folder) / "DevToolsActivePort", time.monotonic() + 30
            while not (port_file.is_file() and "\n" in port_file.read_text()):
                assert time.monotonic() < deadline, "Chromium did not start"
                time.sleep(0.05)
            browser = Chromium(int(port_file.read_text().splitlines()[0]))
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()
            process.wait(10)
