"""Edits that make responses worse, the words annotators pay for, and which pairs are shown to an annotator."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_gym.preferences import Candidate, CandidatePair, Preference
from rlhf_gym.preferences.adversarial import (
    AdversarialPair,
    choose_overrated,
    common_words,
    edited,
    favoured_words,
    insert,
    repeat,
    shuffle,
    truncate,
)

TEXT = " the soup was warm and the bread was fresh"


def test_edits_are_functions_of_the_generators_state() -> None:
    for edit in (repeat, insert, shuffle, truncate):
        one, two = (edit(TEXT, np.random.default_rng(3), ["very"]) for _ in range(2))
        assert one == two and one.startswith(" ") and not one.startswith("  "), "the leading blank stays"
        assert len({edit(TEXT, np.random.default_rng(seed), ["very"]) for seed in range(20)}) >= 4


@pytest.mark.parametrize("seed", range(20))
def test_each_edit_does_what_it_says(seed: int) -> None:
    words = TEXT.split()
    repeated = repeat(TEXT, np.random.default_rng(seed)).split()
    extra = len(repeated) - len(words)
    assert 1 <= extra <= 12
    assert any(  # a stretch stands right after itself, and without it the text is the old one
        repeated[:i] + repeated[i + extra :] == words and repeated[i : i + extra][-1] == repeated[i - 1]
        for i in range(1, len(words) + 1)
    )
    inserted = insert(TEXT, np.random.default_rng(seed), ["superb", "lovely"]).split()
    assert 1 <= len(inserted) - len(words) <= 4
    assert [w for w in inserted if w not in ("superb", "lovely")] == words
    shuffled = shuffle(TEXT, np.random.default_rng(seed)).split()
    assert sorted(shuffled) == sorted(words) and shuffled != words
    cut = truncate(TEXT, np.random.default_rng(seed)).split()
    assert cut == words[: len(cut)] and 3 <= len(cut) <= 6


def test_empty_responses_and_missing_words() -> None:
    rng = np.random.default_rng(0)
    assert repeat("", rng) == "" and shuffle("", rng) == "" and truncate("", rng) == ""
    assert truncate(" one", rng) == " one" and truncate("one two", rng) == "one"
    assert set(insert("", rng, ["good"]).split()) == {"good"}
    with pytest.raises(ValueError, match="words to insert, got none"):
        insert(TEXT, rng, [])


def test_words_that_annotators_pay_for_by_hand() -> None:
    """`kind` is in 3 of 3 chosen and 0 rejected, `the` in all, `odd` in 0 and 2, `rare` in 1 and 0: too few."""
    preferences = [
        Preference("x", "the kind host", "the odd host"),
        Preference("x", "the kind kind cook", "the odd cook"),
        Preference("x", "the kind rare host", "the cook"),
    ]
    assert favoured_words(preferences, 3, at_least=2) == ["kind", "host", "the"]
    assert favoured_words(preferences, 9, at_least=2)[-1] == "odd"
    assert "rare" in favoured_words(preferences, 9, at_least=1)
    assert common_words([p.chosen for p in preferences], 2) == ["kind", "the"]


def pair(prompt: str, response: str, kind: str, gap: float) -> AdversarialPair:
    return AdversarialPair(CandidatePair(Candidate(prompt, response), Candidate(prompt, "normal")), kind, gap)


def test_the_most_overrated_are_chosen_kinds_in_turn() -> None:
    pairs = [
        pair("p1", "a", "repeat", 3.0),
        pair("p1", "b", "repeat", 2.5),  # a second repeat to the prompt
        pair("p2", "c", "repeat", 2.0),
        pair("p3", "d", "shuffle", 0.1),
        pair("p4", "e", "shuffle", -0.1),  # r_φ does not fall for it
        pair("p5", "a", "without_kl", 9.0),
        pair("p5", "a", "without_kl", 9.0),  # found twice
        pair("p3", "d", "without_kl", 8.0),  # the same response as a shuffle's
    ]
    chosen = [(s.pair.first.prompt, s.kind) for s in choose_overrated(pairs, 10)]
    assert chosen == [("p1", "repeat"), ("p3", "shuffle"), ("p5", "without_kl"), ("p2", "repeat")]
    assert len(choose_overrated(pairs, 2)) == 2
    assert choose_overrated([], 3) == []


def test_an_edited_candidate_says_what_was_done_to_it() -> None:
    base = Candidate("p", "good", source="the SFT policy", temperature=1.3)
    found = edited(base, "praise", insert, np.random.default_rng(0), ["superb"])
    assert found.source == "praise of the SFT policy" and found.prompt == "p" and "superb" in found.response
