"""The page's server: who is let in, what is refused and how it says so, and what it gives away (nothing)."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from rlhf_gym.labeling.app import Session, by_item, create_app
from rlhf_gym.labeling.server import (
    DEFAULT_GUIDELINES,
    LabelServer,
    allowed_hosts,
    is_loopback,
    load_token,
    read_guidelines,
)
from rlhf_gym.labeling.store import Item, LabelStore, comparisons
from rlhf_gym.preferences import Candidate, CandidatePair

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
    assert about == {"store": f"{store.name}/{BATCH}", "title": "<i>run</i>", "guidelines": "Be kind."}
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
