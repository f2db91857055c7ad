"""What is minimised at each stage: reward modelling, PPO's two losses, REINFORCE, DPO.

The symbols are the papers'. Every function returns a loss to minimise, so PPO's objectives carry a minus here. Means
run over the real tokens of a mask. `denominator` replaces their number: micro-batches that are given the token count of
the whole batch add up to exactly its loss. Values in masked places, NaN included, reach neither loss nor gradient.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_gym.functional._checks import check_in_range, check_rank, check_same_shape
from rlhf_gym.functional.whitening import masked_mean, zero_masked

# --- reward modelling ---------------------------------------------------------------------------------------------


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
    weight: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Mean over pairs of −log σ(Δ), with Δ = r(y_chosen) − r(y_rejected) − margin.

    The negative log-likelihood of the comparisons (Christiano et al. 2017, arXiv 1706.03741). With the options:

        (1 − ε)·(−log σ(Δ)) + ε·(−log σ(−Δ)) + c·(r(y_chosen) + r(y_rejected))²

    Args:
        chosen: r(y_chosen), shape (B,).
        rejected: r(y_rejected), shape (B,).
        margin: by how much the chosen one should win, shape (B,) (Llama 2, arXiv 2307.09288).
        label_smoothing: ε in [0, 0.5], the share of labels taken to be flipped (cDPO, Mitchell 2023).
        centering: c, which holds scores near 0: comparisons alone leave each prompt's scores free by a constant
            (Eisenstein et al. 2023, arXiv 2312.09244).
        weight: a weight for each pair, shape (B,). With 1/C(K,2) for the pairs of a ranking of K responses, all
            prompts count alike (Ouyang et al. 2022, arXiv 2203.02155, equation 1).
        denominator: what the weighted sum is divided by, instead of the sum of the weights.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ or are not (B,), ε or c is out of range.
    """
    check_rank("(B,)", chosen=chosen)
    check_same_shape(chosen=chosen, rejected=rejected, margin=margin, weight=weight)
    check_in_range("label_smoothing", label_smoothing, 0, 0.5)
    check_in_range("centering", centering, 0)
    delta = chosen - rejected if margin is None else chosen - rejected - margin  # (B,)
    loss = -(1 - label_smoothing) * logsigmoid(delta) - label_smoothing * logsigmoid(-delta)  # (B,)
    if centering:
        loss = loss + centering * (chosen + rejected).square()
    if weight is None:
        return masked_mean(loss, torch.ones_like(loss), denominator)
    return (weight * loss).sum() / (weight.sum() if denominator is None else denominator)


# --- policy gradients ---------------------------------------------------------------------------------------------


class PolicyLoss(NamedTuple):
    """The result of `ppo_policy_loss`; everything but `loss` is detached."""

    loss: Tensor
    """−L^CLIP, a scalar."""
    clip_fraction: Tensor
    """Share of real tokens with |r_t − 1| > ε, a scalar."""
    approx_kl: Tensor
    """KL(π_old‖π_θ) by k3, the mean of (r_t − 1) − log r_t over the real tokens, a scalar, as SB3 logs it."""
    ratio: Tensor
    """r_t(θ), the shape of log_prob; 1 in masked places."""


class ValueLoss(NamedTuple):
    """The result of `ppo_value_loss`."""

    loss: Tensor
    """L^VF, a scalar."""
    clip_fraction: Tensor
    """Share of real tokens where the clipped error is the larger one, a scalar, detached."""


def ppo_policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float,
    denominator: Tensor | float | None = None,
) -> PolicyLoss:
    """−L^CLIP = −Ê_t[min(r_t·Â_t, clip(r_t, 1 − ε, 1 + ε)·Â_t)], with r_t = π_θ(a_t|s_t)/π_old(a_t|s_t).

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv 1707.06347, equation 7. It is the minimum
    whatever the sign of Â: at r=1.3, Â=−3 the objective is −3.9, not the clipped −3.6. So clipping never hides a loss.

    Args:
        log_prob: log π_θ(a_t|s_t), shape (B, T).
        old_log_prob: log π_old(a_t|s_t) of the policy that acted, shape (B, T).
        advantages: Â_t, shape (B, T).
        mask: real tokens, shape (B, T).
        clip_range: ε.
        denominator: real tokens in the whole batch, where this is a micro-batch of it.

    Raises:
        ValueError: shapes differ, ε is negative, or nothing is real and no denominator was given.
    """
    check_same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantages=advantages, mask=mask)
    check_in_range("clip_range", clip_range, 0)
    advantages = zero_masked(advantages, mask)  # (B, T)
    log_ratio = zero_masked(log_prob, mask) - zero_masked(old_log_prob, mask)  # (B, T)
    ratio = log_ratio.exp()  # (B, T)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)  # (B, T)
    objective = torch.minimum(ratio * advantages, clipped * advantages)  # (B, T)
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip_range).to(ratio.dtype)  # (B, T)
        old_to_new = torch.expm1(log_ratio) - log_ratio  # (B, T)
        clip_fraction = masked_mean(outside, mask, denominator)
        approx_kl = masked_mean(old_to_new, mask, denominator)
    return PolicyLoss(-masked_mean(objective, mask, denominator), clip_fraction, approx_kl, ratio.detach())


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip_range_vf: float | None,
    denominator: Tensor | float | None = None,
) -> ValueLoss:
    """L^VF = Ê_t[max((V − V^targ)², (clip(V, V_old − ε, V_old + ε) − V^targ)²)]; with ε None, Ê_t[(V − V^targ)²].

    The squared error of the PPO paper's equation 9, clipped as in OpenAI's baselines and in Ziegler et al. 2019. As in
    the paper and in SB3 there is no factor ½; it belongs into c₁ (`vf_coef`).

    Args:
        values: V_θ(s_t), shape (B, T).
        old_values: V_old(s_t) at the time of the rollout, shape (B, T).
        returns: V^targ_t, shape (B, T).
        mask: real tokens, shape (B, T).
        clip_range_vf: ε, in the units of the return, or None for no clipping.
        denominator: real tokens in the whole batch, where this is a micro-batch of it.

    Raises:
        ValueError: shapes differ, ε is negative, or nothing is real and no denominator was given.
    """
    check_same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    values = zero_masked(values, mask)  # (B, T)
    returns = zero_masked(returns, mask)  # (B, T)
    error = (values - returns).square()  # (B, T)
    if clip_range_vf is None:
        return ValueLoss(masked_mean(error, mask, denominator), error.new_zeros(()))
    check_in_range("clip_range_vf", clip_range_vf, 0)
    old_values = zero_masked(old_values, mask)  # (B, T)
    clipped = old_values + (values - old_values).clamp(-clip_range_vf, clip_range_vf)  # (B, T)
    clipped_error = (clipped - returns).square()  # (B, T)
    larger = (clipped_error > error).to(error.dtype).detach()  # (B, T)
    loss = masked_mean(torch.maximum(error, clipped_error), mask, denominator)
    return ValueLoss(loss, masked_mean(larger, mask, denominator))


def policy_gradient_loss(
    log_prob: Tensor, advantages: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """−Ê_t[Â_t·log π_θ(a_t|s_t)], whose gradient is minus REINFORCE's (Williams 1992).

    Shapes: all three the same, e.g. (B, T); the result a scalar.

    Raises:
        ValueError: shapes differ, or nothing is real and no denominator was given.
    """
    check_same_shape(log_prob=log_prob, advantages=advantages, mask=mask)
    return -masked_mean(zero_masked(log_prob, mask) * zero_masked(advantages, mask), mask, denominator)


# --- preferences without RL ---------------------------------------------------------------------------------------


class DPOLoss(NamedTuple):
    """The result of `dpo_loss`; the rewards are detached."""

    loss: Tensor
    """The mean over pairs, a scalar."""
    chosen_reward: Tensor
    """β·(log π(y_chosen) − log π_ref(y_chosen)), the reward this policy is optimal for, shape (B,)."""
    rejected_reward: Tensor
    """The same of y_rejected, shape (B,)."""


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    loss: Literal["sigmoid", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
    denominator: Tensor | float | None = None,
) -> DPOLoss:
    """Direct preference optimisation, with h = (log π − log π_ref)(y_chosen) − (log π − log π_ref)(y_rejected).

    "sigmoid": −log σ(βh), smoothed as in `bradley_terry_loss` (Rafailov et al. 2023, arXiv 2305.18290, equation 7).
    "ipo": (h − 1/(2β))², which has its minimum at a finite h (Azar et al. 2023, arXiv 2310.12036; their τ is β).

    Args:
        chosen: log π(y_chosen|x), summed over the response's tokens, shape (B,).
        rejected: log π(y_rejected|x), shape (B,).
        ref_chosen: log π_ref(y_chosen|x), shape (B,).
        ref_rejected: log π_ref(y_rejected|x), shape (B,).
        beta: β > 0, the strength of the KL penalty that is optimised implicitly.
        loss: "sigmoid" or "ipo".
        label_smoothing: ε in [0, 0.5], for "sigmoid" only.
        denominator: pairs in the whole batch, where this is a micro-batch of it.

    Raises:
        ValueError: shapes differ or are not (B,), β or ε is out of range, or `loss` is neither.
    """
    check_rank("(B,)", chosen=chosen)
    check_same_shape(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    if not beta > 0:
        raise ValueError(f"expected beta > 0, got {beta}")
    chosen_log_ratio = chosen - ref_chosen  # (B,)
    rejected_log_ratio = rejected - ref_rejected  # (B,)
    if loss == "sigmoid":
        value = bradley_terry_loss(
            beta * chosen_log_ratio,
            beta * rejected_log_ratio,
            label_smoothing=label_smoothing,
            denominator=denominator,
        )
    elif loss == "ipo":
        if label_smoothing:
            raise ValueError(f'expected label_smoothing 0 with loss="ipo", got {label_smoothing}')
        error = (chosen_log_ratio - rejected_log_ratio - 1 / (2 * beta)).square()  # (B,)
        value = masked_mean(error, torch.ones_like(error), denominator)
    else:
        raise ValueError(f'expected loss "sigmoid" or "ipo", got {loss!r}')
    return DPOLoss(value, (beta * chosen_log_ratio).detach(), (beta * rejected_log_ratio).detach())
