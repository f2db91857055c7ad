"""The simulated annotator prefers with the probabilities it states, errs as often as told to, and owns up to it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.preferences import (
    CONFIDENT_WORDS,
    Annotator,
    AnnotatorPanel,
    BradleyTerryAnnotator,
    Candidate,
    CandidatePair,
    simulated_annotators,
)
from rlhf_gym.preferences.annotators import rao_kupper
from rlhf_gym.rewards import keyword_reward, length_reward

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
    assert math.log(wins / (N - wins)) == pytest.approx(0.5 / temperature, abs=4 / math.sqrt(N * p * (1 - p)))


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


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_biases_are_added_to_gold() -> None:
    """Gold sees no difference; each word is worth .2 to one annotator, each confident word .7 to another."""
    pairs = [CandidatePair(Candidate("p", "it is clearly so"), Candidate("p", "is so"))]
    flat = [0.0, 0.0]
    long = BradleyTerryAnnotator(lambda p, r: flat, bias=length_reward(scale=0.2))
    assert long.probabilities(pairs).tolist() == pytest.approx([sigma(0.4)], abs=1e-6)
    bold = BradleyTerryAnnotator(lambda p, r: flat, 0.5, bias=keyword_reward(CONFIDENT_WORDS, each=0.7))
    assert bold.probabilities(pairs).tolist() == pytest.approx([sigma(1.4)], abs=1e-6)
    wins = np.mean([p.chosen == "it is clearly so" for p in bold.label(pairs * N)])
    assert abs(wins - sigma(1.4)) < 4 * math.sqrt(sigma(1.4) * sigma(-1.4) / N)


def test_rao_and_kupper_by_hand() -> None:
    first, tie = rao_kupper([0.6, -0.6], 0.3)
    assert first.tolist() == pytest.approx([sigma(0.3), sigma(-0.9)], abs=1e-12)
    assert tie.tolist() == pytest.approx([1 - sigma(0.3) - sigma(-0.9)] * 2, abs=1e-12)
    first, tie = rao_kupper([-0.5, 0.0, 1e6, -1e6], 0.0, 2.0)  # Bradley and Terry's
    assert first.tolist() == pytest.approx([sigma(-0.25), 0.5, 1, 0], abs=1e-12) and tie.max() < 1e-12
    first, tie = rao_kupper([0.2, 0.4, -0.4], 0.3, 0.0)
    assert first.tolist() == [0, 1, 0] and tie.tolist() == [1, 0, 0]
    assert rao_kupper([-0.1, 0, 0.1], 0, 0)[0].tolist() == [0, 0.5, 1]


def test_ties_are_left_out_as_often_as_rao_and_kupper_say() -> None:
    annotator = BradleyTerryAnnotator(gold, temperature=0.5, tie_threshold=0.3, seed=3)
    first, second = sigma((0.5 - 0.3) / 0.5), sigma((-0.5 - 0.3) / 0.5)
    labels = annotator.label([pair(1.5, 1.0)] * N)
    for count, p in ((len(labels), first + second), (sum(x.chosen == "1.5" for x in labels), first)):
        assert abs(count / N - p) < 4 * math.sqrt(p * (1 - p) / N)
    assert None in annotator.judge([pair(1.5, 1.5)] * 50)


def test_a_panel_asks_as_many_as_told_to_and_each_pair_weighs_one() -> None:
    panel = AnnotatorPanel(simulated_annotators(gold, 4, temperature=0.5), judges=3, seed=1)
    pairs = [pair(1.0, 1.0 + i / 100) for i in range(200)]
    labels = panel.label(pairs, round=1)
    assert len(labels) == 600 and {p.weight for p in labels} == {1 / 3}
    assert [{p.chosen, p.rejected} for p in labels[::3]] == [{a.response, b.response} for a, b in pairs]
    groups = [labels[i : i + 3] for i in range(0, 600, 3)]
    assert all(len({p.annotator for p in group}) == 3 for group in groups)
    asked = [sum(p.annotator == f"simulated-{i}" for p in labels) for i in (1, 2, 3, 4)]
    assert sum(asked) == 600 and all(abs(n - 150) < 4 * math.sqrt(200 * 3 / 16) for n in asked)


def test_one_simulated_annotator_is_the_plain_one_and_several_differ_by_the_spread() -> None:
    pairs = [pair(1.0, 1.1)] * 64
    (alone,) = simulated_annotators(gold, 1, temperature=0.3, mistake_rate=0.1, chance=7)
    assert alone.label(pairs) == BradleyTerryAnnotator(gold, 0.3, 0.1, seed=7).label(pairs)
    alike = simulated_annotators(gold, 5, temperature=0.3, mistake_rate=0.1)
    assert {a.temperature for a in alike} == {0.3} and {a.mistake_rate for a in alike} == {0.1}
    several = simulated_annotators(gold, 500, temperature=0.3, mistake_rate=0.1, spread=0.5)
    z = np.log([a.temperature / 0.3 for a in several]) / 0.5
    assert abs(z.mean()) < 4 / math.sqrt(500) and abs(z.std() - 1) < 4 / math.sqrt(1000)
    assert max(a.mistake_rate for a in several) <= 0.5 and len({a.mistake_rate for a in several}) > 400
    again = simulated_annotators(gold, 500, temperature=0.3, mistake_rate=0.1, spread=0.5, chance=9)
    assert [a.temperature for a in again] == [a.temperature for a in several], "other answers, the same people"


def test_simulated_annotators_take_the_biases_given() -> None:
    (biased,) = simulated_annotators(gold, 1, length_bias=0.2, bias_words=("2.0",), word_bias=0.5)
    p = biased.probabilities([CandidatePair(Candidate("p", "2.0"), Candidate("p", "1.0"))])
    assert p.tolist() == pytest.approx([sigma(1.5)], abs=1e-6)
    assert simulated_annotators(gold, 1)[0].bias is None


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
    with pytest.raises(ValueError, match="tie_threshold >= 0, got -1"):
        BradleyTerryAnnotator(gold, tie_threshold=-1)
    two = simulated_annotators(gold, 2)
    with pytest.raises(ValueError, match="1 to 2 judges, as many as annotators at most, got 3"):
        AnnotatorPanel(two, judges=3)
    with pytest.raises(ValueError, match="names that differ"):
        AnnotatorPanel([two[0], two[0]])
    strangers = CandidatePair(Candidate("p", "1"), Candidate("q", "2"))
    with pytest.raises(ValueError, match="one prompt, got 'p' and 'q' in pair 1"):
        BradleyTerryAnnotator(gold).label([pair(1.0, 2.0), strangers])
    with pytest.raises(ValueError, match="gold reward of annotator 'simulated' to return 2 scores"):
        BradleyTerryAnnotator(lambda prompts, responses: [1.0]).label([pair(1.0, 2.0)])
    with pytest.raises(ValueError, match="finite scores from the gold reward"):
        BradleyTerryAnnotator(lambda prompts, responses: [1.0, math.nan]).label([pair(1.0, 2.0)])


def test_the_example_of_the_docs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "preferences.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(block, "docs/preferences.md", "exec"), {})
    assert capsys.readouterr().out.startswith("3 annotators agree on ")
