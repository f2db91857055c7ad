"""The policy-gradient term, from rewards to the loss: log-probabilities, advantages, losses of PPO and REINFORCE.

Rows are episodes; a mask says at which of their places the agent acted. Time counts actions: nothing is discounted or
bootstrapped across places where the agent did not act, be they padding or another's tokens. An episode ends for good at
its last action, so nothing is bootstrapped beyond it. Each row of advantages comes out as it would alone, whatever
stands beside it in the batch.

Every loss is to be minimised, so PPO's objectives carry a minus here. Means run over the real tokens of a mask.
`denominator` replaces their number: micro-batches that are given the token count of the whole batch add up to exactly
its loss. Values in masked places, NaN included, reach neither loss nor gradient. The symbols are the papers'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_gym.functional.masks import (
    check_in_range,
    check_rank,
    check_same_shape,
    masked_mean,
    masked_whiten,
    zero_masked,
)
from rlhf_gym.ranges import INFINITE, check_ranges

LOWEST = -1e30
"""The logarithm of 0, finite so that 0 · log 0 = 0."""

# --- log-probabilities ----------------------------------------------------------------------------------------------


def log_prob_and_entropy(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """log p(a) and H(p) = −Σ_a p(a) log p(a) in nats, p = softmax(logits), differentiable once.

    It gives what one gets by gathering from a log-softmax and summing p·log p, in a few passes over the vocabulary
    instead of a dozen. With a large vocabulary these passes can take longer than the model. With l̂ = logits − max,
    z = e^l̂ and s = Σ z:

        log p(a) = l̂_a − log s        ∂/∂logits = 1[a] − z/s
        H = log s − Σ z·l̂ / s         ∂/∂logits = −(z/s)·(l̂ − log s + H)

    Args:
        logits: (n, V) fp32; −inf has probability 0.
        actions: (n,) int64.

    Returns:
        (n,) and (n,).
    """
    if logits.ndim != 2 or actions.shape != logits.shape[:1]:
        raise ValueError(f"expected logits (n, V) and actions (n,), got {tuple(logits.shape)}, {tuple(actions.shape)}")
    log_probs, entropies = _LogProbAndEntropy.apply(logits, actions)  # type: ignore[no-untyped-call]
    return log_probs, entropies


class _LogProbAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        highest = logits.amax(dim=-1, keepdim=True)  # (n, 1)
        shifted = (logits - highest).clamp_(min=LOWEST)  # (n, V)
        weights = shifted.exp()  # (n, V)
        total = weights.sum(dim=-1)  # (n,)
        log_total = total.log()
        mean = torch.einsum("nv,nv->n", weights, shifted) / total
        entropies = log_total - mean  # (n,)
        log_probs = (logits.gather(-1, actions[:, None]) - highest)[:, 0] - log_total  # (n,)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weights, total, log_total, entropies, actions, shifted)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, log_prob_grad: Tensor | None, entropy_grad: Tensor | None) -> tuple[Tensor | None, None]:
        weights, total, log_total, entropies, actions, shifted = ctx.saved_tensors
        grad: Tensor | None = None
        if log_prob_grad is not None:
            grad = weights * (-log_prob_grad / total)[:, None]  # (n, V)
            grad.scatter_add_(-1, actions[:, None], log_prob_grad[:, None])
        if entropy_grad is not None:
            slope = shifted + (entropies - log_total)[:, None]  # (n, V)
            slope.mul_(weights).mul_((-entropy_grad / total)[:, None])
            grad = slope if grad is None else grad.add_(slope)
        return grad, None


# --- advantages -----------------------------------------------------------------------------------------------------


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: advantages Â_t and returns (the critic's targets) Â_t + V_t.

    δ_t = r_t + γ·V_{t+1} − V_t,  Â_t = δ_t + γλ·Â_{t+1},  where t + 1 is the next action; after the last, V = Â = 0.

    Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    arXiv 1506.02438, equation 16. λ=0 is the TD error, λ=1 the return minus the value.

    Args:
        rewards: r_t of each action, shape (B, T); rewards at masked places are not read.
        values: V(s_t) of the state acted from, shape (B, T).
        mask: places where the agent acted, shape (B, T); they need not stand side by side.
        gamma: γ, in [0, 1]; 1 in RLHF, where it lets the KL terms and the score add up to the objective.
        gae_lambda: λ, in [0, 1], one for all rows or one a row, shape (B,).

    Returns:
        advantages and returns, each (B, T), 0 in masked places.

    Raises:
        ValueError: shapes differ or are not (B, T), γ or λ is out of range.
    """
    check_rank("(B, T)", rewards=rewards)
    check_same_shape(rewards=rewards, values=values, mask=mask)
    check_in_range("gamma", gamma, 0, 1)
    if isinstance(gae_lambda, Tensor):
        if gae_lambda.shape != rewards.shape[:1]:
            raise ValueError(f"expected gae_lambda of shape ({len(rewards)},), got {tuple(gae_lambda.shape)}")
        for value in gae_lambda.tolist():
            check_in_range("gae_lambda", value, 0, 1)
    else:
        check_in_range("gae_lambda", gae_lambda, 0, 1)
    rewards = zero_masked(rewards, mask)  # (B, T)
    values = zero_masked(values, mask)  # (B, T)
    acted = mask != 0  # (B, T)
    next_value = values.new_zeros(values.shape[0])  # (B,)
    next_advantage = rewards.new_zeros(rewards.shape[0])  # (B,)
    advantages = torch.zeros_like(rewards)  # (B, T)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # (B,)
        advantage = delta + gamma * gae_lambda * next_advantage  # (B,)
        next_advantage = torch.where(acted[:, t], advantage, next_advantage)
        next_value = torch.where(acted[:, t], values[:, t], next_value)
        advantages[:, t] = advantage
    advantages = zero_masked(advantages, mask)
    return advantages, advantages + values


def length_adaptive_lambda(lengths: Tensor, *, alpha: float = 0.05) -> Tensor:
    """λ = 1 − 1/(α·T), at least 0: the longer a response, the further its reward reaches back.

    Yue et al. 2025, "VAPO", arXiv 2504.05118, section 4.2, where α = .05. The sum of the weights of GAE's terms is then
    about α·T: T = 100 has λ = .8, T = 1000 has .98. Responses of T ≤ 1/α tokens have λ = 0, the TD error alone, which
    trusts the critic entirely. The formula is for long responses.

    Shapes: lengths T of the responses, (B,); the result (B,).

    Raises:
        ValueError: lengths are not (B,), one is not positive, or α is not positive.
    """
    check_rank("(B,)", lengths=lengths)
    if not alpha > 0:
        raise ValueError(f"expected alpha > 0, got {alpha}")
    if not bool((lengths > 0).all()):
        raise ValueError(f"expected lengths > 0, got {lengths.min().item()}")
    return (1 - 1 / (alpha * lengths.to(torch.get_default_dtype()))).clamp(min=0)


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """G_t = r_t + γ·G_{t+1}, where t + 1 is the next action; 0 after the last.

    Shapes: rewards and mask (B, T), the mask as in `gae`; the result (B, T), 0 in masked places.

    Raises:
        ValueError: shapes differ or are not (B, T), γ is out of [0, 1].
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, gae_lambda=1.0)[0]


def globally_whitened_returns(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """REINFORCE++'s advantages, (G_t − mean)/std of the returns from each token on, over all tokens of the batch.

    Hu et al. 2025, "REINFORCE++", arXiv 2501.03262, with the KL penalty in the rewards and γ = 1. The mean is over
    the batch and not over the responses to one prompt. So prompts on which all responses do well count as good ones.
    Mean and std depend on each token itself, which biases the gradient by a share of about 1/(B·T).

    Shapes: rewards and mask (B, T), the mask as in `gae`; the result (B, T), 0 in masked places.

    Raises:
        ValueError: shapes differ or are not (B, T), γ is out of [0, 1], or nothing is real.
    """
    return masked_whiten(discounted_returns(rewards, mask, gamma=gamma), mask)


def has_spread(returns: Tensor) -> Tensor:
    """Whether the k responses to a prompt have different returns: one that is False has advantages of exactly 0.

    Groups without spread are what dynamic sampling replaces (Yu et al. 2025, "DAPO", arXiv 2503.14476, section 3.2).
    Their policy-gradient term is 0 by RLOO and by GRPO alike. So leaving them out of the mean makes the gradient longer
    and does not turn it.

    Shapes: returns (B, k); the result (B,) bool.

    Raises:
        ValueError: k < 2.
    """
    _check_groups(returns)
    return returns.amax(dim=1) > returns.amin(dim=1)


def _check_groups(scores: Tensor) -> None:
    check_rank("(B, k)", scores=scores)
    if scores.shape[1] < 2:
        raise ValueError(
            f"expected at least 2 responses a prompt, shape (B, k) with k >= 2, got {tuple(scores.shape)}: "
            "a response alone has no others to be compared with"
        )


def rloo_advantages(scores: Tensor) -> Tensor:
    """R_i − b_i, where b_i = (Σ_j R_j − R_i)/(k − 1) is the mean score of the *other* responses to the prompt.

    Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; for RLHF, Ahmadian et al. 2024, "Back to
    Basics", arXiv 2402.14740. b_i does not depend on response i, so it leaves the gradient unbiased. Each row sums to
    0. It is computed as k/(k − 1)·(R_i − mean), which loses nothing where all scores share a large offset. Where all
    score the same, all get 0.

    Shapes: scores (B, k); the result (B, k).

    Raises:
        ValueError: k < 2.
    """
    _check_groups(scores)
    k = scores.shape[1]
    return _centred(scores) * (k / (k - 1))


def group_normalised_advantages(scores: Tensor, *, scale: bool = True, epsilon: float = 1e-4) -> Tensor:
    """GRPO's advantages, (R_i − mean) / (std + ε) within each prompt's k responses, std over k − 1.

    Shao et al. 2024, "DeepSeekMath", arXiv 2402.03300. The division gives more weight to prompts whose responses score
    nearly alike; `scale=False` leaves it out (Liu et al. 2025, "Understanding R1-Zero-Like Training", arXiv
    2503.20783). A prompt whose responses all score the same gets 0.

    Shapes: scores (B, k), the k responses of a prompt in a row; the result (B, k).

    Raises:
        ValueError: k < 2.
    """
    _check_groups(scores)
    centred = _centred(scores)  # (B, k)
    if not scale:
        return centred
    return centred / (centred.std(dim=1, keepdim=True) + epsilon)


def _centred(scores: Tensor) -> Tensor:
    """R_i − mean of each row, (B, k). Equal scores give exactly 0, which their own rounded mean does not."""
    apart = scores - scores[:, :1]  # (B, k)
    return apart - apart.mean(dim=1, keepdim=True)


# --- losses ---------------------------------------------------------------------------------------------------------


ClipRange = float | tuple[float, float]
"""ε on both sides of 1, or (ε_low, ε_high): the ratio is clipped to [1 − ε_low, 1 + ε_high]."""


class PolicyLoss(NamedTuple):
    """The result of a policy's loss; everything but `loss` is detached."""

    loss: Tensor
    """The loss, a scalar."""
    clip_fraction: Tensor
    """Share of real tokens with a ratio outside [1 − ε_low, 1 + ε_high], a scalar."""
    approx_kl: Tensor
    """KL(π_old‖π_θ) by k3, the mean of (r_t − 1) − log r_t over the real tokens, a scalar, as SB3 logs it."""
    ratio: Tensor
    """The ratio that was clipped, the shape of log_prob; 1 in masked places."""


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
    clip_range: ClipRange,
    dual_clip: float | None = None,
    denominator: Tensor | float | None = None,
) -> PolicyLoss:
    """−L^CLIP = −Ê_t[min(r_t·Â_t, clip(r_t, 1 − ε_low, 1 + ε_high)·Â_t)], with r_t = π_θ(a_t|s_t)/π_old(a_t|s_t).

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv 1707.06347, equation 7. It is the minimum
    whatever the sign of Â: at r=1.3, Â=−3 the objective is −3.9, not the clipped −3.6. So clipping never hides a loss.

    ε_high > ε_low is "clip-higher" (Yu et al. 2025, "DAPO", arXiv 2503.14476, section 3.1): an unlikely token has more
    room to become likely. With `dual_clip` = c the objective of tokens with Â < 0 is max(min(…), c·Â): a token whose
    ratio is above c is punished no further, and has no gradient ("dual clip", Ye et al. 2020, arXiv 1912.09729).

    Clipping leaves out gradients, always some of them on one side only. So after the first step on a rollout the
    gradient is biased.

    Args:
        log_prob: log π_θ(a_t|s_t), shape (B, T).
        old_log_prob: log π_old(a_t|s_t) of the policy that acted, shape (B, T).
        advantages: Â_t, shape (B, T).
        mask: real tokens, shape (B, T).
        clip_range: ε, or (ε_low, ε_high).
        dual_clip: c > 1, or None for no bound where Â < 0.
        denominator: real tokens in the whole batch, where this is a micro-batch of it.

    Raises:
        ValueError: shapes differ, an ε is negative, c ≤ 1, or nothing is real and no denominator was given.
    """
    advantages, log_ratio = _checked_terms(log_prob, old_log_prob, advantages, mask)  # (B, T) each
    low, high = _checked_range(clip_range)
    ratio = log_ratio.exp()  # (B, T)
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)  # (B, T)
    if dual_clip is not None:
        if not dual_clip > 1:
            raise ValueError(f"expected dual_clip > 1, got {dual_clip}")
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return _policy_loss(objective, ratio, log_ratio, mask, (low, high), denominator)


def gspo_policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: ClipRange,
    denominator: Tensor | float | None = None,
) -> PolicyLoss:
    """PPO's clipped loss with one ratio a response at all its tokens, s = (π_θ(y|x)/π_old(y|x))^{1/T}.

    Zheng et al. 2025, "Group Sequence Policy Optimization", arXiv 2507.18071, equations 7, 13 and 14:

        −Ê_t[min(s_t·Â_t, clip(s_t, 1 − ε_low, 1 + ε_high)·Â_t)],   s_t = sg[s]·π_θ(a_t|s_t)/sg[π_θ(a_t|s_t)]

    s_t has the value of s at every token, and token t alone in its gradient, so that the advantage may differ from
    token to token. Where it does not, the gradient is that of s·Â. A response is clipped whole or not at all. As the
    power 1/T makes s much closer to 1 than r_t is, the paper's ε are 3e-4 and 4e-4. s is no importance weight: its
    mean under π_old is not 1. So after the first step on a rollout the gradient is biased, clipped or not.

    Arguments and errors as in `ppo_policy_loss`; T is the number of real tokens in a row, and another shape than (B, T)
    is a ValueError too.
    """
    check_rank("(B, T)", log_prob=log_prob)
    advantages, log_ratio = _checked_terms(log_prob, old_log_prob, advantages, mask)  # (B, T) each
    low, high = _checked_range(clip_range)
    lengths = (mask != 0).sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    mean = log_ratio.detach().sum(dim=1, keepdim=True) / lengths  # (B, 1)
    own = zero_masked(log_prob, mask)  # (B, T)
    ratio = zero_masked(mean.expand_as(log_prob), mask).exp() * (own - own.detach()).exp()  # (B, T)
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)  # (B, T)
    return _policy_loss(objective, ratio, log_ratio, mask, (low, high), denominator)


def cispo_policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: ClipRange,
    denominator: Tensor | float | None = None,
) -> PolicyLoss:
    """−Ê_t[sg[clip(r_t, 1 − ε_low, 1 + ε_high)]·Â_t·log π_θ(a_t|s_t)]: REINFORCE with clipped importance weights.

    MiniMax 2025, "MiniMax-M1", arXiv 2506.13585, equations 4 and 5. The weight has no gradient (sg). So no token is
    left out of the gradient: at r=3, Â=1, ε_high=.2 it is 1.2·∇log π, where PPO's is 0. ε_low = 1 is no bound below,
    as in the paper. A clipped weight is too small an importance weight, so after the first step on a rollout the
    gradient is biased. The loss's value says nothing; the gradient is what is meant.

    Arguments and errors as in `ppo_policy_loss`.
    """
    advantages, log_ratio = _checked_terms(log_prob, old_log_prob, advantages, mask)  # (B, T) each
    low, high = _checked_range(clip_range)
    ratio = log_ratio.detach().exp()  # (B, T)
    objective = ratio.clamp(1 - low, 1 + high) * advantages * zero_masked(log_prob, mask)  # (B, T)
    return _policy_loss(objective, ratio, log_ratio, mask, (low, high), denominator)


def _checked_terms(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages and log r_t, 0 in masked places, the shape of log_prob each."""
    check_same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantages=advantages, mask=mask)
    return zero_masked(advantages, mask), zero_masked(log_prob, mask) - zero_masked(old_log_prob, mask)


def _checked_range(clip_range: ClipRange) -> tuple[float, float]:
    """The pair (ε_low, ε_high)."""
    low, high = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
    check_in_range("clip_range", low, 0)
    check_in_range("clip_range", high, 0)
    return low, high


def _policy_loss(
    objective: Tensor,
    ratio: Tensor,
    log_ratio: Tensor,
    mask: Tensor,
    clip_range: tuple[float, float],
    denominator: Tensor | float | None,
) -> PolicyLoss:
    """The loss of an objective at every token, and what is logged beside it; log_ratio is log r_t of each token."""
    with torch.no_grad():
        outside = ((ratio < 1 - clip_range[0]) | (ratio > 1 + clip_range[1])).to(ratio.dtype)
        old_to_new = torch.expm1(log_ratio) - log_ratio
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


# --- surrogates: what an update makes larger, as records that the agents share --------------------------------------


class Surrogate(Protocol):
    """A loss whose gradient at the policy that acted is REINFORCE's; docs/losses.md says which to choose.

        TokenPPO(surrogate=Clip(0.2, 0.28, dual=3.0))
        TokenGRPO(surrogate=SequenceClip(), aggregation="sequence")
        TokenReinforce(surrogate=CISPO(high=4.0), n_epochs=4, batch_size=16)

    A function of one's own in their place takes and returns what `ppo_policy_loss` does; it must be given again to
    `load`.
    """

    def __call__(
        self,
        log_prob: Tensor,
        old_log_prob: Tensor,
        advantages: Tensor,
        mask: Tensor,
        /,
        *,
        denominator: Tensor | float | None = None,
    ) -> PolicyLoss:
        """The loss, its mean taken over `denominator`; all four tensors (B, T)."""
        ...


Epsilon = Annotated[float, Ge(0), INFINITE]
"""How far a ratio may be from 1; an infinite one clips nothing."""


@dataclass(frozen=True)
class Clip:
    """PPO's clipped ratio of each token, see `ppo_policy_loss`. A larger `high` is DAPO's clip-higher."""

    low: Epsilon = 0.2
    """ε_low: the ratio is clipped to at least 1 − ε_low."""
    high: Epsilon | None = None
    """ε_high: and to at most 1 + ε_high; None for ε_low."""
    dual: Annotated[float, Gt(1)] | None = None
    """c > 1 bounds the ratio of tokens with Â < 0 too ("dual clip"); None for no such bound."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(self, *terms: Tensor, denominator: Tensor | float | None = None) -> PolicyLoss:
        clip_range = (self.low, self.low if self.high is None else self.high)
        return ppo_policy_loss(*terms, clip_range=clip_range, dual_clip=self.dual, denominator=denominator)


@dataclass(frozen=True)
class SequenceClip:
    """GSPO: one ratio for all tokens of a response, the geometric mean of theirs, see `gspo_policy_loss`."""

    low: Epsilon = 3e-4
    """ε_low, as in the paper. It is for long responses: the ratio of one of T tokens varies like 1/√T."""
    high: Epsilon | None = None
    """ε_high; None for 4/3·ε_low, the paper's proportion."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(self, *terms: Tensor, denominator: Tensor | float | None = None) -> PolicyLoss:
        high = self.low * 4 / 3 if self.high is None else self.high
        return gspo_policy_loss(*terms, clip_range=(self.low, high), denominator=denominator)


@dataclass(frozen=True)
class CISPO:
    """Clipped importance weights without a gradient, so that every token keeps its own: see `cispo_policy_loss`."""

    high: Epsilon
    """ε_high: weights are at most 1 + ε_high."""
    low: Epsilon = 1.0
    """ε_low: and at least 1 − ε_low; 1 for no bound, as in the paper."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(self, *terms: Tensor, denominator: Tensor | float | None = None) -> PolicyLoss:
        return cispo_policy_loss(*terms, clip_range=(self.low, self.high), denominator=denominator)


UNCLIPPED = Clip(math.inf)
"""The importance-weighted policy gradient, −Ê[r·Â]."""


def chosen_surrogate(agent: str, surrogate: Surrogate | None, clip_range: object) -> Surrogate | None:
    """The surrogate that an agent is given; None where it is `clip_range` that says how the ratio is clipped.

    Raises:
        TypeError: it cannot be called. ValueError: both are given.
    """
    if surrogate is None:
        return None
    if isinstance(surrogate, type) or not callable(surrogate):
        raise TypeError(f"expected a surrogate such as Clip(0.2, 0.28), got {surrogate!r}")
    if clip_range is not None:
        raise ValueError(
            f"expected a surrogate or a clip_range, got both, {surrogate!r} and {clip_range!r}: {agent}'s "
            "clip_range is short for Clip(clip_range)"
        )
    return surrogate
