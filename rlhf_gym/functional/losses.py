"""The losses on comparisons: reward modelling and DPO.

The symbols are the papers'. Every function returns a loss to minimise. Means run over pairs; `denominator` replaces
their number, so that micro-batches that are given the whole batch's add up to exactly its loss.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_gym.functional.masks import check_in_range, check_rank, check_same_shape, masked_mean

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
