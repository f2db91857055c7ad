"""The store of judgements: nothing is lost, nothing doubled, nothing removed; items go to whom they should."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sqlite3
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from rlhf_gym.labeling.agreement import agreement, opinions_of
from rlhf_gym.labeling.labels import add_preferences, labelled_preferences, write_log
from rlhf_gym.labeling.store import ConflictError, Item, Judgement, LabelStore, comparisons
from rlhf_gym.lm import Message
from rlhf_gym.preferences import (
    Candidate,
    CandidatePair,
    Preference,
    pairs_from_ranking,
    read_preferences,
    write_preferences,
)

BATCH = "round 1"


def pairs(count: int) -> list[CandidatePair]:
    return [CandidatePair(Candidate(f"p{i}", f"a{i}", "A"), Candidate(f"p{i}", f"b{i}", "B")) for i in range(count)]


@pytest.fixture
def store(tmp_path: Path):
    with LabelStore(tmp_path / "labels.sqlite") as store:
        yield store


def chosen(identity: str, item: int, annotator: str = "ada", place: int = 0, **more) -> Judgement:
    return Judgement(identity, item, annotator, "chosen", (place,), **more)


def test_items_are_added_once_and_come_back_as_they_went_in(store: LabelStore) -> None:
    items = comparisons(pairs(5), batch=BATCH, round=1, labels=2)
    assert store.add(items) == 5
    assert store.add([*items, *comparisons(pairs(6)[5:], batch=BATCH, round=1)]) == 1
    assert [replace(item, id=0) for item in store.items(BATCH)][:5] == items
    assert store.batches() == [BATCH] and store.items("other") == []
    with LabelStore(store.path) as again:
        assert again.name == store.name and again.items() == store.items()


def test_counts_are_kept_of_few_names_and_those_of_others_are_counted_anew(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_gym.labeling.store._MOST_OWN", 3)
    store.add(comparisons(pairs(4), batch=BATCH, labels=9))
    (first, *_) = store.items(BATCH)
    for number in range(8):
        name = f"ada {number}"
        store.lease(name, BATCH, count=1)
        store.record(chosen(f"j{number}", first.id, name))
    assert len(store._own) == 3
    for number in range(8):
        (assignment,) = store.lease(f"ada {number}", BATCH, count=1)
        assert assignment.item.id != first.id and store.progress(BATCH, f"ada {number}").mine == 1


def test_a_batch_made_anew_keeps_what_was_said(store: LabelStore) -> None:
    old, new = comparisons(pairs(4), batch=BATCH), comparisons(pairs(6)[2:], batch=BATCH, labels=2)
    store.add(old)
    for number in (1, 3):
        store.record(chosen(f"{number}", number))
    assert store.add(new, exclusive=True) == 2
    assert [i.prompt for i in store.items(BATCH)] == ["p2", "p3", "p4", "p5"]
    assert {i.labels_wanted for i in store.items(BATCH)} == {2} and store.progress(BATCH).labels == 1
    assert [j.id for j in store.judgements(f"{BATCH}, earlier")] == ["1"]
    assert store.add(old, exclusive=True) == 0 and store.progress(BATCH)[:3] == (4, 6, 2)
    store.check()


@pytest.mark.parametrize("count", [1, 7, 8, 40, 41])
def test_left_and_right_are_exactly_balanced(store: LabelStore, count: int) -> None:
    store.add(comparisons(pairs(count), batch=BATCH))
    turned = [lent.shown[0] for lent in store.lease("ada", BATCH, count=count)]
    assert abs(2 * sum(turned) - count) == count % 2
    for start in range(0, count - count % 8, 8):
        assert sum(turned[start : start + 8]) == 4


def test_the_second_annotator_sees_it_the_other_way_round(store: LabelStore) -> None:
    store.add(comparisons(pairs(3), batch=BATCH, labels=2))
    ours, theirs = (store.lease(who, BATCH, count=3) for who in ("ada", "bob"))
    assert [a.item for a in ours] == [a.item for a in theirs]
    assert [a.shown for a in ours] == [b.shown[::-1] for b in theirs]
    assert store.lease("ada", BATCH, count=3) == ours  # and again the same way


def test_two_annotators_get_different_items(store: LabelStore) -> None:
    store.add(comparisons(pairs(5), batch=BATCH))
    first = [a.item.id for a in store.lease("ada", BATCH, count=3)]
    second = [a.item.id for a in store.lease("bob", BATCH, count=3)]
    assert (first, second) == ([1, 2, 3], [4, 5])
    assert store.lease("eve", BATCH) == [] and store.has_open("eve", BATCH)
    assert [a.item.id for a in store.lease("ada", BATCH, count=3, exclude=[1, 2])] == [3]


def test_a_lease_runs_out_and_a_late_label_counts_all_the_same(store: LabelStore) -> None:
    store.add(comparisons(pairs(1), batch=BATCH))
    store.lease("ada", BATCH, seconds=0)
    assert [a.item.id for a in store.lease("bob", BATCH)] == [1]
    assert store.record(chosen("b", 1, "bob")) and store.record(chosen("a", 1, "ada"))
    assert store.progress(BATCH, "ada")[:4] == (1, 1, 2, 1)


def test_a_skipped_item_goes_to_others(store: LabelStore) -> None:
    store.add(comparisons(pairs(2), batch=BATCH))
    store.record(Judgement("s", 1, "ada", "skip"))
    assert [a.item.id for a in store.lease("ada", BATCH, count=5, seconds=0)] == [2]
    assert [a.item.id for a in store.lease("bob", BATCH, count=5)] == [1, 2]
    assert store.progress(BATCH, "ada").skipped == 1 and store.progress(BATCH, "ada").labels == 0


def test_sending_again_does_not_double(store: LabelStore) -> None:
    store.add(comparisons(pairs(2), batch=BATCH))
    assert store.record(chosen("x", 1, seconds=2.0)) is True
    assert store.record(chosen("x", 1, seconds=3.0)) is False  # the clock is not what makes it the same
    with pytest.raises(ConflictError, match="'x', which is another judgement's"):
        store.record(chosen("x", 1, place=1))
    assert len(store.log()) == 1


def test_undo_is_a_record_and_the_last_word_counts(store: LabelStore) -> None:
    store.add(comparisons(pairs(2), batch=BATCH))
    store.record(chosen("1", 1))
    store.record(chosen("2", 2))
    last = store.last("ada", BATCH)
    assert last is not None and last.id == "2"
    store.record(Judgement("3", 2, "ada", "undo"))
    assert [j.id for j in store.judgements()] == ["1"] and store.progress(BATCH).labels == 1
    assert [a.item.id for a in store.lease("ada", BATCH, count=2)] == [2]
    store.record(Judgement("4", 2, "ada", "tie"))
    store.record(chosen("5", 1, place=1))
    assert [(j.id, j.action) for j in store.judgements()] == [("4", "tie"), ("5", "chosen")]
    assert [j.id for j in store.log()] == ["1", "2", "3", "4", "5"]
    with pytest.raises(ConflictError, match="expected a judgement to undo, got none of 'bob'"):
        store.record(Judgement("6", 1, "bob", "undo"))
    store.check()


def test_the_log_cannot_be_changed(store: LabelStore) -> None:
    store.add(comparisons(pairs(1), batch=BATCH))
    store.record(chosen("1", 1))
    database = sqlite3.connect(store.path)
    for statement in ("DELETE FROM judgements", "UPDATE judgements SET annotator = 'eve'"):
        with pytest.raises(sqlite3.IntegrityError, match="judgements are never"):
            database.execute(statement)
    database.close()


@pytest.mark.parametrize(
    ("kind", "judgement", "message"),
    [
        ("comparison", chosen("1", 1, place=2), "the index of the chosen one of 2 responses, got"),
        ("comparison", Judgement("1", 1, "ada", "ranking", (1, 2)), "one of chosen, tie, skip, undo for a comparison"),
        ("comparison", Judgement("1", 1, "ada", "tie", (1,)), "no value with 'tie'"),
        ("comparison", chosen("1", 1, " "), "a name of 1 to 60|annotator's name of 1 to 60"),
        ("comparison", chosen("1", 1, "a\nb"), "printable"),
        ("comparison", chosen("", 1), "id of 1 to 100"),
        ("comparison", chosen("1", 1, shown=(0, 0)), "an order of 2 responses"),
        ("comparison", chosen("1", 1, seconds=-1), "seconds in"),
        ("comparison", chosen("1", 1, reason="x" * 4001), "at most 4000 characters, got 4001"),
        ("comparison", chosen("1", 1, reason="\ud800"), "a reason that is text"),
        ("ranking", Judgement("1", 1, "ada", "ranking", (0, 1, 2)), "3 ranks from 1 to 3"),
        ("ranking", Judgement("1", 1, "ada", "ranking", (1, 2)), "3 ranks from 1 to 3"),
        ("rating", Judgement("1", 1, "ada", "ratings", (1, 2, float("nan"))), "3 finite ratings"),
    ],
)
def test_what_cannot_be_said_is_refused(store: LabelStore, kind, judgement: Judgement, message: str) -> None:
    k = 2 if kind == "comparison" else 3
    store.add([Item(kind, tuple(Candidate("p", f"r{i}") for i in range(k)), BATCH)])
    with pytest.raises(ValueError, match=message):
        store.record(judgement)
    assert store.log() == []
    with pytest.raises(LookupError, match="number of an item, got 7"):
        store.record(chosen("1", 7))


def test_other_files_are_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database" * 100)
    with pytest.raises(ValueError, match="expected a store of judgements"):
        LabelStore(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(ValueError, match="version 0"):
        LabelStore(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        LabelStore(tmp_path / "nowhere" / "labels.sqlite")


def test_judgements_become_preferences(store: LabelStore, tmp_path: Path) -> None:
    store.add(
        [
            *comparisons(pairs(3), batch=BATCH, round=2),
            Item("ranking", tuple(Candidate("q", r, r.upper()) for r in "xyz"), BATCH, 2),
            Item("rating", tuple(Candidate("q", r, r.upper()) for r in "xy"), BATCH, 2),
        ]
    )
    store.record(chosen("1", 1, place=1))
    store.record(Judgement("2", 2, "ada", "tie"))
    store.record(Judgement("3", 3, "ada", "skip"))
    store.record(Judgement("4", 4, "bob", "ranking", (2, 1, 3)))
    store.record(Judgement("5", 5, "bob", "ratings", (3, 3)))
    found = labelled_preferences(store, BATCH)
    assert found.preferences[0] == Preference("p0", "b0", "a0", "ada", 2, chosen_source="B", rejected_source="A")
    ranked = pairs_from_ranking("q", "xyz", [2, 1, 3], annotator="bob")
    assert [replace(p, chosen_source="", rejected_source="", round=0) for p in found.preferences[1:]] == ranked
    assert [(p.chosen_source, p.rejected_source) for p in found.preferences[1:]] == [("Y", "X"), ("X", "Z"), ("Y", "Z")]
    assert (found.judgements, found.ties, found.skips, found.left_out) == (5, 1, 1, 2)
    halves = labelled_preferences(store, BATCH, ties="half").preferences[1:3]
    assert [(p.chosen, p.weight) for p in halves] == [("a1", 0.5), ("b1", 0.5)]
    assert write_log(tmp_path / "log.jsonl", store) == 5


def test_preferences_of_a_file_go_in_once_and_come_out(store: LabelStore) -> None:
    given = [
        Preference("p", "good", "bad", "ada"),
        Preference("q", "bad", "good"),
        Preference("p", "bad", "good", "bob"),
    ]
    assert add_preferences(store, given, "file") == (3, 0)
    assert add_preferences(store, given, "file") == (0, 3)
    out = labelled_preferences(store, "file").preferences
    assert out == [given[0], replace(given[1], annotator="imported"), given[2]]
    assert len(store.items()) == 2
    found = agreement(opinions_of(store.judgements(), store.items()))
    assert found is not None and (found.units, found.raw) == (1, 0)


def test_agreement_of_rankings_is_about_their_pairs(store: LabelStore) -> None:
    store.add([Item("ranking", tuple(Candidate("q", r) for r in "xyz"), BATCH, 0, 2)])
    store.record(Judgement("1", 1, "ada", "ranking", (1, 2, 3)))
    store.record(Judgement("2", 1, "bob", "ranking", (1, 3, 2)))
    found = agreement(opinions_of(store.judgements(), store.items()))
    assert found is not None and (found.annotators, found.units, found.raw) == (2, 3, pytest.approx(2 / 3))
    # Cohen by hand: ada says first, first, first; bob first, first, second: p_o = p_e = 2/3
    assert found.cohen == pytest.approx(0)


def _label(path: str, name: str, sender: Connection) -> None:
    """Label without end, saying what is stored; runs in a process that is killed."""
    with LabelStore(path) as store:
        sender.send("ready")
        for count in range(100_000):
            found = store.lease(name, BATCH)
            if not found:
                break
            identity = f"{name}-{count}-{time.time_ns()}"
            sender.send(("trying", identity))
            store.record(Judgement(identity, found[0].item.id, name, "tie"))
            sender.send(("stored", identity))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_was_stored_survives_a_kill_of_two_annotators(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as store:  # closed before the fork: SQLite's connections must not cross one
        store.add(comparisons(pairs(2000), batch=BATCH))
    context = multiprocessing.get_context("fork")
    ends, processes = [], []
    for name in ("ada", "bob"):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_label, args=(str(path), name, sender))
        process.start()
        sender.close()
        ends.append(receiver)
        processes.append(process)
    said: list[tuple[str, str]] = []
    for receiver in ends:
        assert receiver.recv() == "ready"
    deadline = time.monotonic() + 20
    while len(said) < 60 and time.monotonic() < deadline:
        said += [receiver.recv() for receiver in ends]
    for process in processes:
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    for receiver in ends:
        try:
            while True:
                said.append(receiver.recv())
        except EOFError:
            receiver.close()
    with LabelStore(path) as again:
        again.check()
        log = again.log()
    ids = {j.id for j in log}
    assert {i for what, i in said if what == "stored"} <= ids <= {i for what, i in said if what == "trying"}
    assert len(said) >= 60 and max(Counter(j.item for j in log).values()) == 1


def test_conversations_stay_messages(store: LabelStore, tmp_path: Path) -> None:
    """Into the store, out as preferences and as the log, through a file and back in: the same messages."""
    asked = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hey"), Message("user", "?"))
    store.add(comparisons([CandidatePair(Candidate(asked, "good", "A"), Candidate(asked, "bad", "B"))], batch=BATCH))
    store.record(chosen("1", 1))
    assert store.items()[0].prompt == asked
    exported = labelled_preferences(store).preferences
    assert exported == [Preference(asked, "good", "bad", "ada", chosen_source="A", rejected_source="B")]
    write_preferences(tmp_path / "pairs.jsonl", exported)
    read = read_preferences(tmp_path / "pairs.jsonl")
    assert read == exported
    assert add_preferences(store, read, "again") == (1, 0) and add_preferences(store, read, "again") == (0, 1)
    write_log(tmp_path / "log.jsonl", store)
    (record, _) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert record["prompt"] == [vars(message) for message in asked]


def test_dialogues_stay_messages(store: LabelStore, tmp_path: Path) -> None:
    """Into the store, out as preferences and as the log, through a file and back in, also beside a text."""
    asked = (Message("user", "Hi"),)
    long = (Message("assistant", "Hey"), Message("tool", "42"), Message("assistant", "Bye"))
    other = (*long[:2], Message("assistant", "No"))
    items = comparisons([CandidatePair(Candidate(asked, long, "A"), Candidate(asked, other, "B"))], batch=BATCH)
    items.append(Item("ranking", tuple(Candidate(asked, r, str(r)) for r in (long, "a text", other)), BATCH))
    assert store.add(items) == 2 and store.add(items) == 0
    assert [item.responses for item in store.items()] == [(long, other), (long, "a text", other)]
    store.record(chosen("1", 1))
    store.record(Judgement("2", 2, "ada", "ranking", (2, 1, 3)))
    exported = labelled_preferences(store).preferences
    assert [(p.chosen, p.rejected) for p in exported] == [
        (long, other),
        ("a text", long),
        (long, other),
        ("a text", other),
    ]
    write_preferences(tmp_path / "pairs.jsonl", exported)
    read = read_preferences(tmp_path / "pairs.jsonl")
    assert read == exported
    assert add_preferences(store, read, "again") == (4, 0) and add_preferences(store, read, "again") == (0, 4)
    write_log(tmp_path / "log.jsonl", store)
    record = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert record["responses"] == [[vars(message) for message in side] for side in (long, other)]
