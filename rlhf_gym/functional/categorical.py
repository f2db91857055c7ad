"""Log-probability and entropy of a categorical distribution in one go over the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOWEST = -1e30
"""The logarithm of 0, finite so that 0 · log 0 = 0."""


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
