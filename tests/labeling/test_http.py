"""The page's server: who is let in, what is refused and how it says so, and what it gives away (nothing)."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import sqlite3
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from rlhf_gym.labeling import PageSettings
from rlhf_gym.labeling.app import Session, by_item, create_app
from rlhf_gym.labeling.guard import Guard, Hosts, own_token
from rlhf_gym.labeling.server import (
    DEFAULT_GUIDELINES,
    LabelServer,
    allowed_hosts,
    is_loopback,
    load_token,
    read_guidelines,
)
from rlhf_gym.labeling.store import Item, Judgement, LabelStore, comparisons
from rlhf_gym.preferences import Candidate, CandidatePair
from tests.label_pages import send

TOKEN = "the-token-of-this-test"
BATCH = "round 1"
ID = "0123456789abcdef"
ADDRESS = "http://127.0.0.1:8765"


@pytest.fixture
def store(tmp_path: Path):
    with LabelStore(tmp_path / "labels.sqlite") as store:
        pairs = [
            CandidatePair(Candidate(f"p{i}", f"a{i}", "the secret policy"), Candidate(f"p{i}", f"b{i}", "another"))
            for i in range(6)
        ]
        store.add(comparisons(pairs, batch=BATCH))
        yield store


@pytest.fixture
def client(store: LabelStore):
    session = Session(store, BATCH, TOKEN, title="<i>run</i>", guidelines="Be kind.", target=4)
    with TestClient(create_app(session), base_url=ADDRESS, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


def lease(client: TestClient, **more) -> dict:
    answer = client.post("/api/lease", json={"annotator": "ada"} | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def judge(client: TestClient, **more):
    body = {"annotator": "ada", "id": ID, "item": 1, "action": "chosen", "value": [0], "seconds": 2.5}
    return client.post("/api/judgements", json=body | more)


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/cards.js", "/outbox.js", "/icon.svg"])
def test_every_page_is_there_for_all_and_says_what_browsers_must_not_do(client: TestClient, path: str) -> None:
    answer = client.get(path, headers={"Authorization": ""})
    assert answer.status_code == 200 and answer.content
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in answer.headers and TOKEN not in answer.text
    for marker in ("http://", "https://", "onclick=", "<style", "style="):  # nothing inline, nothing from elsewhere
        assert marker not in answer.text.replace("http://www.w3.org/2000/svg", "")


def test_no_script_of_the_page_sets_markup() -> None:
    folder = Path(__file__).resolve().parents[2] / "rlhf_gym" / "labeling" / "static"
    for path in folder.glob("*.js"):
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert word not in path.read_text(), (path.name, word)


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer ", f"Bearer {TOKEN}x"])
def test_without_the_token_nothing_is_told(client: TestClient, store: LabelStore, given: str | None) -> None:
    client.headers.pop("Authorization")
    headers = {} if given is None else {"Authorization": given}
    for method, path, body in (
        ("GET", "/api/session", None),
        ("POST", "/api/lease", {"annotator": "a"}),
        ("POST", "/api/judgements", {}),
        ("GET", "/api/nothing", None),
    ):
        answer = client.request(method, path, json=body, headers=headers)
        assert answer.status_code == 401 and "expected the token" in answer.json()["error"]
    assert store.log() == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8765", 200),
        ("localhost", 200),
        ("LOCALHOST:9", 200),
        ("[::1]:8765", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:8765", 421),
        ("10.0.0.7", 421),
        ("", 421),
    ],
)
def test_only_our_own_hosts(client: TestClient, host: str, status: int) -> None:
    answer = client.get("/api/session", headers={"Host": host})
    assert answer.status_code == status
    if status == 421:
        assert repr(host) in answer.json()["error"] and answer.headers["x-frame-options"] == "DENY"


def test_hosts_where_it_listens_to_all() -> None:
    everywhere = allowed_hosts("0.0.0.0")
    assert everywhere.allow("192.168.1.5:8765") and everywhere.allow(socket.gethostname())
    assert not everywhere.allow("evil.example")
    assert allowed_hosts("192.168.1.5").allow("192.168.1.5:1") and not allowed_hosts("192.168.1.5").allow("10.1.1.1")
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and not is_loopback("0.0.0.0")


@pytest.mark.parametrize(
    ("origin", "status"),
    [(ADDRESS, 200), ("http://evil.example", 403), ("null", 403), ("http://127.0.0.1:9999", 403)],
)
def test_other_sites_cannot_send_for_us(client: TestClient, origin: str, status: int) -> None:
    assert client.post("/api/lease", json={"annotator": "a"}, headers={"Origin": origin}).status_code == status


def test_nothing_tells_who_wrote_what(client: TestClient) -> None:
    got = client.post("/api/lease", json={"annotator": "ada", "count": 6})
    assert "secret" not in got.text and "another" not in got.text
    assert set(got.json()["items"][0]) == {"id", "kind", "prompt", "responses"}


def test_a_judgement_is_stored_by_the_items_own_order(client: TestClient, store: LabelStore) -> None:
    items = lease(client, count=6)["items"]
    for item in items:
        place = item["responses"].index(f"b{item['id'] - 1}")
        assert judge(client, id=f"{ID}-{item['id']}", item=item["id"], value=[place]).json() == {"new": True}
    assert [j.value for j in store.judgements()] == [(1,)] * 6
    assert {j.shown for j in store.judgements()} == {(0, 1), (1, 0)}


def test_sending_again_is_fine_and_something_else_under_the_id_is_not(client: TestClient, store: LabelStore) -> None:
    lease(client, count=2)
    assert [judge(client).json()["new"] for _ in range(3)] == [True, False, False]
    answer = judge(client, action="tie", value=[])
    assert answer.status_code == 409 and "an id of its own" in answer.json()["error"]
    assert len(store.log()) == 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"value": [2]}, 422, "the place of the chosen one of 2 responses, got [2.0]"),
        ({"value": []}, 422, "got []"),
        ({"value": ["x"]}, 422, "expected value.0: "),
        ({"action": "ranking", "value": [1, 2]}, 422, "one of chosen, tie, skip, undo for a comparison, got 'ranking'"),
        ({"action": "burn"}, 422, "got 'burn'"),
        ({"action": "undo"}, 422, "got 'undo'"),
        ({"item": 5}, 409, "an item that was lent to 'ada', got item 5"),
        ({"item": 77}, 409, "got item 77"),
        ({"annotator": "x" * 61}, 422, "expected annotator: "),
        ({"annotator": ""}, 422, "expected annotator: "),
        ({"id": "short"}, 422, "expected id: "),
        ({"seconds": -1}, 422, "got -1"),
        ({"reason": "x" * 5000}, 422, "expected reason: "),
        ({"shown": [0, 1]}, 422, "expected shown: Extra inputs"),
    ],
)
def test_what_is_wrong_is_said(client: TestClient, store: LabelStore, body: dict, status: int, message: str) -> None:
    lease(client, count=1)
    answer = judge(client, **body)
    assert answer.status_code == status and message in answer.json()["error"], answer.text
    assert store.log() == []


def test_bodies_must_be_json_and_small(client: TestClient) -> None:
    wrong = client.post(
        "/api/lease", content="annotator=a", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert wrong.status_code == 415
    large = client.post("/api/lease", json={"annotator": "a" * 70_000})
    assert large.status_code == 413 and "at most 65536 bytes" in large.json()["error"]
    endless = client.post("/api/lease", content=iter([b"{}"]), headers={"Content-Type": "application/json"})
    assert endless.status_code == 411
    assert client.post("/api/lease", content="{", headers={"Content-Type": "application/json"}).status_code == 422


def test_undo_gives_the_item_back(client: TestClient, store: LabelStore) -> None:
    assert client.post("/api/undo", json={"annotator": "ada", "id": "nothing-yet"}).status_code == 409
    first, second = lease(client, count=2)["items"]
    judge(client)
    judge(client, id=f"{ID}2", item=2, reason=" because ")
    for _ in range(2):  # the second time it is the same undo, sent again
        answer = client.post("/api/undo", json={"annotator": "ada", "id": "an-undo-1"}).json()
        assert answer["item"] == second
    assert client.post("/api/undo", json={"annotator": "ada", "id": "an-undo-2", "item": 1}).json()["item"] == first
    assert store.judgements() == [] and [j.action for j in store.log()] == ["chosen", "chosen", "undo", "undo"]
    assert store.log()[1].reason == "because"
    assert [item["id"] for item in lease(client, count=2)["items"]] == [1, 2]


def test_the_target_ends_it_and_what_comes_late_is_kept(client: TestClient, store: LabelStore) -> None:
    lease(client, count=6)
    for i in range(1, 5):
        assert lease(client, count=0)["progress"]["enough"] == 4
        judge(client, id=f"{ID}{i}", item=i)
    got = lease(client, count=3)
    assert got["items"] == [] and not got["waiting"] and got["progress"]["labels"] == 4
    assert judge(client, id=f"{ID}5", item=5).status_code == 200 and len(store.judgements()) == 5


def test_others_have_it_all_is_waiting(client: TestClient) -> None:
    lease(client, count=6)
    got = client.post("/api/lease", json={"annotator": "bob"}).json()
    assert got["items"] == [] and got["waiting"]


def test_about_the_session(client: TestClient, store: LabelStore) -> None:
    about = client.get("/api/session").json()
    told = {"title": "<i>run</i>", "guidelines": "Be kind.", "annotator": ""}
    assert about == {"store": f"{store.name}/{BATCH}"} | told
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404


def test_rankings_and_ratings_by_the_order_shown() -> None:
    assert by_item("ranking", [1, 2, 3], (2, 0, 1)) == (2, 3, 1)  # candidate 2 stood first and is the best
    assert by_item("ratings", [5, 1, 3], (2, 0, 1)) == (1, 3, 5)
    assert by_item("chosen", [1], (1, 0)) == (0,) and by_item("tie", [], (1, 0)) == ()
    with pytest.raises(ValueError, match="3 values, one for each response, got 2"):
        by_item("ranking", [1, 2], (2, 0, 1))


def test_a_ranking_over_http(store: LabelStore) -> None:
    item = Item("ranking", tuple(Candidate("q", text) for text in "abcd"), "ranks")
    store.add([item])
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(create_app(Session(store, "ranks", TOKEN)), base_url=ADDRESS, headers=headers) as client:
        (got,) = lease(client)["items"]
        ranks = ["abcd".index(text) + 1 for text in got["responses"]]
        assert judge(client, item=got["id"], action="ranking", value=ranks).status_code == 200
    assert store.judgements("ranks")[0].value == (1, 2, 3, 4)


def test_the_token_stays_and_is_the_owners_alone(tmp_path: Path) -> None:
    token = load_token(tmp_path)
    assert len(token) >= 32 and load_token(tmp_path) == token
    path = tmp_path / ".label-token"
    assert path.stat().st_mode & 0o077 == 0
    path.write_text("short")
    with pytest.raises(ValueError, match="at least 16 characters"):
        load_token(tmp_path)


def test_guidelines_of_a_file_of_the_folder_or_ours(tmp_path: Path) -> None:
    assert read_guidelines(None, tmp_path) == DEFAULT_GUIDELINES
    (tmp_path / "guidelines.md").write_text("Be kind.")
    assert read_guidelines(None, tmp_path) == "Be kind."
    (tmp_path / "other.md").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        read_guidelines(tmp_path / "other.md", tmp_path)
    with pytest.raises(FileNotFoundError):
        read_guidelines(tmp_path / "none.md", tmp_path)


def test_a_port_in_use_is_said(store: LabelStore) -> None:
    with LabelServer(Session(store, BATCH, TOKEN), port=0) as server:
        assert server.url == f"http://127.0.0.1:{server.port}/#token={TOKEN}" and not server.finished
        with pytest.raises(OSError, match=f"port {server.port}, got: .*Choose another --port"):
            LabelServer(Session(store, BATCH, TOKEN), port=server.port)


def test_everything_skipped_is_the_end(store: LabelStore) -> None:
    session = Session(store, BATCH, TOKEN)
    with LabelServer(session, port=0) as server, TestClient(create_app(session), base_url=ADDRESS) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        for item in lease(client, count=6)["items"]:
            assert not server.finished
            judge(client, id=f"{ID}{item['id']}", item=item["id"], action="skip", value=[])
        assert server.finished and json.loads(client.post("/api/lease", json={"annotator": "ada"}).text)["items"] == []


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of #rrggbb."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_text_has_the_contrast_that_accessibility_asks_for() -> None:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for the borders of fields, in both colour schemes."""
    css = (Path(__file__).resolve().parents[2] / "rlhf_gym" / "labeling" / "static" / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in css.split("* {")[0].split("@media")
    )
    pairs = [(front, back) for front in ("ink", "soft") for back in ("paper", "panel", "wash")]
    pairs += [("warn", "paper"), ("on-accent", "accent"), ("accent", "wash")]
    for scheme in (light, dark):
        for front, back in [*pairs, ("field", "panel"), ("accent", "paper")]:
            bright, dim = sorted((_luminance(scheme[front]), _luminance(scheme[back])), reverse=True)
            needed = 3 if front == "field" else 4.5
            assert (bright + 0.05) / (dim + 0.05) >= needed, (front, back, scheme[front], scheme[back])


# --- what a network does ----------------------------------------------------------------------------------------------


@pytest.fixture
def server(store: LabelStore, monkeypatch):
    monkeypatch.setattr("rlhf_gym.labeling.server._HEAD_SECONDS", 0.5)
    monkeypatch.setattr("rlhf_gym.labeling.guard.BODY_SECONDS", 0.5)
    with LabelServer(Session(store, BATCH, TOKEN)) as server:
        yield server


def head(server: LabelServer, *lines: str) -> bytes:
    start = ["POST /api/lease HTTP/1.1", f"Host: 127.0.0.1:{server.port}", f"Authorization: Bearer {TOKEN}"]
    return "\r\n".join([*start, "Content-Type: application/json", *lines, "", ""]).encode()


def test_connections_that_never_ask_are_closed(server: LabelServer) -> None:
    assert send(server.port) == b""
    assert send(server.port, b"GET / HT") == b""
    assert send(server.port, b"G", b"E", b"T", b" ", b"/", pause=0.2) == b""  # a byte now and then buys no time


def test_a_body_that_does_not_come_is_not_waited_for(server: LabelServer) -> None:
    answer = send(server.port, head(server, "Content-Length: 50"), b'{"annotator"')
    assert b" 408 " in answer and b"got 12 bytes of it" in answer


@pytest.mark.parametrize("length", [["Content-Length: 20"], []], ids=["with a length", "alone"])
def test_a_body_in_chunks_is_refused_whatever_length_it_claims(server: LabelServer, length: list[str]) -> None:
    answer = send(
        server.port, head(server, "Transfer-Encoding: chunked", "Connection: close", *length), b"4\r\nabcd\r\n0\r\n\r\n"
    )
    assert b" 411 " in answer or b" 400 " in answer
    assert b'"items"' not in answer


def test_a_body_longer_than_it_says_is_cut_off(client: TestClient) -> None:
    async def app(scope, receive, send):
        raise AssertionError("the application is not asked")

    sent = []
    parts = [{"type": "http.request", "body": b"x" * 40_000, "more_body": True}] * 3

    async def receive():
        return parts.pop()

    async def collect(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"20")]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    asyncio.run(Guard(app, TOKEN, Hosts())(scope, receive, collect))
    assert sent[0]["status"] == 413 and len(parts) == 1


def test_too_many_connections_are_told_to_come_again(server: LabelServer, monkeypatch) -> None:
    monkeypatch.setattr("rlhf_gym.labeling.server._MOST_CONNECTIONS", 8)
    monkeypatch.setattr("rlhf_gym.labeling.server._HEAD_SECONDS", 30)
    address = ("127.0.0.1", server.port)
    held = [socket.create_connection(address, timeout=10) for _ in range(8)]
    time.sleep(0.2)
    answer = send(server.port)
    assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 2" in answer
    for connection in held:
        connection.close()
    time.sleep(0.2)
    assert b" 401 " in send(server.port, b"GET /api/session HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")


# --- a store in trouble -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["database is locked", "database or disk is full", "disk I/O error"])
def test_a_store_in_trouble_is_tried_again_and_nothing_is_lost(client, store, monkeypatch, problem: str) -> None:
    lease(client)
    execute = LabelStore._execute

    def fail(self, statement, values=()):
        if statement.startswith("INSERT INTO judgements") or (statement == "COMMIT" and problem.endswith("full")):
            raise sqlite3.OperationalError(problem)
        return execute(self, statement, values)

    monkeypatch.setattr(LabelStore, "_execute", fail)
    answer = judge(client)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "2" and problem in answer.json()["error"]
    monkeypatch.undo()
    assert judge(client).json() == {"new": True}
    store.check()
    assert store.progress(BATCH).labels == 1


def test_a_store_that_cannot_be_written_to_is_refused_when_it_is_opened(store: LabelStore, monkeypatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr("sqlite3.connect", lambda path, **more: connect(f"file:{path}?mode=ro", uri=True, **more))
    with pytest.raises(OSError, match=r"expected to be able to write to the store of judgements .*readonly"):
        LabelStore(store.path)


@pytest.mark.parametrize("number", [2**63, -1, 10**30])
def test_numbers_that_the_store_cannot_hold_are_refused(client: TestClient, number: int) -> None:
    assert judge(client, item=number).status_code == 422
    assert client.post("/api/lease", json={"annotator": "ada", "exclude": [number]}).status_code == 422
    assert client.post("/api/undo", json={"annotator": "ada", "id": ID, "item": number}).status_code == 422


def test_totals_follow_what_other_processes_write(store: LabelStore) -> None:
    with LabelStore(store.path) as other:
        assert store.progress(BATCH).labels == other.progress(BATCH).labels == 0
        other.record(Judgement(ID, 1, "bob", "chosen", (0,)))
        assert store.progress(BATCH).labels == 1
        store.record(Judgement(ID[::-1], 2, "ada", "chosen", (0,)))
        store.record(Judgement(ID * 2, 2, "ada", "undo"))
        assert store.progress(BATCH).labels == other.progress(BATCH).labels == 1
        other.add(comparisons([CandidatePair(Candidate("q", "a", "x"), Candidate("q", "b", "y"))], batch=BATCH))
        assert (store.progress(BATCH).items, store.progress(BATCH).wanted) == (7, 7)


# --- annotators with tokens of their own ------------------------------------------------------------------------------


def test_a_token_of_ones_own_lets_in_nobody_else(store: LabelStore) -> None:
    session = Session(store, BATCH, TOKEN, annotators=("ada", "bob"))
    own = own_token(TOKEN, "ada")
    assert own == own_token(TOKEN, "ada") != own_token(TOKEN, "bob")
    with TestClient(create_app(session), base_url=ADDRESS) as client:
        ada = {"Authorization": f"Bearer {own}"}
        assert client.get("/api/session", headers=ada).json()["annotator"] == "ada"
        assert client.get("/api/session", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 401
        assert client.post("/api/lease", json={"annotator": "ada"}, headers=ada).json()["items"]
        for path, body in (
            ("lease", {}),
            ("judgements", {"id": ID, "item": 1, "action": "skip"}),
            ("undo", {"id": ID}),
        ):
            answer = client.post(f"/api/{path}", json={"annotator": "bob"} | body, headers=ada)
            assert answer.status_code == 403 and "expected the annotator 'ada'" in answer.json()["error"]


def test_each_annotator_has_an_address(store: LabelStore) -> None:
    with LabelServer(Session(store, BATCH, TOKEN, annotators=("ada", "bob"))) as server:
        assert list(server.urls) == ["ada", "bob"]
        assert server.urls["bob"].endswith(f"#token={own_token(TOKEN, 'bob')}")
    assert PageSettings(annotators=("ada",)).annotators == ("ada",)
    with pytest.raises(ValueError, match="expected different names"):
        PageSettings(annotators=("ada", "ada"))
    with pytest.raises(ValueError, match="expected a certificate and its key"):
        PageSettings(certificate=Path("a.pem"))


def test_with_a_certificate_the_connection_is_encrypted(store: LabelStore, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(made, check=True, capture_output=True)
    with pytest.raises(FileNotFoundError, match="expected a PEM file"):
        LabelServer(Session(store, BATCH, TOKEN), certificate=tmp_path / "none.pem", key=key)
    with pytest.raises(ValueError, match=r"expected a PEM certificate and its key, got \S*/key.pem and \S*/key.pem"):
        LabelServer(Session(store, BATCH, TOKEN), certificate=key, key=key)
    with LabelServer(Session(store, BATCH, TOKEN), certificate=certificate, key=key) as server:
        assert server.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(certificate))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(f"https://127.0.0.1:{server.port}/api/session", headers=headers)
        with urllib.request.urlopen(request, context=trusting, timeout=10) as answer:
            assert json.load(answer)["annotator"] == ""
