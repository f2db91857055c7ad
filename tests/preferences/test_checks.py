"""Odd records are reported, not dropped; a split keeps prompts whole."""

from __future__ import annotations

import random

import pytest

from rlhf_gym.preferences import Candidate, Demonstration, Preference, check_preferences, split_by_prompt
from tests.tiny import tiny_tokenizer

PREFERENCES = [
    Preference("p", "good", "bad", annotator="x"),  # 0
    Preference("p", "bad", "good"),  # 1: contradicts 0 and 3
    Preference("q", "bad", "good"),  # 2: another prompt, no contradiction
    Preference("p", "good", "bad", annotator="y"),  # 3: repeats 0
    Preference("p", "good", "good"),  # 4: identical
    Preference("p", "good", " \n"),  # 5: blank
    Preference("p", "", "good"),  # 6: blank
    Preference("film plot", "good fun film", "bad"),  # 7: 2 + 3 + EOS tokens
    Preference("film plot", "bad", "dull film cast"),  # 8: 2 + 3 + EOS tokens
    Preference("film plot", "good fun", "bad"),  # 9: 2 + 2 + EOS tokens
]


def test_what_is_odd() -> None:
    report = check_preferences(PREFERENCES, tokenizer=tiny_tokenizer(), max_length=5)
    assert report.total == 10
    assert report.duplicates == (3,)
    assert report.contradictory == (0, 1, 3)
    assert report.identical == (4,)
    assert report.empty == (5, 6)
    assert report.too_long == (7, 8)
    assert report.flagged == (0, 1, 3, 4, 5, 6, 7, 8)
    assert str(report) == (
        "10 preferences: 1 duplicate, 3 contradictory, 1 with identical responses, 2 with a blank response, 2 too long"
    )


def test_nothing_odd() -> None:
    report = check_preferences(PREFERENCES[2:3])
    assert report.flagged == ()
    assert str(report) == "1 preferences: nothing odd"
    assert check_preferences([]).flagged == ()


def test_lengths_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="a tokenizer to count max_length=5 tokens with, got none"):
        check_preferences(PREFERENCES, max_length=5)


RECORDS = [Preference(f"p{i % 20}", str(i), "") for i in range(100)]


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.01, 1), (0.25, 5), (0.5, 10), (0.99, 19)])
def test_split_keeps_prompts_whole(fraction: float, expected: int) -> None:
    train, heldout = split_by_prompt(RECORDS, fraction, seed=0)
    assert len({r.prompt for r in heldout}) == expected
    assert not {r.prompt for r in train} & {r.prompt for r in heldout}
    assert sorted(train + heldout, key=RECORDS.index) == RECORDS
    assert train == sorted(train, key=RECORDS.index)


def test_split_depends_on_the_seed_and_on_the_prompts_alone() -> None:
    def heldout(records: list[Preference], seed: int = 0) -> set[str]:
        return {r.prompt for r in split_by_prompt(records, 0.25, seed)[1]}

    shuffled = random.Random(1).sample(RECORDS, len(RECORDS))
    assert heldout(RECORDS) == heldout(shuffled) == heldout(RECORDS[:20])
    assert len({frozenset(heldout(RECORDS, seed)) for seed in range(5)}) == 5


def test_a_split_barely_moves_as_prompts_arrive() -> None:
    few = [Candidate(f"p{i}", "") for i in range(100)]
    more = few + [Candidate(f"new{i}", "") for i in range(10)]
    before, after = ({r.prompt for r in split_by_prompt(records, 0.2)[1]} for records in (few, more))
    assert len(before - after) <= 5


def test_anything_with_a_prompt_can_be_split() -> None:
    train, heldout = split_by_prompt([Demonstration(p, "r") for p in "abcd"], 0.5)
    assert (len(train), len(heldout)) == (2, 2)


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan")])
def test_split_refuses_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"heldout_fraction in \[0, 1\)"):
        split_by_prompt(RECORDS, fraction)


def test_one_prompt_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="at least 2 prompts to hold some out, got 1"):
        split_by_prompt(RECORDS[:1], 0.5)
