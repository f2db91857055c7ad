"""The page in a real browser: labelling by keys, undo, a killed server, two people, and text that stays text."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_gym.labeling.store import Item, LabelStore, comparisons
from rlhf_gym.lm import Message
from rlhf_gym.preferences import Candidate, CandidatePair
from tests.devtools import Chromium, Tab, chromium, find_chromium
from tests.label_pages import Page, page

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path to drive")

EVIL = "<img src=x onerror='document.title=\"broken\"'><script>document.title='broken'</script> & <b>bold</b>"
BATCH = "pairs"
RESPONSES = "[...document.querySelectorAll('#cards .card .text')].map((text) => text.textContent)"
ITEM = "document.getElementById('task').dataset.item"
SHOWN = "!document.getElementById('task').hidden"
SAVED = "document.getElementById('saved').innerText === 'Saved'"
THANKS = "document.getElementById('over-title').innerText === 'That is all. Thank you!'"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as started:
        yield started


def fill(path: Path, count: int) -> None:
    """Pairs of which the one by "long" is longer; the first is full of markup."""
    pairs = [
        CandidatePair(
            Candidate(f"prompt {i}", f"a long response, number {i}", "long"),
            Candidate(f"prompt {i}", f"short {i}", "short"),
        )
        for i in range(count)
    ]
    pairs[0] = CandidatePair(Candidate(EVIL, EVIL, "long"), Candidate(EVIL, "short", "short"))
    with LabelStore(path) as store:
        store.add(comparisons(pairs, batch=BATCH))


def enter(browser: Chromium, served: Page, name: str) -> Tab:
    """A tab of a person's own, past the first screen."""
    tab = browser.tab()
    tab.open(served.url)
    tab.wait("!document.getElementById('welcome').hidden")
    tab.evaluate(f"document.getElementById('name').value = {name!r}")
    tab.evaluate("document.querySelector('#enter button').click()")
    tab.wait("!document.getElementById('task').hidden")
    return tab


def answer(tab: Tab) -> None:
    """Prefer the longer one, by its key."""
    tab.wait(SHOWN)
    responses, item = tab.evaluate(RESPONSES), tab.evaluate(ITEM)
    tab.press("1" if len(responses[0]) > len(responses[1]) else "2")
    tab.wait(f"!{SHOWN} || {ITEM} !== {item!r}")


def test_twenty_pairs_by_keys_with_undo_and_a_killed_server(browser: Chromium, tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    fill(path, 20)
    with page(path, BATCH, free_port()) as served:
        tab = enter(browser, served, "ada")
        assert "#" not in tab.evaluate("location.href") and "token" not in tab.evaluate("location.href")
        # what a model wrote is text, and the page has no scripts but its own
        assert EVIL in tab.evaluate(RESPONSES) and tab.text("prompt") == EVIL
        assert tab.evaluate("document.querySelectorAll('#task img, #task script, #task b').length") == 0
        for _ in range(8):
            answer(tab)
        tab.wait(SHOWN)
        undone = tab.text("prompt")
        tab.press("0")
        tab.wait(f"document.getElementById('prompt').innerText !== {undone!r}")
        tab.press("u")
        tab.wait(f"document.getElementById('prompt').innerText === {undone!r}")
        answer(tab)
        tab.wait(SAVED)

        served.kill()  # two more with nobody there to take them
        answer(tab)
        answer(tab)
        tab.wait("document.getElementById('saved').innerText.includes('kept in this browser')")
        with LabelStore(path) as store:
            assert len(store.judgements()) == 9
        served.start()
        tab.wait(SAVED, 40)  # the page tries again after ever longer waits
        tab.wait(SHOWN)  # an item that comes later comes with no reason
        tab.evaluate("document.getElementById('reason').value = 'because'")
        while tab.wait(f"{SHOWN} || {THANKS}") and tab.evaluate(SHOWN):
            answer(tab)
        assert tab.text("count") == "20 of 20"
    with LabelStore(path) as store:
        store.check()
        standing = store.judgements()
        sources = {item.id: [c.source for c in item.candidates] for item in store.items()}
        log = store.log()
    assert len(standing) == 20 and {j.annotator for j in standing} == {"ada"}
    assert [sources[j.item][int(j.value[0])] for j in standing] == ["long"] * 20
    assert [j.action for j in log].count("tie") == [j.action for j in log].count("undo") == 1 and len(log) == 22
    assert [j.reason for j in standing].count("because") == 1
    assert sum(j.shown[0] for j in standing) == 10  # as often on the left as on the right
    assert [p for p in tab.problems if "net::ERR_" not in p and "Failed to fetch" not in p] == []


def test_two_people_at_once_do_not_judge_the_same(browser: Chromium, tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    fill(path, 12)
    with page(path, BATCH, free_port()) as served:
        tabs = [enter(browser, served, name) for name in ("ada", "bob")]
        for _ in range(4):
            for tab in tabs:
                answer(tab)
        for tab in tabs:
            tab.wait(SAVED)
    with LabelStore(path) as store:
        said = store.judgements()
    assert len(said) == 8 == len({j.item for j in said})
    assert [j.annotator for j in said].count("ada") == 4


def test_reload_resumes_and_undo_reaches_back(browser: Chromium, tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    fill(path, 6)
    with page(path, BATCH, free_port()) as served:
        tab = enter(browser, served, "ada")
        first = tab.text("prompt")
        answer(tab)
        tab.wait(SAVED)
        tab.wait(SHOWN)
        second = tab.text("prompt")
        tab.open(f"http://127.0.0.1:{served.port}/?annotator=ada")  # the token is the tab's by now
        tab.wait("!document.getElementById('task').hidden")
        assert tab.text("prompt") == second and tab.text("count") == "1 of 6"
        tab.press("u")
        tab.wait(f"document.getElementById('prompt').innerText === {first!r}")
        tab.press("s")
        tab.wait(f"document.getElementById('prompt').innerText === {second!r}")
        tab.wait(SAVED)
        with LabelStore(path) as store:
            assert [j.action for j in store.judgements()] == ["skip"]


def test_rankings_and_ratings_by_keys(browser: Chromium, tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    texts = ("best", "good", "fair", "bad")
    with LabelStore(path) as store:
        store.add(
            [
                Item("ranking", tuple(Candidate("rank these", t) for t in texts), BATCH),
                Item("rating", tuple(Candidate("rate these", t) for t in texts), BATCH),
            ]
        )
    with page(path, BATCH, free_port()) as served:
        tab = enter(browser, served, "ada")
        shown = tab.evaluate(RESPONSES)
        for text in texts[:2]:  # the rest by moving: the last of them up
            tab.press(str(shown.index(text) + 1))
        assert tab.evaluate(RESPONSES)[:2] == ["best", "good"]
        if tab.evaluate(RESPONSES)[2] != "fair":
            tab.evaluate("document.querySelectorAll('.moves button')[6].click()")
        assert tab.evaluate(RESPONSES) == list(texts)
        tab("Emulation.setDeviceMetricsOverride", width=1000, height=1600, deviceScaleFactor=1, mobile=False)
        tab.drag(".card:nth-child(4) .handle", ".card:nth-child(1) .handle")
        assert tab.evaluate(RESPONSES) == ["bad", "best", "good", "fair"]
        tab.drag(".card:nth-child(1) .handle", ".card:nth-child(4) .handle")
        assert tab.evaluate(RESPONSES) == list(texts)
        tab.evaluate("document.activeElement.blur()")
        tab.press("Enter")
        tab.wait("document.getElementById('prompt').innerText === 'rate these'")
        for text in tab.evaluate(RESPONSES):
            tab.press(str(5 - texts.index(text)))
        tab.press("Enter")
        tab.wait(THANKS)
        assert tab.problems == []
    with LabelStore(path) as store:
        said = [(j.action, j.value) for j in store.judgements()]
    assert said == [("ranking", (1, 2, 3, 4)), ("ratings", (5, 4, 3, 2))]


def test_the_turns_of_dialogues_are_shown_on_both_sides(browser: Chromium, tmp_path: Path) -> None:
    """Who speaks stands above each turn, those of others look otherwise, and the keys are as ever."""
    asked = (Message("user", "Hi"),)
    long = (Message("assistant", "Hey"), Message("user", EVIL), Message("tool", "42"), Message("assistant", "Bye"))
    short = (Message("assistant", "No"), Message("user", "?"), Message("assistant", ""))
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as store:
        store.add(comparisons([CandidatePair(Candidate(asked, long), Candidate(asked, short))], batch=BATCH))
    with page(path, BATCH, free_port()) as served:
        tab = enter(browser, served, "ada")
        cards = tab.evaluate(
            "[...document.querySelectorAll('#cards .card')].map((card) => [...card.querySelectorAll('.turn')]"
            ".map((turn) => [turn.firstChild.textContent, turn.lastChild.textContent, turn.matches('.other')]))"
        )
        names = {"assistant": "Assistant", "user": "Human", "tool": "Tool"}
        expected = [
            [[names[m.role], m.content or "(nothing)", m.role != "assistant"] for m in said] for said in (long, short)
        ]
        assert sorted(cards) == sorted(expected)
        ground = "[...document.querySelectorAll('#cards .turn')].map((turn) => getComputedStyle(turn).backgroundColor)"
        assert len(set(tab.evaluate(ground))) == 2
        tab.press(str(1 + cards.index(expected[0])))
        tab.wait(THANKS)
    with LabelStore(path) as store:
        (judgement,) = store.judgements()
        assert store.item(judgement.item).candidates[int(judgement.value[0])].response == long


def test_a_conversation_is_shown_as_turns_and_answered_by_keys(browser: Chromium, tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", EVIL), ("assistant", "Hey"), ("tool", "42\n" * 60), ("user", "And now?")]
    asked = tuple(Message(role, said) for role, said in turns)
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as store:
        store.add(comparisons([CandidatePair(Candidate(asked, "a longer one"), Candidate(asked, "b"))], batch=BATCH))
    with page(path, BATCH, free_port()) as served:
        tab = enter(browser, served, "ada")
        heads = tab.evaluate("[...document.querySelectorAll('#prompt .speaker')].map((name) => name.textContent)")
        assert heads == ["System", "Human", "Assistant", "Tool", "Human"]
        said = tab.evaluate("[...document.querySelectorAll('#prompt .turn')].map((turn) => turn.lastChild.textContent)")
        assert said == [words.strip() for _, words in turns]
        box = "document.getElementById('prompt')"
        assert tab.evaluate(
            f"{box}.scrollTop + {box}.clientHeight >= {box}.scrollHeight - 1"
        )  # the last turn is in sight
        answer(tab)
        tab.wait(THANKS)
    with LabelStore(path) as store:
        (judgement,) = store.judgements()
        assert store.item(judgement.item).candidates[int(judgement.value[0])].response == "a longer one"
