"""Advantages by hand, and each row as it would be alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_gym.functional import (
    discounted_returns,
    gae,
    globally_whitened_returns,
    group_normalised_advantages,
    has_spread,
    length_adaptive_lambda,
    rloo_advantages,
)

REWARDS = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
VALUES = torch.tensor([[0.5, 0.4, 0.3]], dtype=torch.float64)
SCORES = torch.tensor([[1.0, 2.0, 5.0, 8.0]], dtype=torch.float64)


def ragged(filling: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and mask of rows of length 5, 1, 3 and 0, `filling` in the masked places."""
    mask = torch.tensor([[1] * n + [0] * (5 - n) for n in (5, 1, 3, 0)])
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 4, 5, dtype=torch.float64, generator=generator)
    return rewards.masked_fill(mask == 0, filling), values.masked_fill(mask == 0, filling), mask


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [(0.0, (-0.1, -0.1, 0.7)), (0.95, (0.43675, 0.565, 0.7)), (1.0, (0.5, 0.6, 0.7))],
)
def test_gae_by_hand(gae_lambda: float, expected: tuple[float, ...]) -> None:
    advantages, returns = gae(REWARDS, VALUES, torch.ones(1, 3), gamma=1.0, gae_lambda=gae_lambda)
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert returns[0].tolist() == pytest.approx([a + v for a, v in zip(expected, (0.5, 0.4, 0.3), strict=True)])


def test_gae_with_discounting_is_its_own_sum() -> None:
    """Â_t = Σ_l (γλ)^l δ_{t+l}, written out."""
    rewards, values, mask = (x[:1] for x in ragged())
    gamma, lam = 0.9, 0.8
    next_values = torch.cat([values[0, 1:], torch.zeros(1, dtype=torch.float64)])
    deltas = (rewards[0] + gamma * next_values - values[0]).tolist()
    expected = [sum((gamma * lam) ** i * delta for i, delta in enumerate(deltas[t:])) for t in range(5)]
    assert gae(rewards, values, mask, gamma=gamma, gae_lambda=lam)[0][0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("filling", [0.0, 100.0, float("nan"), float("inf")])
def test_gae_of_a_batch_is_gae_of_each_row_alone(filling: float) -> None:
    rewards, values, mask = ragged(filling)
    advantages, returns = gae(rewards, values, mask, gamma=0.99, gae_lambda=0.95)
    for i, n in enumerate(mask.sum(dim=1).tolist()):
        alone = gae(rewards[i : i + 1, :n], values[i : i + 1, :n], mask[i : i + 1, :n], gamma=0.99, gae_lambda=0.95)
        for got, expected in zip((advantages[i], returns[i]), alone, strict=True):
            assert torch.equal(got[:n], expected[0])
            assert got[n:].tolist() == [0.0] * (5 - n)


def test_lambda_1_is_return_minus_value() -> None:
    rewards, values, mask = ragged()
    advantages, returns = gae(rewards, values, mask, gamma=0.9, gae_lambda=1.0)
    expected = discounted_returns(rewards, mask, gamma=0.9)
    torch.testing.assert_close(returns, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(advantages, (expected - values) * mask, rtol=0, atol=1e-12)


def test_discounted_returns_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, float("nan")]], dtype=torch.float64)
    got = discounted_returns(rewards, torch.tensor([[1, 1, 1], [1, 1, 0]]), gamma=0.5)
    assert got.tolist() == [[3.0, 4.0, 4.0], [2.0, 2.0, 0.0]]


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [(1.0, (0.43675, 0.565, 0.7)), (0.9, (0.2605675, 0.4685, 0.7))],
)
def test_gae_counts_actions_and_not_places(gamma: float, expected: tuple[float, ...]) -> None:
    """Actions at the places 0, 1 and 4. With γ = .9: Â_4 = .7, Â_1 = −.13 + .855·.7, Â_0 = −.14 + .855·Â_1."""
    nan = float("nan")
    rewards = torch.tensor([[0.0, 0.0, nan, 5.0, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 0.4, 7.0, nan, 0.3]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0, 1]])
    advantages, returns = gae(rewards, values, mask, gamma=gamma, gae_lambda=0.95)
    assert advantages[0, [0, 1, 4]].tolist() == pytest.approx(expected, abs=1e-12)
    assert advantages[0, [2, 3]].tolist() == returns[0, [2, 3]].tolist() == [0, 0]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (0.5, 0.0), (0.99, 1.0)])
def test_gae_with_holes_is_gae_of_the_actions_alone(gamma: float, gae_lambda: float) -> None:
    """Random masks, bit for bit: each row's actions, cut out and put side by side, have the same advantages."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(64, 12, generator=generator) < 0.5  # (B, T)
    rewards, values = torch.randn(2, 64, 12, dtype=torch.float64, generator=generator)  # (B, T) each
    advantages, returns = gae(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
    totals = discounted_returns(rewards, mask, gamma=gamma)
    assert mask.sum(dim=1).unique().numel() > 4
    for row in range(64):
        own = mask[row]
        packed = torch.ones(1, int(own.sum()))
        expected = gae(rewards[row, own][None], values[row, own][None], packed, gamma=gamma, gae_lambda=gae_lambda)
        assert torch.equal(advantages[row, own], expected[0][0])
        assert torch.equal(returns[row, own], expected[1][0])
        assert torch.equal(totals[row, own], discounted_returns(rewards[row, own][None], packed, gamma=gamma)[0])
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all() and (totals[~mask] == 0).all()


@pytest.mark.parametrize(
    ("values", "gamma", "gae_lambda", "message"),
    [
        (torch.zeros(3, 1), 1.0, 1.0, r"expected values of shape \(1, 3\), the shape of rewards, got \(3, 1\)"),
        (VALUES, 1.1, 1.0, r"expected gamma in \[0, 1\], got 1.1"),
        (VALUES, 1.0, -0.1, r"expected gae_lambda in \[0, 1\], got -0.1"),
    ],
)
def test_gae_refuses(values: Tensor, gamma: float, gae_lambda: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gae(REWARDS, values, torch.ones(1, 3), gamma=gamma, gae_lambda=gae_lambda)


def test_length_adaptive_lambda_by_hand() -> None:
    found = length_adaptive_lambda(torch.tensor([100, 1000, 20, 3]))
    assert found.tolist() == pytest.approx([0.8, 0.98, 0.0, 0.0], abs=1e-6)
    assert length_adaptive_lambda(torch.tensor([10]), alpha=0.2).tolist() == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("lengths", "alpha", "message"),
    [([[3]], 0.05, r"shape \(B,\)"), ([3, 0], 0.05, "lengths > 0, got 0"), ([3], 0.0, "alpha > 0, got 0")],
)
def test_length_adaptive_lambda_says_what_it_expects(lengths: list[int], alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        length_adaptive_lambda(torch.tensor(lengths), alpha=alpha)


def test_gae_with_a_lambda_a_row_is_gae_of_each_row() -> None:
    rewards, values, mask = ragged()
    each = torch.tensor([0.0, 0.5, 0.9, 1.0])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, gae_lambda=each)
    for row, own in enumerate(each.tolist()):
        rows = slice(row, row + 1)
        alone = gae(rewards[rows], values[rows], mask[rows], gamma=0.9, gae_lambda=own)
        torch.testing.assert_close(advantages[rows], alone[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(returns[rows], alone[1], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"gae_lambda of shape \(4,\), got \(3,\)"):
        gae(rewards, values, mask, gamma=0.9, gae_lambda=torch.ones(3))
    with pytest.raises(ValueError, match=r"gae_lambda in \[0, 1\], got 1.5"):
        gae(rewards, values, mask, gamma=0.9, gae_lambda=torch.full((4,), 1.5))


def test_reinforce_plus_plus_by_hand() -> None:
    """Returns to go (2, 1) and (4), their mean 7/3, their variance 14/9."""
    rewards = torch.tensor([[1.0, 1.0], [4.0, 9.0]], dtype=torch.float64)
    found = globally_whitened_returns(rewards, torch.tensor([[1, 1], [1, 0]]))
    expected = [(x - 7 / 3) / (14 / 9) ** 0.5 for x in (2, 1, 4)]
    assert found.reshape(-1).tolist() == pytest.approx([*expected, 0.0], abs=1e-6)


def test_a_group_of_equal_returns_has_no_spread() -> None:
    assert has_spread(torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1.001], [-2, -2, -2, -2]])).tolist() == [
        False,
        True,
        False,
    ]


def test_rloo_by_hand() -> None:
    advantages = rloo_advantages(SCORES)
    assert advantages[0].tolist() == pytest.approx([-4, -8 / 3, 4 / 3, 16 / 3], abs=1e-12)
    assert float(advantages.sum()) == pytest.approx(0, abs=1e-12)


def test_rloo_advantages_are_scores_less_the_mean_of_the_others_row_by_row() -> None:
    scores = torch.randn(3, 5, dtype=torch.float64)
    others = (scores.sum(dim=1, keepdim=True) - scores) / 4
    torch.testing.assert_close(rloo_advantages(scores), scores - others, rtol=0, atol=1e-12)


def test_rloo_advantages_survive_a_large_offset() -> None:
    torch.testing.assert_close(rloo_advantages(SCORES.float() + 4096), rloo_advantages(SCORES).float())


def test_group_normalised_by_hand() -> None:
    """Mean 4, squares 9+4+1+16 = 30, std √10."""
    expected = [x / 10**0.5 for x in (-3, -2, 1, 4)]
    assert group_normalised_advantages(SCORES, epsilon=0.0)[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert group_normalised_advantages(SCORES, scale=False)[0].tolist() == [-3.0, -2.0, 1.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", range(2, 17))
def test_a_group_of_equal_scores_teaches_nothing(k: int, dtype: torch.dtype) -> None:
    """Exactly 0. In fp32 the mean of five scores of 123.456 is another number: what is left, over ε, would be .07."""
    scores = torch.tensor([1.0, 2.5, 0.1, 0.3, -0.37, 123.456], dtype=dtype)[:, None].expand(-1, k)  # (6, k)
    assert not has_spread(scores).any()
    assert (rloo_advantages(scores) == 0).all()
    assert (group_normalised_advantages(scores) == 0).all()
    assert (group_normalised_advantages(scores, scale=False) == 0).all()


@pytest.mark.parametrize("function", [rloo_advantages, group_normalised_advantages, has_spread])
@pytest.mark.parametrize(
    ("shape", "message"), [((3, 1), r"k >= 2, got \(3, 1\)"), ((4,), r"expected scores of shape \(B, k\), got \(4,\)")]
)
def test_groups_need_company(function, shape: tuple[int, ...], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(shape))
