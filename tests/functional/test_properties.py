"""The maths against its definitions, written as slow loops, on inputs that Hypothesis makes up."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_gym.functional import (
    best_of_n_estimate,
    bradley_terry_loss,
    cispo_policy_loss,
    discounted_returns,
    dpo_loss,
    full_kl,
    gae,
    group_normalised_advantages,
    gspo_policy_loss,
    importance_k3,
    k1,
    k2,
    k3,
    log_prob_and_entropy,
    masked_mean,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    rloo_advantages,
    straight_through_k3,
)

numbers = st.floats(-4, 4, allow_subnormal=False)
shares = st.sampled_from([0.0, 0.3, 0.95, 1.0])
epsilons = st.sampled_from([0.0, 0.2, 0.5, 3.0])


class Rows(NamedTuple):
    """Three tables of numbers (B, T), NaN in masked places, and where they are real, with at least one place."""

    one: Tensor
    two: Tensor
    three: Tensor
    mask: Tensor

    @property
    def places(self) -> list[tuple[float, float, float]]:
        """The numbers of the real places."""
        return [(float(a), float(b), float(c)) for a, b, c, m in zip(*(x.flatten() for x in self), strict=True) if m]

    def per_row(self) -> list[list[int]]:
        """The real places of each row."""
        return [row.nonzero().flatten().tolist() for row in self.mask]


@st.composite
def rows(draw: st.DrawFn, *, dtype: torch.dtype = torch.float64) -> Rows:
    """Up to 3 rows of up to 6 places, with holes anywhere; empty rows, but not all."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 6)))
    size = shape[0] * shape[1]
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))).reshape(shape)
    tables = [
        torch.tensor(draw(st.lists(numbers, min_size=size, max_size=size)), dtype=dtype)
        .reshape(shape)
        .masked_fill(~mask, math.nan)
        for _ in range(3)
    ]
    return Rows(*tables, mask)


def vectors(count: int, low: int = 2, high: int = 5) -> st.SearchStrategy[list[Tensor]]:
    """So many vectors of one length."""
    return st.integers(low, high).flatmap(
        lambda n: st.lists(
            st.lists(numbers, min_size=n, max_size=n).map(lambda v: torch.tensor(v, dtype=torch.float64)),
            min_size=count,
            max_size=count,
        )
    )


# --- advantages ---------------------------------------------------------------------------------------------------


@given(rows(), shares, st.lists(shares, min_size=3, max_size=3), st.booleans())
def test_gae_is_the_sum_of_its_definition(given: Rows, gamma: float, lambdas: list[float], by_row: bool) -> None:
    own = torch.tensor(lambdas[: len(given.mask)], dtype=torch.float64)
    advantages, returns = gae(given.one, given.two, given.mask, gamma=gamma, gae_lambda=own if by_row else lambdas[0])
    expected = torch.zeros_like(advantages)
    for row, places in enumerate(given.per_row()):
        lambda_ = lambdas[row] if by_row else lambdas[0]
        value = [float(given.two[row, t]) for t in places] + [0.0]
        delta = [float(given.one[row, t]) + gamma * value[i + 1] - value[i] for i, t in enumerate(places)]
        for i, t in enumerate(places):
            expected[row, t] = sum((gamma * lambda_) ** (j - i) * delta[j] for j in range(i, len(places)))
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + given.two.masked_fill(~given.mask, 0))


@given(rows(), shares)
def test_returns_are_discounted_sums(given: Rows, gamma: float) -> None:
    expected = torch.zeros_like(given.one)
    for row, places in enumerate(given.per_row()):
        for i, t in enumerate(places):
            expected[row, t] = sum(gamma**j * float(given.one[row, s]) for j, s in enumerate(places[i:]))
    torch.testing.assert_close(discounted_returns(given.one, given.mask, gamma=gamma), expected)


@given(vectors(3, low=2))
def test_group_baselines(scores: list[Tensor]) -> None:
    table = torch.stack(scores)  # (B, k)
    leave_one_out = rloo_advantages(table)
    normalised = group_normalised_advantages(table, epsilon=0.1)
    centred = group_normalised_advantages(table, scale=False)
    for b, i in itertools.product(range(table.shape[0]), range(table.shape[1])):
        group = table[b].tolist()
        others = [score for j, score in enumerate(group) if j != i]
        assert float(leave_one_out[b, i]) == pytest.approx(group[i] - np.mean(others), abs=1e-9)
        assert float(centred[b, i]) == pytest.approx(group[i] - np.mean(group), abs=1e-9)
        spread = np.std(group, ddof=1)
        assert float(normalised[b, i]) == pytest.approx((group[i] - np.mean(group)) / (spread + 0.1), abs=1e-9)


@given(rows(), st.booleans(), st.sampled_from([1e-8, 1e-2]))
def test_whitening_and_means_over_the_real_places(given: Rows, keep_mean: bool, epsilon: float) -> None:
    real = np.array([a for a, _, _ in given.places])
    whitened = masked_whiten(given.one, given.mask, keep_mean, epsilon)
    expected = (real - real.mean()) / np.sqrt(real.var() + epsilon) + keep_mean * real.mean()
    np.testing.assert_allclose(whitened[given.mask].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert bool((whitened[~given.mask] == 0).all())
    assert float(masked_mean(given.one, given.mask)) == pytest.approx(real.mean(), abs=1e-12)
    assert float(masked_mean(given.one, given.mask, 7.0)) == pytest.approx(real.sum() / 7, abs=1e-12)


# --- divergences --------------------------------------------------------------------------------------------------


@given(vectors(3))
def test_estimators_of_the_kl_are_right_on_average(logits: list[Tensor]) -> None:
    policy = logits[0].clone().requires_grad_()
    log_pi = torch.log_softmax(policy, dim=-1)  # (V,)
    log_ref, log_old = (torch.log_softmax(x, dim=-1) for x in logits[1:])
    exact = (log_pi.exp() * (log_pi - log_ref)).sum()
    (slope,) = torch.autograd.grad(exact, policy, retain_graph=True)
    torch.testing.assert_close(full_kl(policy, logits[1]), exact)
    pi = log_pi.detach().exp()
    for unbiased in (k1, k3, straight_through_k3):
        torch.testing.assert_close((pi * unbiased(log_pi, log_ref)).sum(), exact)
    assert bool((k3(log_pi, log_ref) >= 0).all())
    torch.testing.assert_close(k2(log_pi, log_ref), (log_pi - log_ref) ** 2 / 2)
    weighted = (log_old.exp() * importance_k3(log_pi, log_ref, log_old)).sum()
    torch.testing.assert_close(weighted, exact)
    for surrogate in (weighted, (pi * k2(log_pi, log_ref)).sum(), (pi * straight_through_k3(log_pi, log_ref)).sum()):
        (found,) = torch.autograd.grad(surrogate, policy, retain_graph=True)
        torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-7)


@given(vectors(3), st.data())
def test_log_probabilities_and_entropies_with_their_gradients(given: list[Tensor], data: st.DataObject) -> None:
    logits = torch.stack(given)
    actions = torch.tensor(data.draw(st.lists(st.integers(0, logits.shape[1] - 1), min_size=3, max_size=3)))
    weights = torch.tensor(data.draw(st.lists(numbers, min_size=6, max_size=6)), dtype=torch.float64)
    found, slow = (logits.clone().requires_grad_() for _ in range(2))
    log_prob, entropy = log_prob_and_entropy(found, actions)
    log_p = torch.log_softmax(slow, dim=-1)
    expected = (log_p[torch.arange(3), actions], -(log_p.exp() * log_p).sum(dim=-1))
    torch.testing.assert_close(torch.stack([log_prob, entropy]), torch.stack(expected))
    (weights @ torch.cat([log_prob, entropy])).backward()
    (weights @ torch.cat(expected)).backward()
    torch.testing.assert_close(found.grad, slow.grad)


# --- losses -------------------------------------------------------------------------------------------------------


@given(rows(), epsilons, epsilons, st.sampled_from([None, 1.5, 3.0]), st.sampled_from([None, 10.0]))
def test_clipped_losses(given: Rows, low: float, high: float, dual: float | None, count: float | None) -> None:
    new, old, advantages, mask = given
    total = count or len(given.places)

    def clipped(ratio: float) -> float:
        return min(max(ratio, 1 - low), 1 + high)

    terms = []
    outside = 0
    divergence = 0.0
    for a, b, gain in given.places:
        ratio = math.exp(a - b)
        term = min(ratio * gain, clipped(ratio) * gain)
        terms.append(max(term, dual * gain) if dual is not None and gain < 0 else term)
        outside += ratio < 1 - low or ratio > 1 + high
        divergence += ratio - 1 - (a - b)
    found = ppo_policy_loss(new, old, advantages, mask, clip_range=(low, high), dual_clip=dual, denominator=count)
    assert float(found.loss) == pytest.approx(-sum(terms) / total, rel=1e-9, abs=1e-9)
    assert float(found.approx_kl) == pytest.approx(divergence / total, rel=1e-9, abs=1e-9)
    if all(abs(math.exp(a - b) - edge) > 1e-9 for a, b, _ in given.places for edge in (1 - low, 1 + high)):
        assert float(found.clip_fraction) == pytest.approx(outside / total)

    weighted = sum(clipped(math.exp(a - b)) * gain * a for a, b, gain in given.places)
    found = cispo_policy_loss(new, old, advantages, mask, clip_range=(low, high), denominator=count)
    assert float(found.loss) == pytest.approx(-weighted / total, rel=1e-9, abs=1e-9)

    of_responses = 0.0
    for row, places in enumerate(given.per_row()):
        ratio = math.exp(sum(float(new[row, t] - old[row, t]) for t in places) / max(1, len(places)))
        gains = [float(advantages[row, t]) for t in places]
        of_responses += sum(min(ratio * gain, clipped(ratio) * gain) for gain in gains)
    found = gspo_policy_loss(new, old, advantages, mask, clip_range=(low, high), denominator=count)
    assert float(found.loss) == pytest.approx(-of_responses / total, rel=1e-9, abs=1e-9)


@given(rows(), st.sampled_from([None, 0.0, 0.3, 2.0]))
def test_value_loss(given: Rows, clip: float | None) -> None:
    values, old, returns, mask = given
    terms = []
    larger = 0
    for value, before, target in given.places:
        plain = (value - target) ** 2
        near = plain if clip is None else (before + min(max(value - before, -clip), clip) - target) ** 2
        terms.append(max(plain, near))
        larger += near > plain + 1e-12
    found = ppo_value_loss(values, old, returns, mask, clip_range_vf=clip)
    assert float(found.loss) == pytest.approx(np.mean(terms), rel=1e-9, abs=1e-9)
    assert float(found.clip_fraction) == pytest.approx(larger / len(terms), abs=1e-9) or clip == 0.0


@given(vectors(4), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 0.01]), st.booleans(), st.booleans())
def test_the_loss_of_comparisons(
    given: list[Tensor], smoothing: float, centering: float, weighted: bool, with_margin: bool
) -> None:
    chosen, rejected, margin, weight = given
    weight = weight.abs() + 0.1
    total = 0.0
    for better, worse, lead, omega in zip(*(x.tolist() for x in (*given[:3], weight)), strict=True):
        delta = better - worse - (lead if with_margin else 0)
        loss = (1 - smoothing) * math.log1p(math.exp(-delta)) + smoothing * math.log1p(math.exp(delta))
        total += (omega if weighted else 1) * (loss + centering * (better + worse) ** 2)
    settings = {"label_smoothing": smoothing, "centering": centering}
    settings |= {"margin": margin} if with_margin else {}
    settings |= {"weight": weight} if weighted else {}
    count = float(weight.sum()) if weighted else len(chosen)
    assert float(bradley_terry_loss(chosen, rejected, **settings)) == pytest.approx(total / count, rel=1e-9)
    assert float(bradley_terry_loss(chosen, rejected, **settings, denominator=7.0)) == pytest.approx(total / 7)


@given(vectors(4), st.sampled_from([0.1, 0.5, 2.0]), st.sampled_from(["sigmoid", "ipo"]))
def test_the_loss_of_dpo(given: list[Tensor], beta: float, kind) -> None:
    found = dpo_loss(*given, beta=beta, loss=kind)
    total = 0.0
    for i, (chosen, rejected, ref_chosen, ref_rejected) in enumerate(zip(*(x.tolist() for x in given), strict=True)):
        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        total += math.log1p(math.exp(-beta * h)) if kind == "sigmoid" else (h - 1 / (2 * beta)) ** 2
        assert float(found.chosen_reward[i]) == pytest.approx(beta * (chosen - ref_chosen))
        assert float(found.rejected_reward[i]) == pytest.approx(beta * (rejected - ref_rejected))
    assert float(found.loss) == pytest.approx(total / len(given[0]))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_the_best_of_n_is_the_mean_over_subsets(proxy: list[int], data: st.DataObject) -> None:
    values = data.draw(st.lists(numbers, min_size=len(proxy), max_size=len(proxy)))
    sizes = range(1, len(proxy) + 1)
    expected = []
    for size in sizes:
        best = []
        for subset in itertools.combinations(range(len(proxy)), size):
            highest = max(proxy[i] for i in subset)
            best.append(np.mean([values[i] for i in subset if proxy[i] == highest]))
        expected.append(np.mean(best))
    np.testing.assert_allclose(best_of_n_estimate([proxy], [values], sizes)[0], expected, rtol=1e-9, atol=1e-9)
