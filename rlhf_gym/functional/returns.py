"""From rewards and values to advantages. Rows are episodes; a mask says at which of their places the agent acted.

Time counts actions: nothing is discounted or bootstrapped across places where the agent did not act, be they padding
or another's tokens. An episode ends for good at its last action, so nothing is bootstrapped beyond it. Each row comes
out as it would alone, whatever stands beside it in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_gym.functional._checks import check_in_range, check_rank, check_same_shape
from rlhf_gym.functional.whitening import zero_masked


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: advantages Â_t and returns (the critic's targets) Â_t + V_t.

    δ_t = r_t + γ·V_{t+1} − V_t,  Â_t = δ_t + γλ·Â_{t+1},  where t + 1 is the next action; after the last, V = Â = 0.

    Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    arXiv 1506.02438, equation 16. λ=0 is the TD error, λ=1 the return minus the value.

    Args:
        rewards: r_t of each action, shape (B, T); rewards at masked places are not read.
        values: V(s_t) of the state acted from, shape (B, T).
        mask: places where the agent acted, shape (B, T); they need not stand side by side.
        gamma: γ, in [0, 1]; 1 in RLHF, where it lets the KL terms and the score add up to the objective.
        gae_lambda: λ, in [0, 1].

    Returns:
        advantages and returns, each (B, T), 0 in masked places.

    Raises:
        ValueError: shapes differ or are not (B, T), γ or λ is out of range.
    """
    check_rank("(B, T)", rewards=rewards)
    check_same_shape(rewards=rewards, values=values, mask=mask)
    check_in_range("gamma", gamma, 0, 1)
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


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """G_t = r_t + γ·G_{t+1}, where t + 1 is the next action; 0 after the last.

    Shapes: rewards and mask (B, T), the mask as in `gae`; the result (B, T), 0 in masked places.

    Raises:
        ValueError: shapes differ or are not (B, T), γ is out of [0, 1].
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, gae_lambda=1.0)[0]


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
    0. It is computed as k/(k − 1)·(R_i − mean), which loses nothing where all scores share a large offset.

    Shapes: scores (B, k); the result (B, k).

    Raises:
        ValueError: k < 2.
    """
    _check_groups(scores)
    k = scores.shape[1]
    return (scores - scores.mean(dim=1, keepdim=True)) * (k / (k - 1))


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
    centred = scores - scores.mean(dim=1, keepdim=True)  # (B, k)
    if not scale:
        return centred
    return centred / (scores.std(dim=1, keepdim=True) + epsilon)
