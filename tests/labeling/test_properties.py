"""The store and its page against a model of them that is kept in plain dictionaries, whatever is done in any order."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import rlhf_gym.labeling.store as store_module
from rlhf_gym.labeling.app import Session, create_app
from rlhf_gym.labeling.store import ConflictError, Item, Judgement, LabelStore
from rlhf_gym.preferences import Candidate

BATCH = "round 1"
EARLIER = f"{BATCH}, earlier"
LEASE = 10.0
PEOPLE = ("ada", "bob", "eve")
KINDS = {"comparison": 2, "ranking": 3, "rating": 1}
POOL = [
    (kind, tuple(Candidate(f"{kind} {i}", f"response {j}") for j in range(KINDS[kind])))
    for i in range(2)
    for kind in ("comparison", "ranking", "rating")
]
LABELS = {"comparison": ("chosen", (1,)), "ranking": ("ranking", (2, 1, 3)), "rating": ("ratings", (4.0,))}

people = st.sampled_from(PEOPLE)
places = st.integers(1, len(POOL))
either = st.integers(0, 1)


class Labelling(RuleBasedStateMachine):
    """Two processes' connections to one file, and what they should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1000.0
        self.clock = mock.patch.object(store_module, "time", SimpleNamespace(time=lambda: self.now))
        self.clock.start()
        self.stores = [LabelStore(Path(self.folder.name) / "labels.sqlite") for _ in range(2)]
        self.ids = (f"id {n}" for n in itertools.count())
        self.items: dict[int, Item] = {}
        self.log: list[Judgement] = []
        self.standing: dict[tuple[int, str], Judgement] = {}
        self.leases: dict[tuple[int, str], float] = {}
        self.shown: dict[tuple[int, str], tuple[int, ...]] = {}

    def teardown(self) -> None:
        for store in self.stores:
            store.check()
            store.close()
        self.clock.stop()
        self.folder.cleanup()

    # --- the model ------------------------------------------------------------------------------------------------

    def labels(self, number: int) -> int:
        return sum(item == number and j.action != "skip" for (item, _), j in self.standing.items())

    def lent_to_others(self, number: int, who: str) -> int:
        return sum(i == number and p != who and expires > self.now for (i, p), expires in self.leases.items())

    def open_items(self, who: str, exclude: list[int]) -> list[int]:
        """What this annotator may still judge, whoever has it now."""
        return [
            number
            for number, item in sorted(self.items.items())
            if item.batch == BATCH
            and self.labels(number) < item.labels_wanted
            and number not in exclude
            and (number, who) not in self.standing
        ]

    def lend(self, number: int, who: str, shown: tuple[int, ...]) -> None:
        place = (number, who)
        assert sorted(shown) == list(range(len(self.items[number].candidates)))
        assert self.shown.setdefault(place, shown) == shown  # the same way at every time
        self.leases[place] = self.now + LEASE

    def said(self, judgement: Judgement) -> None:
        """Keep what was recorded."""
        place = (judgement.item, judgement.annotator)
        self.log.append(judgement)
        if judgement.action == "undo":
            del self.standing[place]
        else:
            self.standing[place] = judgement
            if place in self.leases:
                self.leases[place] = 0.0

    # --- what is done ---------------------------------------------------------------------------------------------

    @rule(which=either, chosen=st.sets(places, min_size=1), wanted=st.integers(1, 2), exclusive=st.booleans())
    def add(self, which: int, chosen: set[int], wanted: int, exclusive: bool) -> None:
        items = [Item(*POOL[place - 1], batch=BATCH, labels_wanted=wanted) for place in sorted(chosen)]
        known = {item.candidates: number for number, item in self.items.items()}
        self.stores[which].add(items, exclusive=exclusive)
        if exclusive:
            for item in self.items.values():
                if item.batch == BATCH:
                    object.__setattr__(item, "batch", EARLIER)
        for item in items:
            number = known.get(item.candidates, len(self.items) + 1)
            more = max(wanted, self.items[number].labels_wanted) if number in self.items else wanted
            self.items[number] = Item(item.kind, item.candidates, BATCH, 0, more, number)

    @rule(which=either, who=people, count=st.integers(0, 4), exclude=st.lists(places, max_size=2))
    def lease(self, which: int, who: str, count: int, exclude: list[int]) -> None:
        found = self.stores[which].lease(who, BATCH, count=count, exclude=exclude, seconds=LEASE)
        expected = [
            number
            for number in self.open_items(who, exclude)
            if self.labels(number) + self.lent_to_others(number, who) < self.items[number].labels_wanted
        ]
        assert [a.item for a in found] == [self.items[number] for number in expected[:count]]
        for assignment in found:
            self.lend(assignment.item.id, who, assignment.shown)
        for place, expires in self.leases.items():
            if place[1] == who and expires > self.now:
                self.leases[place] = self.now + LEASE

    @rule(seconds=st.sampled_from([1.0, LEASE, 3 * LEASE]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(which=either, who=people, number=places, skip=st.booleans(), seconds=st.floats(0, 60))
    def judge(self, which: int, who: str, number: int, skip: bool, seconds: float) -> None:
        kind = POOL[number - 1][0] if number not in self.items else self.items[number].kind
        action, value = ("skip", ()) if skip else LABELS[kind]
        judgement = Judgement(next(self.ids), number, who, action, value, seconds, time=self.now)
        if number not in self.items:
            with pytest.raises(LookupError):
                self.stores[which].record(judgement)
            return
        assert self.stores[which].record(judgement)
        self.said(judgement)

    @rule(which=either, who=people, number=places)
    def undo(self, which: int, who: str, number: int) -> None:
        undoing = Judgement(next(self.ids), number, who, "undo", time=self.now)
        if (number, who) not in self.standing:
            with pytest.raises((ConflictError, LookupError)):
                self.stores[which].record(undoing)
            return
        assert self.stores[which].record(undoing)
        self.said(undoing)
        again = self.stores[which].assignment(who, number, seconds=LEASE)
        self.lend(number, who, again.shown)

    @rule(which=either, back=st.integers(1, 5))
    def send_again(self, which: int, back: int) -> None:
        for judgement in self.log[-back:][:1]:
            assert not self.stores[which].record(judgement)

    @rule(which=either, back=st.integers(1, 5), who=people)
    def send_another_under_the_same_id(self, which: int, back: int, who: str) -> None:
        for before in self.log[-back:][:1]:
            other = Judgement(before.id, before.item, who, "skip", reason="another")
            with pytest.raises(ConflictError):
                self.stores[which].record_all([Judgement(next(self.ids), before.item, who, "skip"), other])

    @rule(which=either)
    def open_again(self, which: int) -> None:
        self.stores[which].close()
        self.stores[which] = LabelStore(Path(self.folder.name) / "labels.sqlite")

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        for store in self.stores:
            assert store.log() == self.log
        assert {(j.item, j.annotator): j for j in self.stores[0].judgements()} == self.standing
        assert self.stores[1].items() == [item for _, item in sorted(self.items.items())]

    @invariant()
    def progress_is_what_stands(self) -> None:
        served = {number: item for number, item in self.items.items() if item.batch == BATCH}
        wanted = sum(item.labels_wanted for item in served.values())
        pending = any(
            self.labels(number) < item.labels_wanted
            and (
                self.lent_to_others(number, "")
                or not any(i == number and j.action == "skip" for (i, _), j in self.standing.items())
            )
            for number, item in served.items()
        )
        for store in self.stores:
            assert store.has_pending(BATCH) == pending
            for who in PEOPLE:
                own = [j for (number, p), j in self.standing.items() if p == who and number in served]
                skipped = sum(j.action == "skip" for j in own)
                labels = sum(self.labels(number) for number in served)
                progress = store.progress(BATCH, who)
                assert progress[:5] == (len(served), wanted, labels, len(own) - skipped, skipped)
                assert store.has_open(who, BATCH) == bool(self.open_items(who, []))


Labelling.TestCase.settings = settings(max_examples=settings.default.max_examples // 2)
TestLabelling = Labelling.TestCase


# --- the page's API -----------------------------------------------------------------------------------------------

TOKEN = "the-token-of-this-test"
ROUTES = ("/api/session", "/api/lease", "/api/judgements", "/api/undo", "/api/nothing", "/", "/page.js")
REFUSED = {400, 401, 403, 404, 405, 409, 411, 413, 415, 421, 422}
texts = st.text(st.characters(exclude_categories=()), max_size=5)  # halves of a character among them
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def often(right: st.SearchStrategy, wrong: st.SearchStrategy = junk) -> st.SearchStrategy:
    """What is right in nine of ten cases."""
    return st.integers(0, 9).flatmap(lambda n: wrong if n == 0 else right)


fields = {
    "annotator": often(people),
    "id": often(st.sampled_from([f"an id, {n}" for n in range(30)])),
    "item": often(st.integers(0, 7) | st.sampled_from([2**63 - 1, 2**63, -1])),
    "action": often(st.sampled_from(["chosen", "tie", "ranking", "ratings", "skip"])),
    "value": often(st.lists(st.sampled_from([0, 1, 2, 3, 0.5]), max_size=3)),
    "seconds": often(st.floats(0, 100)),
    "reason": often(texts),
    "count": often(st.integers(0, 6)),
    "exclude": often(st.lists(st.integers(0, 7), max_size=3)),
}
bodies = {
    "/api/lease": st.fixed_dictionaries(
        {"annotator": fields["annotator"]}, optional={k: fields[k] for k in ("count", "exclude")}
    ),
    "/api/judgements": st.fixed_dictionaries(
        {k: fields[k] for k in ("annotator", "id", "item", "action", "value")},
        optional={k: fields[k] for k in ("seconds", "reason")},
    ),
    "/api/undo": st.fixed_dictionaries({k: fields[k] for k in ("annotator", "id")}, optional={"item": fields["item"]}),
}
requests = often(st.sampled_from(ROUTES[1:4]), st.sampled_from(ROUTES)).flatmap(
    lambda path: st.tuples(
        often(st.just("POST"), st.sampled_from(["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])),
        st.just(path),
        often(bodies.get(path, junk), junk | st.binary(max_size=20)),
        st.dictionaries(
            st.sampled_from(["Host", "Origin", "Authorization", "Content-Type", "Content-Length"]),
            st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=10),
            max_size=1,
        ),
    )
)


@given(st.lists(requests, min_size=1, max_size=6))
def test_every_request_is_answered_and_only_judgements_are_kept(sent: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, LabelStore(Path(folder) / "labels.sqlite") as store:
        store.add([Item(*made, batch=BATCH, labels_wanted=2) for made in POOL])
        app = create_app(Session(store, BATCH, TOKEN))
        with TestClient(app, base_url="http://127.0.0.1:8765") as client:  # which raises what the page raises
            for method, path, body, headers in sent:
                before = store.log()
                given = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"} | headers
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                raw = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
                answer = client.request(method, path, content=content, headers=raw)
                log = store.log()
                kept = path in ROUTES[2:4] and answer.status_code == 200 and answer.json()["new"]
                assert log[: len(before)] == before and len(log) == len(before) + kept
                if answer.status_code != 200:
                    assert answer.status_code in REFUSED
                    assert method == "HEAD" or answer.json()["error"].startswith("expected ")
                assert answer.headers["x-frame-options"] == "DENY" and TOKEN not in answer.text
        store.check()
