"""What a pair is worth, by hand; and that a batch is both good and mixed."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from rlhf_gym.preferences.active import acquisition_scores, choose_batch, mutual_information

LOG3 = math.log(3.0)  # σ(log 3) = ¾


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def test_disagreement_is_the_variance_over_members() -> None:
    assert acquisition_scores([[1.0, 0.0], [3.0, 0.0]], "disagreement").tolist() == [1.0, 0.0]


def test_uncertainty_is_nearness_to_one_half() -> None:
    """Members at ¾ and ¼, both at ¾, one alone at ½."""
    scores = acquisition_scores([[LOG3, LOG3, 0.0], [-LOG3, LOG3, 0.0]], "uncertainty")
    assert scores.tolist() == pytest.approx([1.0, 0.5, 1.0], abs=1e-12)
    assert acquisition_scores([[0.0]], "uncertainty").tolist() == [1.0]


def test_information_is_about_what_members_do_not_share() -> None:
    """¾ against ¼: log 2 − H(¾); shared doubt, or shared certainty, is worth nothing."""
    scores = acquisition_scores([[LOG3, 0.0, 50.0], [-LOG3, 0.0, 50.0]], "information")
    assert scores.tolist() == pytest.approx([math.log(2) - entropy(0.75), 0, 0], abs=1e-12)


def test_mistakes_make_a_label_worth_less() -> None:
    """With ε = .2, ¾ becomes .65; with ε = ½ a label says nothing."""
    table = [[LOG3], [-LOG3]]
    assert mutual_information(table, 0.2)[0] == pytest.approx(math.log(2) - entropy(0.65), abs=1e-12)
    assert mutual_information(table, 0.5)[0] == pytest.approx(0, abs=1e-12)
    certain = mutual_information([[50.0], [-50.0]], 0.2)[0]
    assert certain == pytest.approx(math.log(2) - entropy(0.2), abs=1e-9), "what a noisy channel lets through"


def test_acquisition_errors() -> None:
    with pytest.raises(ValueError, match=r"at least 2 members, got \(1, 1\)"):
        acquisition_scores([[0.0]], "information")
    with pytest.raises(ValueError, match="got 'best'"):
        acquisition_scores([[0.0], [0.0]], "best")  # type: ignore[arg-type]


def test_the_sharpest_batch_is_the_best_but_for_the_limits() -> None:
    prompts = ["p0"] * 4 + ["p1"] * 4 + ["p2"] * 4
    scores = np.arange(12.0)
    rng = np.random.default_rng(0)
    best = {"rng": rng, "sharpness": math.inf}
    assert choose_batch(scores, list(range(12)), 5, **best) == [11, 10, 9, 8, 7]
    assert choose_batch(scores, prompts, 3, **best) == [11, 10, 7], "twice an even share is 2"
    assert choose_batch(scores, prompts, 1, **best) == [11], "and at least 1"
    assert choose_batch(scores, prompts, 50, **best) == list(range(11, -1, -1)), "no more are to be had"
    assert choose_batch([], [], 5, rng=rng) == []


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 2.0])
def test_pairs_are_drawn_in_proportion_to_a_power_of_their_scores(sharpness: float) -> None:
    scores = np.array([1.0, 2.0, 3.0])
    rng, n = np.random.default_rng(1), 6000
    draw = lambda: choose_batch(scores, "xyz", 1, rng=rng, sharpness=sharpness)[0]  # noqa: E731
    drawn = Counter(draw() for _ in range(n))
    expected = scores**sharpness / (scores**sharpness).sum()
    chi_squared = sum((drawn[i] - n * p) ** 2 / (n * p) for i, p in enumerate(expected))
    assert chi_squared < 13.8, "the 99.9 % point of χ² with 2 degrees of freedom"


def test_what_is_worth_nothing_comes_last() -> None:
    scores = np.array([0.0] * 5 + [1e-300] * 5)
    assert set(choose_batch(scores, list(range(10)), 5, rng=np.random.default_rng(0))) == {5, 6, 7, 8, 9}


def test_a_batch_is_of_many_prompts() -> None:
    """One prompt's pairs are worth a thousand times as much, and still get but twice their share."""
    prompts = [f"p{i}" for i in range(20) for _ in range(30)]
    scores = np.where(np.array(prompts) == "p3", 1000.0, 1.0)
    chosen = choose_batch(scores, prompts, 40, rng=np.random.default_rng(0))
    counts = Counter(prompts[i] for i in chosen)
    assert len(chosen) == len(set(chosen)) == 40
    assert max(counts.values()) == counts["p3"] == 4


def test_batch_errors() -> None:
    with pytest.raises(ValueError, match="a score for each of 1 pairs"):
        choose_batch([1.0, 2.0], ["x"], 1, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="finite scores >= 0"):
        choose_batch([-1.0], ["x"], 1, rng=np.random.default_rng(0))
