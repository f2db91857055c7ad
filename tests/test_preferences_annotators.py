"""The simulated annotator prefers with the probabilities it states, errs as often as told to, and owns up to it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_gym.functional import fit_score_difference
from rlhf_gym.preferences import Annotator, BradleyTerryAnnotator, Candidate, CandidatePair

N = 20_000


def gold(prompts: list[str], responses: list[str]) -> list[float]:
    """A response's score is the number it spells."""
    return [float(response) for response in responses]


def pair(first: float, second: float, prompt: str = "p") -> CandidatePair:
    return CandidatePair(Candidate(prompt, str(first), "A"), Candidate(prompt, str(second), "B"))


def test_probabilities_are_bradley_terry() -> None:
    pairs = [pair(1.0, 1.5), pair(1.5, 1.0), pair(2.0, 2.0), pair(1e6, 0.0), pair(0.0, 1e6)]
    p = BradleyTerryAnnotator(gold).probabilities(pairs)
    assert p.tolist() == pytest.approx([0.377541, 0.622459, 0.5, 1.0, 0.0], abs=1e-6)
    halved = BradleyTerryAnnotator(gold, temperature=2.0).probabilities(pairs[:1])
    assert halved.tolist() == pytest.approx([1 / (1 + math.exp(0.25))], abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_labels_come_with_those_probabilities(temperature: float) -> None:
    """The score difference fitted from the wins is the true one over the temperature, within 4 standard errors."""
    annotator: Annotator = BradleyTerryAnnotator(gold, temperature=temperature, seed=1)
    wins = sum(p.chosen == "1.5" for p in annotator.label([pair(1.0, 1.5)] * N))
    p = 1 / (1 + math.exp(-0.5 / temperature))
    assert fit_score_difference(wins, N) == pytest.approx(0.5 / temperature, abs=4 / math.sqrt(N * p * (1 - p)))


def test_temperature_0_always_prefers_the_better_one_and_tosses_a_coin_on_ties() -> None:
    annotator = BradleyTerryAnnotator(gold, temperature=0.0)
    assert all(p.chosen == "1.5" for p in annotator.label([pair(1.0, 1.5), pair(1.5, 1.4999)] * 50))
    ties = annotator.label([CandidatePair(Candidate("p", "1.0"), Candidate("p", "1.00"))] * N)
    assert abs(np.mean([p.chosen == "1.0" for p in ties]) - 0.5) < 4 * 0.5 / math.sqrt(N)


def test_mistakes_flip_labels_and_are_recorded() -> None:
    pairs = [pair(1.0, 1.5)] * N
    faultless = BradleyTerryAnnotator(gold, seed=5).label(pairs)
    clumsy = BradleyTerryAnnotator(gold, mistake_rate=0.1, seed=5).label(pairs)
    assert all(p.clean for p in faultless)
    for meant, said in zip(faultless, clumsy, strict=True):
        assert (meant.chosen == said.chosen) == said.clean
    rate = np.mean([not p.clean for p in clumsy])
    assert abs(rate - 0.1) < 4 * math.sqrt(0.09 / N)


def test_what_is_recorded() -> None:
    (preference,) = BradleyTerryAnnotator(gold, temperature=0.0, name="ann").label([pair(1.0, 2.0)], round=3)
    assert (preference.prompt, preference.chosen, preference.rejected) == ("p", "2.0", "1.0")
    assert (preference.chosen_source, preference.rejected_source) == ("B", "A")
    assert (preference.annotator, preference.round, preference.clean) == ("ann", 3, True)


def test_gold_is_asked_once_for_each_text_once() -> None:
    asked: list[list[tuple[str, str]]] = []

    def counted(prompts: list[str], responses: list[str]) -> list[float]:
        asked.append(list(zip(prompts, responses, strict=True)))
        return gold(prompts, responses)

    BradleyTerryAnnotator(counted).label([pair(1.0, 2.0), pair(2.0, 3.0), pair(1.0, 2.0, prompt="q")])
    assert [sorted(texts) for texts in asked] == [
        [("p", "1.0"), ("p", "2.0"), ("p", "3.0"), ("q", "1.0"), ("q", "2.0")]
    ]


def test_seeds_and_going_on() -> None:
    pairs = [pair(1.0, 1.1)] * 64
    a, b, c = (BradleyTerryAnnotator(gold, seed=seed) for seed in (1, 1, 2))
    first = a.label(pairs)
    assert first == b.label(pairs)
    assert first != c.label(pairs)
    assert first != a.label(pairs)


def test_nothing_to_label() -> None:
    assert BradleyTerryAnnotator(gold).label([]) == []


def test_errors() -> None:
    with pytest.raises(ValueError, match="temperature >= 0, got -1"):
        BradleyTerryAnnotator(gold, temperature=-1.0)
    with pytest.raises(ValueError, match=r"mistake_rate in \[0, 1\], got 2"):
        BradleyTerryAnnotator(gold, mistake_rate=2.0)
    strangers = CandidatePair(Candidate("p", "1"), Candidate("q", "2"))
    with pytest.raises(ValueError, match="one prompt, got 'p' and 'q' in pair 1"):
        BradleyTerryAnnotator(gold).label([pair(1.0, 2.0), strangers])
    with pytest.raises(ValueError, match="gold reward of annotator 'simulated' to return 2 scores"):
        BradleyTerryAnnotator(lambda prompts, responses: [1.0]).label([pair(1.0, 2.0)])
    with pytest.raises(ValueError, match="finite scores from the gold reward"):
        BradleyTerryAnnotator(lambda prompts, responses: [1.0, math.nan]).label([pair(1.0, 2.0)])
