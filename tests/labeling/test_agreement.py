"""Agreement beyond chance, against textbook tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_gym.labeling.agreement import Opinion, agreement, fleiss_kappa, preference_opinions
from rlhf_gym.preferences import AnnotatorPanel, Candidate, CandidatePair, Preference, simulated_annotators


def both(first: list[str], second: list[str]) -> list[Opinion]:
    return [Opinion(i, name, c) for name, said in (("ann", first), ("bob", second)) for i, c in enumerate(said)]


def test_cohens_kappa_of_a_table() -> None:
    """20 twice yes, 5 yes/no, 10 no/yes, 15 twice no: p_o = .7, p_e = .5, κ = .4."""
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    found = agreement(both(first, second))
    assert found is not None and found.raw == pytest.approx(0.7) and found.cohen == pytest.approx(0.4, abs=1e-12)
    assert str(found).startswith("2 annotators agree on 70% of 50 comparisons that they share: Cohen's κ = 0.40")
    for said, expected in ((("yn", "yn"), 1), (("yn", "ny"), -1), (("yy", "yy"), None)):
        found = agreement(both(*map(list, said)))
        assert found is not None and found.cohen == (expected and pytest.approx(expected, abs=1e-12))


def test_fleiss_kappa_of_his_table() -> None:
    """The worked example of Fleiss 1971: 10 items, 14 annotators, 5 categories; κ = .210."""
    table = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    assert fleiss_kappa(table)[1] == pytest.approx(0.20993, abs=1e-5)
    assert fleiss_kappa(np.diag([3, 3])) == (1, 1) and fleiss_kappa([[3], [2]]) == (1, None)


def test_preferences_know_a_pair_whichever_way_round() -> None:
    """Of ann, bob and eve on one pair (one of three pairs of answers agrees) and ann and bob on another (all do)."""
    said = [
        Preference("p", "a", "b", "ann"),
        Preference("p", "b", "a", "bob"),
        Preference("p", "a", "b", "eve"),
        Preference("p", "c", "a", "ann"),
        Preference("q", "b", "a", "ann"),
        Preference("q", "b", "a", "bob"),
    ]
    found = agreement(preference_opinions(said))
    assert found is not None and (found.annotators, found.units) == (3, 2)
    assert found.raw == pytest.approx((1 / 3 + 1) / 2)
    assert agreement(preference_opinions(said[:1])) is None


def test_two_annotators_agree_as_often_as_their_noise_allows() -> None:
    """P = q² + (1 − q)², where q is the chance to call the better one: p, or 1 − p by mistake."""
    s = 1 / (1 + math.exp(-0.5))
    pairs = [CandidatePair(Candidate("p", f"{i}"), Candidate("p", f"{i + 0.5}")) for i in range(4000)]
    two = simulated_annotators(lambda prompts, responses: [float(r) for r in responses], 2, mistake_rate=0.2, seed=2)
    labels = AnnotatorPanel(two, judges=2).label(pairs)
    q = 0.8 * s + 0.2 * (1 - s)
    agree = q**2 + (1 - q) ** 2
    found = agreement(preference_opinions(labels))
    assert found is not None and found.units == 4000
    assert abs(found.raw - agree) < 4 * math.sqrt(agree * (1 - agree) / 4000)


def test_errors() -> None:
    with pytest.raises(ValueError, match="got 1"):
        fleiss_kappa([[1, 1], [1, 0]])
