"""Win rates, means, medians, distinct-2, and figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_gym.lm.tokens import token_texts
from rlhf_gym.pipeline.comparison import difference_at_equal, mean_with_error, median_index, win_rate
from rlhf_gym.pipeline.samples import distinct_2
from rlhf_gym.runs.summaries import count
from tests.tiny import tiny_tokenizer


def test_ties_count_half() -> None:
    assert win_rate([1, 2, 3, 4], [0, 2, 4, 0]).rate == 0.625
    assert win_rate([1, 1], [1, 1]).rate == 0.5


def test_wilsons_interval() -> None:
    """80 of 100: (.711, .867), as in any table."""
    rate = win_rate([1] * 80 + [0] * 20, [0.5] * 100)
    assert (round(rate.low, 3), round(rate.high, 3)) == (0.711, 0.867)
    all_won = win_rate([1] * 20, [0] * 20)
    assert all_won.high == pytest.approx(1) and all_won.low == pytest.approx(20 / (20 + 1.96**2))


def test_scores_of_other_prompts_are_refused() -> None:
    for ours, theirs in (([1, 2], [1]), ([], []), ([[1]], [[1]])):
        with pytest.raises(ValueError, match=r"one shape \(prompts,\)"):
            win_rate(ours, theirs)


def test_mean_and_its_error() -> None:
    assert mean_with_error([1, 2, 3, 4, 5]) == pytest.approx((3, np.sqrt(2.5 / 5)))
    assert mean_with_error([4.0]) == (4, 0)


def test_the_median_is_one_of_them() -> None:
    assert median_index([0.9, 0.7, 0.8]) == 2
    assert median_index([0.9, 0.7]) == 1
    assert median_index([0.5]) == 0


def test_distinct_pairs_of_words() -> None:
    assert distinct_2(["a b a b"]) == pytest.approx(2 / 3)
    assert distinct_2(["a b", "a b", "c d"]) == pytest.approx(2 / 3)
    assert distinct_2(["word", ""]) == 0


def test_tokens_read_as_the_text_does() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("the film was good").input_ids
    assert "".join(token_texts(tokenizer, [*ids, 1])) == "the film was good <eos> "


@pytest.mark.parametrize(("number", "text"), [(950, "950"), (113_600, "114 k"), (124e6, "124 M"), (1.5e9, "1.50 B")])
def test_parameters_are_counted_shortly(number: float, text: str) -> None:
    assert count(int(number)) == text


def test_a_difference_at_equal_x_by_hand() -> None:
    """Two parallel lines of slope 2, the second 3 above and 1 to the right: means differ by 5, lines by 3."""
    result = difference_at_equal([0, 1, 2], [0, 2, 4], [1, 2, 3], [5, 7, 9])
    assert result.difference == pytest.approx(3) and result.slope == pytest.approx(2)
    assert result.se == pytest.approx(0, abs=1e-12)


def test_the_error_of_a_difference_at_equal_x() -> None:
    """As ordinary least squares of y on (1, group, x) has it."""
    rng = np.random.default_rng(0)
    x, other_x = rng.normal(9, 1, 5), rng.normal(10, 1, 4)
    y, other_y = 0.1 * x + rng.normal(0, 0.2, 5), 0.1 * other_x + 0.3 + rng.normal(0, 0.2, 4)
    design = np.column_stack([np.ones(9), [0] * 5 + [1] * 4, [*x, *other_x]])  # (9, 3)
    target = np.array([*y, *other_y])
    solution, residual, _, _ = np.linalg.lstsq(design, target, rcond=None)
    covariance = np.linalg.inv(design.T @ design) * residual[0] / (9 - 3)
    result = difference_at_equal(x, y, other_x, other_y)
    assert (result.difference, result.slope) == pytest.approx((solution[1], solution[2]))
    assert result.se == pytest.approx(np.sqrt(covariance[1, 1]))
    assert np.isnan(difference_at_equal([1], [1], [2], [2]).se)
