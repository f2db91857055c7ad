"""Agreement beyond chance, against textbook tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_gym.preferences import Preference
from rlhf_gym.preferences.agreement import cohens_kappa, fleiss_kappa, pair_counts, pairwise_agreement, raw_agreement


def test_cohens_kappa_of_a_table() -> None:
    """20 twice yes, 5 yes/no, 10 no/yes, 15 twice no: p_o = .7, p_e = .5, κ = .4."""
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert raw_agreement(first, second) == pytest.approx(0.7, abs=1e-12)
    assert cohens_kappa(first, second) == pytest.approx(0.4, abs=1e-12)
    assert cohens_kappa(first, first) == 1 and cohens_kappa([1, 1], [1, 1]) == 1
    assert cohens_kappa([1, 0], [0, 1]) == pytest.approx(-1, abs=1e-12)


def test_fleiss_kappa_of_his_table() -> None:
    """The worked example of Fleiss 1971: 10 items, 14 annotators, 5 categories; κ = .210."""
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(table) == pytest.approx(0.20993, abs=1e-5)
    assert fleiss_kappa(np.diag([3, 3])) == 1


def test_counts_know_a_pair_whichever_way_round() -> None:
    said = [
        Preference("p", "a", "b", "ann"), Preference("p", "b", "a", "bob"), Preference("p", "a", "b", "eve"),
        Preference("p", "c", "a", "ann"), Preference("q", "b", "a", "ann"), Preference("q", "b", "a", "bob"),
    ]  # fmt: skip
    assert pair_counts(said).tolist() == [[2, 1], [0, 2]]
    assert pairwise_agreement(said) == pytest.approx(2 / 4)
    assert math.isnan(pairwise_agreement(said[:1])) and pair_counts([]).shape == (0, 2)


def test_errors() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        cohens_kappa([1], [1, 2])
    with pytest.raises(ValueError, match="got 0 and 0"):
        raw_agreement([], [])
    with pytest.raises(ValueError, match="got 1 of item 1"):
        fleiss_kappa([[1, 1], [1, 0]])
