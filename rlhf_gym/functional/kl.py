"""The divergence of a policy π from its reference π_ref: three estimators from samples, and the sum itself.

All of them are KL(π‖π_ref) = Σ_a π(a)·log(π(a)/π_ref(a)), in nats, per token: the direction in which RLHF penalises.
The estimators want actions drawn from π. They are named in John Schulman, "Approximating KL divergence" (2020),
http://joschu.net/blog/kl-approx.html.

In the *reward* only k1 has the right policy gradient, ∇KL = E[∇log π · k1]. For logs k3 is best, as it has less
variance. In the *loss*, differentiated directly, k2's gradient is that of the KL, and k1's is 0 on average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_gym.functional.masks import check_in_range, check_same_shape


def k1(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """log π(a) − log π_ref(a) at a ~ π. It is unbiased, may have either sign, and has much variance.

    Shapes: both the same, and so is the result: one value per token.
    """
    check_same_shape(log_prob=log_prob, ref_log_prob=ref_log_prob)
    return log_prob - ref_log_prob


def k2(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """½·(log π(a) − log π_ref(a))² at a ~ π. It is never negative, and biased, but little while π is near π_ref.

    Shapes: both the same, and so is the result: one value per token.
    """
    return 0.5 * k1(log_prob, ref_log_prob).square()


def k3(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """(ρ − 1) − log ρ with ρ = π_ref(a)/π(a), at a ~ π. It is unbiased, never negative, and has little variance.

    k1 plus the control variate ρ − 1, whose mean under π is 0.

    Shapes: both the same, and so is the result: one value per token.
    """
    log_ratio = k1(log_prob, ref_log_prob)
    return torch.expm1(-log_ratio) + log_ratio


def importance_k3(log_prob: Tensor, ref_log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """π(a)/π_old(a) · k3 at a ~ π_old, to be differentiated: the KL's own gradient, however far π has moved.

    The mean under π_old of value and gradient are KL(π‖π_ref) and ∇KL(π‖π_ref): the weight's gradient, ∇log π · k3,
    adds what k3's own lacks. Without it, k3's gradient in a loss is that of KL(π_ref‖π). Zhang et al. 2025, "On the
    Design of KL-Regularized Policy Gradient Algorithms", arXiv 2505.17508; DeepSeek-AI 2025, "DeepSeek-V3.2", arXiv
    2512.02556, section 3.1. It is the KL of one token: what the action does to the states after it is not in it.

    Shapes: all the same, and so is the result: one value per token.
    """
    check_same_shape(log_prob=log_prob, ref_log_prob=ref_log_prob, old_log_prob=old_log_prob)
    return (log_prob - old_log_prob).exp() * k3(log_prob, ref_log_prob)


def straight_through_k3(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """k3's value with k2's gradient, log(π/π_ref)·∇log π: k2 + sg[k3 − k2], at a ~ π.

    For a KL in the loss, in the place of one in the reward. The value, which is logged, is unbiased, and the gradient
    is the KL's on the policy's own samples. After the first step on a rollout it is biased, as it has no importance
    weight.

    Shapes: both the same, and so is the result: one value per token.
    """
    differentiated = k2(log_prob, ref_log_prob)
    return differentiated + (k3(log_prob, ref_log_prob) - differentiated).detach()


def full_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(π‖π_ref) = Σ_a π(a)·(log π(a) − log π_ref(a)), the sum over the vocabulary, from unnormalised logits.

    Computed in fp32 at least. An action that π never takes (logit −∞) adds 0; one that π takes and π_ref never does
    makes it +∞.

    Shapes: both (..., V); the result (...).
    """
    check_same_shape(logits=logits, ref_logits=ref_logits)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_pi = torch.log_softmax(logits.to(dtype), dim=-1)  # (..., V)
    log_pi_ref = torch.log_softmax(ref_logits.to(dtype), dim=-1)  # (..., V)
    pi = log_pi.exp()  # (..., V)
    never = pi == 0
    log_ratio = log_pi.masked_fill(never, 0) - log_pi_ref.masked_fill(never, 0)  # (..., V)
    return (pi * log_ratio).sum(dim=-1)


def adaptive_kl_coef(
    kl_coef: float, kl: float, *, target: float, n: int, horizon: int, max_error: float = 0.2
) -> float:
    """The next β of the proportional controller: β·(1 + clip(KL/target − 1, ±0.2)·n/horizon).

    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", arXiv 1909.08593, section 2.2; their
    gain K_β is written n/horizon, as in their code.

    Args:
        kl_coef: β now.
        kl: mean KL per sequence over the last rollout, in nats.
        target: the KL to hold.
        n: episodes in the last rollout.
        horizon: episodes over which β may change by a factor of about e^0.2.
        max_error: where the proportional error is clipped.

    Raises:
        ValueError: target or horizon is not positive, or KL is NaN or infinite.
    """
    check_in_range("target", target, 1e-12)
    check_in_range("horizon", horizon, 1)
    check_in_range("kl", kl, -1e30, 1e30)
    error = min(max(kl / target - 1.0, -max_error), max_error)
    return kl_coef * (1.0 + error * n / horizon)
