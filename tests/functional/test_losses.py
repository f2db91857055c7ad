"""Losses against numbers worked out by hand; gradients too, since a loss can be right and teach the wrong thing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf_gym.functional import (
    bradley_terry_loss,
    cispo_policy_loss,
    dpo_loss,
    gspo_policy_loss,
    policy_gradient_loss,
    ppo_policy_loss,
    ppo_value_loss,
)
from tests.toy import kwise_loss


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# --- Bradley–Terry ---


def test_bradley_terry_by_hand() -> None:
    assert bradley_terry_loss(t(1.0), t(1.5)).item() == pytest.approx(0.9741, abs=5e-5)


def test_bradley_terry_gradient_is_sigma_minus_1() -> None:
    chosen, rejected = t(1.0).requires_grad_(), t(1.5).requires_grad_()
    bradley_terry_loss(chosen, rejected).backward()
    sigma = 1 / (1 + math.exp(0.5))
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(sigma - 1, abs=1e-12)
    assert rejected.grad.item() == pytest.approx(1 - sigma, abs=1e-12)


@pytest.mark.parametrize(("delta", "loss", "gradient"), [(1e4, 0.0, 0.0), (-1e4, 1e4, -1.0)])
def test_bradley_terry_is_finite_far_out(delta: float, loss: float, gradient: float) -> None:
    chosen = torch.tensor([delta], requires_grad=True)
    value = bradley_terry_loss(chosen, torch.zeros(1))
    value.backward()
    assert chosen.grad is not None
    assert (value.item(), chosen.grad.item()) == (loss, gradient)


def test_bradley_terry_options_add_up() -> None:
    """Δ = 2 − .5 − .3 = 1.2; (1−ε)·softplus(−Δ) + ε·softplus(Δ) + c·(2 + .5)²."""
    value = bradley_terry_loss(t(2.0), t(0.5), margin=t(0.3), label_smoothing=0.1, centering=0.01)
    assert value.item() == pytest.approx(0.9 * softplus(-1.2) + 0.1 * softplus(1.2) + 0.01 * 6.25, abs=1e-12)


def test_label_smoothing_has_its_minimum_where_the_labels_say() -> None:
    """With ε flipped labels the best Δ is logit(1 − ε), where the gradient is 0."""
    delta = t(math.log(0.9 / 0.1)).requires_grad_()
    bradley_terry_loss(delta, t(0.0), label_smoothing=0.1).backward()
    assert delta.grad is not None
    assert delta.grad.item() == pytest.approx(0, abs=1e-12)


def test_pair_weights_make_prompts_count_alike() -> None:
    """A ranking of 3 (three pairs of weight 1/3) and a single pair (weight 1): the mean of the two prompts' losses."""
    scores, lone = t(0.3, 1.2, -0.4), t(0.7, 0.1)
    ranking = torch.tensor([2, 1, 3])
    chosen = torch.cat([scores[[1, 0, 1]], lone[:1]])
    rejected = torch.cat([scores[[0, 2, 2]], lone[1:]])
    value = bradley_terry_loss(chosen, rejected, weight=t(1 / 3, 1 / 3, 1 / 3, 1))
    expected = (kwise_loss(scores, ranking) + bradley_terry_loss(lone[:1], lone[1:])) / 2
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("weight", [None, t(0.5, 1.0, 2.0, 0.25)])
def test_bradley_terry_micro_batches_add_up(weight: Tensor | None) -> None:
    chosen, rejected = torch.randn(2, 4, dtype=torch.float64)
    total = 4 if weight is None else weight.sum()
    parts = [
        bradley_terry_loss(chosen[s], rejected[s], weight=None if weight is None else weight[s], denominator=total)
        for s in (slice(0, 1), slice(1, 4))
    ]
    assert sum(parts).item() == pytest.approx(bradley_terry_loss(chosen, rejected, weight=weight).item(), abs=1e-12)


def test_the_loss_of_73_wins_in_100_is_lowest_at_their_log_odds() -> None:
    delta = t(math.log(73 / 27)).requires_grad_()
    assert delta.item() == pytest.approx(0.9946, abs=1e-3)
    chosen = torch.cat([delta.expand(73), torch.zeros(27, dtype=torch.float64)])
    rejected = torch.cat([torch.zeros(73, dtype=torch.float64), delta.expand(27)])
    bradley_terry_loss(chosen, rejected).backward()
    assert delta.grad is not None
    assert delta.grad.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bradley_terry_loss(torch.zeros(3), torch.zeros(2)), r"rejected of shape \(3,\).*got \(2,\)"),
        (lambda: bradley_terry_loss(torch.zeros(3, 1), torch.zeros(3, 1)), r"chosen of shape \(B,\), got \(3, 1\)"),
        (lambda: bradley_terry_loss(t(1.0), t(1.0), margin=t(1.0, 2.0)), r"expected margin of shape \(1,\)"),
        (lambda: bradley_terry_loss(t(1.0), t(1.0), label_smoothing=0.6), r"label_smoothing in \[0, 0.5\], got 0.6"),
        (lambda: dpo_loss(t(1.0), t(1.0), t(1.0), t(1.0), beta=0.0), "expected beta > 0, got 0"),
        (lambda: dpo_loss(t(1.0), t(1.0), t(1.0), t(1.0, 2.0), beta=1.0), r"ref_rejected of shape \(1,\)"),
        (lambda: dpo_loss(t(1.0), t(1.0), t(1.0), t(1.0), beta=1.0, loss="hinge"), "got 'hinge'"),  # type: ignore[arg-type]
        (lambda: dpo_loss(t(1.0), t(1.0), t(1.0), t(1.0), beta=1.0, loss="ipo", label_smoothing=0.1), "smoothing 0"),
        (lambda: policy_gradient_loss(t(1.0), t(1.0), t(1.0, 1.0)), r"mask of shape \(1,\)"),
        (lambda: ppo_policy_loss(t(1.0), t(1.0), t(1.0, 1.0), t(1.0), clip_range=0.2), r"advantages of shape \(1,\)"),
        (lambda: ppo_policy_loss(t(1.0), t(1.0), t(1.0), t(1.0), clip_range=-0.2), "clip_range in"),
        (lambda: ppo_policy_loss(t(1.0), t(1.0), t(1.0), t(1.0), clip_range=(0.2, -0.1)), "clip_range in"),
        (
            lambda: ppo_policy_loss(t(1.0), t(1.0), t(1.0), t(1.0), clip_range=0.2, dual_clip=1.0),
            "dual_clip > 1, got 1",
        ),
        (lambda: gspo_policy_loss(t(1.0), t(1.0), t(1.0), t(1.0), clip_range=0.2), r"log_prob of shape \(B, T\)"),
        (lambda: cispo_policy_loss(t(1.0), t(1.0), t(1.0, 1.0), t(1.0), clip_range=0.2), r"advantages of shape \(1,\)"),
        (lambda: ppo_value_loss(t(1.0), t(1.0), t(1.0, 1.0), t(1.0), clip_range_vf=None), r"returns of shape \(1,\)"),
        (lambda: ppo_value_loss(t(1.0), t(1.0), t(1.0), t(1.0), clip_range_vf=-0.2), "clip_range_vf in"),
    ],
)
def test_errors_state_expected_and_actual(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- PPO ---


def ppo_at(ratio: float, advantage: float, loss=ppo_policy_loss, clip_range=0.2, **more) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Loss and its gradient with respect to log π, of one token at this ratio."""
    log_prob = t(math.log(ratio)).requires_grad_()
    loss = loss(log_prob, t(0.0), t(advantage), t(1.0), clip_range=clip_range, **more).loss
    loss.backward()
    assert log_prob.grad is not None
    return loss.item(), log_prob.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 1.0, -1.2, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        (1.5, -1.0, 1.5, 1.5),
        (0.5, -1.0, 0.8, 0.0),
        (3.0, 4.0, -4.8, 0.0),
        (1.3, -3.0, 3.9, 3.9),  # the minimum, −3.9, not the clipped −3.6
        (1.0, 2.0, -2.0, -2.0),
    ],
)
def test_ppo_clip(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert ppo_at(ratio, advantage) == pytest.approx((loss, gradient), abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.25, 1.0, -1.25, -1.25),  # inside ε_high
        (1.3, 1.0, -1.28, 0.0),
        (0.75, -1.0, 0.8, 0.0),  # ε_low is PPO's
        (0.85, -1.0, 0.85, 0.85),
        (1.3, -1.0, 1.3, 1.3),
    ],
)
def test_clip_higher(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert ppo_at(ratio, advantage, clip_range=(0.2, 0.28)) == pytest.approx((loss, gradient), abs=1e-12)


def test_dual_clip_bounds_the_loss_of_a_bad_token_and_stops_its_gradient() -> None:
    assert ppo_at(5.0, -1.0) == pytest.approx((5.0, 5.0), abs=1e-12)
    assert ppo_at(5.0, -1.0, dual_clip=3.0) == pytest.approx((3.0, 0.0), abs=1e-12)
    assert ppo_at(2.0, -1.0, dual_clip=3.0) == pytest.approx((2.0, 2.0), abs=1e-12)
    assert ppo_at(5.0, 1.0, dual_clip=3.0) == pytest.approx((-1.2, 0.0), abs=1e-12)  # good tokens are as ever


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    """1.2·∇log π at ratio 3, where PPO's gradient is 0; with ε_low = 1 nothing is clipped below."""
    assert ppo_at(3.0, 1.0)[1] == 0.0
    assert ppo_at(3.0, 1.0, cispo_policy_loss) == pytest.approx((-1.2 * math.log(3), -1.2), abs=1e-12)
    assert ppo_at(0.1, -1.0, cispo_policy_loss)[1] == pytest.approx(0.8, abs=1e-12)
    assert ppo_at(0.1, -1.0, cispo_policy_loss, (1.0, 0.2))[1] == pytest.approx(0.1, abs=1e-12)


def test_gspo_has_one_ratio_a_sequence() -> None:
    """Log-ratios (.1, .3, −.1) and a masked one: e^.1 at all three; another row has its own."""
    old = torch.zeros(2, 4, dtype=torch.float64)
    log_prob = torch.tensor([[0.1, 0.3, -0.1, 7.0], [0.2, 9.0, 9.0, 9.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    advantages = torch.tensor([[1.0] * 4, [-1.0] * 4], dtype=torch.float64)
    result = gspo_policy_loss(log_prob, old, advantages, mask, clip_range=0.5)
    s = math.exp(0.1)
    assert s == pytest.approx(1.10517, abs=1e-5)
    assert result.ratio.tolist() == [pytest.approx([s, s, s, 1]), pytest.approx([math.exp(0.2), 1, 1, 1])]
    assert result.loss.item() == pytest.approx(-(3 * s - math.exp(0.2)) / 4, abs=1e-12)
    result.loss.backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == [
        pytest.approx([-s / 4, -s / 4, -s / 4, 0]),
        pytest.approx([math.exp(0.2) / 4, 0, 0, 0]),
    ]


def test_gspo_clips_a_sequence_whole_and_has_the_gradient_of_its_ratio() -> None:
    old = torch.zeros(1, 3, dtype=torch.float64)
    log_prob = torch.tensor([[0.1, 0.3, -0.1]], dtype=torch.float64, requires_grad=True)
    mask, advantages = torch.ones(1, 3), torch.full((1, 3), 2.0, dtype=torch.float64)
    result = gspo_policy_loss(log_prob, old, advantages, mask, clip_range=(0.2, 0.1))
    (clipped,) = torch.autograd.grad(result.loss, log_prob)
    assert result.loss.item() == pytest.approx(-2.2, abs=1e-12)
    assert result.clip_fraction.item() == 1  # though one of its tokens is at .9
    assert clipped.abs().max() == 0
    (inside,) = torch.autograd.grad(gspo_policy_loss(log_prob, old, advantages, mask, clip_range=0.2).loss, log_prob)
    (plain,) = torch.autograd.grad(-2 * log_prob.mean().exp(), log_prob)
    torch.testing.assert_close(inside, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [ppo_policy_loss, gspo_policy_loss, cispo_policy_loss])
def test_at_ratio_1_the_gradient_is_that_of_reinforce(loss) -> None:  # type: ignore[no-untyped-def]
    advantages, mask = torch.randn(3, 4, dtype=torch.float64), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    log_prob = -torch.rand(3, 4, dtype=torch.float64)
    ours, reinforce = log_prob.clone().requires_grad_(), log_prob.clone().requires_grad_()
    loss(ours, log_prob, advantages, mask, clip_range=0.2).loss.backward()
    policy_gradient_loss(reinforce, advantages, mask).backward()
    torch.testing.assert_close(ours.grad, reinforce.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(reinforce.grad, -advantages * mask / mask.sum(), rtol=0, atol=1e-12)


def test_ppo_diagnostics_are_means_over_real_tokens() -> None:
    """Ratios 1.5, 1.1, .5 and a masked 9: two of three clipped, k3 the mean of r − 1 − log r."""
    log_prob = t(1.5, 1.1, 0.5, 9.0).log()
    result = ppo_policy_loss(log_prob, torch.zeros_like(log_prob), t(1, 1, 1, 1), t(1, 1, 1, 0), clip_range=0.2)
    assert result.clip_fraction.item() == pytest.approx(2 / 3, abs=1e-12)
    expected = sum(r - 1 - math.log(r) for r in (1.5, 1.1, 0.5)) / 3
    assert result.approx_kl.item() == pytest.approx(expected, abs=1e-12)
    assert result.ratio.tolist() == pytest.approx([1.5, 1.1, 0.5, 1.0], abs=1e-12)


def test_ppo_approx_kl_is_from_the_old_policy_to_the_new() -> None:
    """Summed over all actions weighted by π_old it is KL(π_old‖π_θ) exactly, not KL(π_θ‖π_old)."""
    old, new = t(0.5, 0.3, 0.2), t(0.4, 0.4, 0.2)
    each = [
        ppo_policy_loss(n.log()[None], o.log()[None], t(0.0), t(1.0), clip_range=0.2).approx_kl.item()
        for o, n in zip(old, new, strict=True)
    ]
    mean = sum(p * k for p, k in zip(old.tolist(), each, strict=True))
    assert mean == pytest.approx((old * (old / new).log()).sum().item(), abs=1e-12)
    assert mean != pytest.approx((new * (new / old).log()).sum().item(), abs=1e-4)


@pytest.mark.parametrize(
    ("value", "old_value", "target", "loss", "gradient"),
    [
        (1.0, 0.0, 1.0, 0.64, 0.0),  # at the target already, but clipped to .2: .8², and no gradient through the clip
        (1.0, 0.0, 0.0, 1.0, 2.0),  # clipped .2 would look better; the maximum keeps the true error and its gradient
        (0.1, 0.0, 1.0, 0.81, -1.8),  # inside the range: the plain squared error, without ½
    ],
)
def test_value_clipping(value: float, old_value: float, target: float, loss: float, gradient: float) -> None:
    values = t(value).requires_grad_()
    result = ppo_value_loss(values, t(old_value), t(target), t(1.0), clip_range_vf=0.2)
    result.loss.backward()
    assert values.grad is not None
    assert (result.loss.item(), values.grad.item()) == pytest.approx((loss, gradient), abs=1e-12)


def test_value_loss_without_clipping_is_the_squared_error() -> None:
    result = ppo_value_loss(t(1.0, 5.0), t(0.0, 0.0), t(3.0, 0.0), t(1.0, 0.0), clip_range_vf=None)
    assert (result.loss.item(), result.clip_fraction.item()) == (4.0, 0.0)


def test_value_clip_fraction_counts_real_tokens() -> None:
    result = ppo_value_loss(t(1.0, 0.1, 1.0), t(0, 0, 0), t(1, 1, 1), t(1, 1, 0), clip_range_vf=0.2)
    assert result.clip_fraction.item() == 0.5


LOSSES: dict[str, Callable[..., Tensor]] = {
    "policy": lambda a, b, c, m, d=None: ppo_policy_loss(a, b, c, m, clip_range=0.2, denominator=d).loss,
    "clip_fraction": lambda a, b, c, m, d=None: (
        ppo_policy_loss(a, b, c, m, clip_range=0.2, denominator=d).clip_fraction
    ),
    "approx_kl": lambda a, b, c, m, d=None: ppo_policy_loss(a, b, c, m, clip_range=0.2, denominator=d).approx_kl,
    "dual clip": lambda a, b, c, m, d=None: (
        ppo_policy_loss(a, b, c, m, clip_range=(0.2, 0.28), dual_clip=2.0, denominator=d).loss
    ),
    "gspo": lambda a, b, c, m, d=None: gspo_policy_loss(a, b, c, m, clip_range=(0.3, 0.4), denominator=d).loss,
    "cispo": lambda a, b, c, m, d=None: cispo_policy_loss(a, b, c, m, clip_range=(1.0, 0.2), denominator=d).loss,
    "value": lambda a, b, c, m, d=None: ppo_value_loss(a, b, c, m, clip_range_vf=0.2, denominator=d).loss,
    "gradient": lambda a, b, c, m, d=None: policy_gradient_loss(a, c, m, denominator=d),
}
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])


@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_add_up_to_the_batch(name: str) -> None:
    a, b, c = torch.randn(3, 4, 4, dtype=torch.float64)
    whole = LOSSES[name](a, b, c, MASK)
    parts = [LOSSES[name](a[s], b[s], c[s], MASK[s], MASK.sum()) for s in (slice(0, 1), slice(1, 4))]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_extra_padding_changes_nothing(name: str) -> None:
    a, b, c = torch.randn(3, 4, 4, dtype=torch.float64)
    wide = [torch.nn.functional.pad(x, (0, 3)) for x in (a, b, c, MASK)]
    assert LOSSES[name](*wide).item() == pytest.approx(LOSSES[name](a, b, c, MASK).item(), abs=1e-12)


@pytest.mark.parametrize("name", ["policy", "dual clip", "gspo", "cispo", "value", "gradient"])
@pytest.mark.parametrize("filling", [float("nan"), float("inf"), float("-inf")])
def test_nan_in_a_masked_place_changes_no_loss_and_no_gradient(name: str, filling: float) -> None:
    tensors = torch.randn(3, 4, 4, dtype=torch.float64)
    results = []
    for fill in (0.0, filling):
        inputs = [x.masked_fill(MASK == 0, fill).requires_grad_() for x in tensors]
        loss = LOSSES[name](*inputs, MASK)
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        results.append([loss, *(g for g in gradients if g is not None)])
    for clean, dirty in zip(*results, strict=True):
        assert clean.isfinite().all()
        assert torch.equal(clean, dirty)


# --- DPO ---


def test_dpo_by_hand() -> None:
    """h = (−1 + 1.5) − (−2 + 1.8) = .7, β = .5."""
    args = (t(-1.0), t(-2.0), t(-1.5), t(-1.8))
    result = dpo_loss(*args, beta=0.5)
    assert result.loss.item() == pytest.approx(softplus(-0.35), abs=1e-12)
    assert result.chosen_reward.tolist() == pytest.approx([0.25], abs=1e-12)
    assert result.rejected_reward.tolist() == pytest.approx([-0.1], abs=1e-12)
    smoothed = dpo_loss(*args, beta=0.5, label_smoothing=0.2).loss.item()
    assert smoothed == pytest.approx(0.8 * softplus(-0.35) + 0.2 * softplus(0.35), abs=1e-12)
    assert dpo_loss(*args, beta=0.5, loss="ipo").loss.item() == pytest.approx((0.7 - 1.0) ** 2, abs=1e-12)


def test_dpo_starts_at_log_2_when_the_policy_is_the_reference() -> None:
    chosen, rejected = torch.randn(2, 6, dtype=torch.float64)
    assert dpo_loss(chosen, rejected, chosen, rejected, beta=0.1).loss.item() == pytest.approx(math.log(2), abs=1e-12)


def test_ipo_has_its_minimum_at_one_over_2_beta() -> None:
    chosen = t(1 / (2 * 0.25)).requires_grad_()
    dpo_loss(chosen, t(0.0), t(0.0), t(0.0), beta=0.25, loss="ipo").loss.backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == 0


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_dpo_micro_batches_add_up(loss) -> None:  # type: ignore[no-untyped-def]
    args = torch.randn(4, 5, dtype=torch.float64)
    parts = [dpo_loss(*args[:, s], beta=0.3, loss=loss, denominator=5).loss for s in (slice(0, 2), slice(2, 5))]
    assert sum(parts).item() == pytest.approx(dpo_loss(*args, beta=0.3, loss=loss).loss.item(), abs=1e-12)
