"""The behaviour distribution: what acts and what is updated, temperature and masks included.

Masks are part of the distribution an agent acts with, so the same function makes the log-probabilities of sampling and
those of the update. The reference policy is never filtered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_gym.functional.policy_gradient import log_prob_and_entropy
from rlhf_gym.lm.finite import REMEDY
from rlhf_gym.ranges import Positive, PositiveShare, Whole, check_ranges


@dataclass(frozen=True)
class SamplingParams:
    """How logits become a distribution."""

    temperature: Positive = 1.0
    """Logits are divided by this; > 0."""
    top_k: Whole = 0
    """Only the k likeliest tokens are drawn; 0 for all."""
    top_p: PositiveShare = 1.0
    """Only the smallest set of likeliest tokens with at least this mass; 1 for all."""
    min_new_tokens: Whole = 0
    """No stop token before this many response tokens."""
    forbidden_token_ids: tuple[Whole, ...] = ()
    """Tokens that are never drawn."""

    def __post_init__(self) -> None:
        if self.temperature == 0:
            raise ValueError(f"expected temperature > 0, got {self.temperature} (for the likeliest token: greedy)")
        check_ranges(self)

    @property
    def is_plain(self) -> bool:
        """Whether the distribution is the model's own."""
        return self == PLAIN


PLAIN = SamplingParams()


def behaviour_logits(
    logits: Tensor,
    params: SamplingParams,
    *,
    response_lengths: Tensor | None = None,
    stop_token_ids: Sequence[int] = (),
) -> Tensor:
    """Logits of the behaviour distribution: scaled, and −inf at what is masked.

    Args:
        logits: the model's, (..., V), fp32.
        params: temperature and masks.
        response_lengths: response tokens so far, (...); needed for `min_new_tokens`.
        stop_token_ids: what `min_new_tokens` forbids.

    Returns:
        (..., V). Masked in the order temperature, forbidden, minimum length, top-k, top-p.
    """
    if params.is_plain:
        return logits
    vocab_size = logits.shape[-1]
    if params.temperature != 1.0:
        logits = logits / params.temperature
    if params.forbidden_token_ids:
        logits = logits.index_fill(-1, _index(params.forbidden_token_ids, vocab_size, logits), float("-inf"))
    if params.min_new_tokens and stop_token_ids:
        if response_lengths is None:
            raise ValueError("expected response_lengths with min_new_tokens, got None")
        stop = torch.zeros(vocab_size, dtype=torch.bool, device=logits.device)
        stop[_index(stop_token_ids, vocab_size, logits)] = True  # (V,)
        early = (response_lengths < params.min_new_tokens)[..., None]  # (..., 1)
        logits = logits.masked_fill(early & stop, float("-inf"))
    if 0 < params.top_k < vocab_size:
        kth = logits.topk(params.top_k, dim=-1).values[..., -1:]  # (..., 1)
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if params.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)  # (..., V)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # mass of the likelier ones
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= params.top_p)
        logits = logits.masked_fill(drop, float("-inf"))
    return logits


def sample(
    logits: Tensor, *, generator: torch.Generator | None = None, uniform: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw a token per row by inverse CDF: one uniform per row, where `torch.multinomial` draws one per entry.

    Args:
        logits: (B, V) fp32; −inf is never drawn.
        generator: draws the uniform numbers.
        uniform: the numbers in [0, 1) themselves, (B,).

    Returns:
        tokens (B,) int64 and their log-probabilities (B,).

    Raises:
        FloatingPointError: a row holds NaN or +∞, or nothing but −∞.
    """
    highest = logits.amax(dim=-1, keepdim=True)  # (B, 1)
    cdf = (logits - highest).exp_().cumsum_(dim=-1)  # (B, V), unnormalised
    total = cdf[:, -1:]  # (B, 1)
    _check_finite(total)
    if uniform is None:
        uniform = torch.rand(len(total), generator=generator, device=logits.device, dtype=logits.dtype)  # (B,)
    # Below the total even after rounding, so that the first entry above it always has mass.
    point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cdf, point, right=True)  # (B, 1)
    log_probs = logits.gather(-1, tokens) - highest - total.log()  # (B, 1)
    return tokens[:, 0], log_probs[:, 0]


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest token of each row (B,) and its log-probability (B,). Errors as `sample`."""
    tokens = logits.argmax(dim=-1)  # (B,)
    log_probs = token_log_prob(logits, tokens)  # (B,)
    _check_finite(log_probs)
    return tokens, log_probs


def _check_finite(of_rows: Tensor) -> None:
    """A number of each row that is finite where its logits make a distribution, is finite."""
    if not torch.isfinite(of_rows).all():
        row = int((~torch.isfinite(of_rows.flatten())).nonzero()[0])
        raise FloatingPointError(
            f"expected finite logits to draw a token from, got NaN or infinite ones in row {row} of {len(of_rows)}: "
            "look whether the model's weights are finite; after training, " + REMEDY
        )


def token_log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[tokens]: (..., V) and (...) → (...), without keeping the whole log-softmax."""
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """−Σ_a p(a) log p(a) in nats, (..., V) → (...); masked tokens (−inf) count 0."""
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    return -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(dim=-1)


def taken_log_prob_and_entropy(logits: Tensor, tokens: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """log π of tokens drawn earlier, and the entropy now, of the behaviour distribution: (n, V), (n,) → (n,), (n,).

    Since then an update may have pushed a token out of the top k or the top p; its probability would be 0. So these two
    filters are applied to the other tokens only.

    Args:
        logits: the model's own, (n, V).
        tokens: what was drawn, (n,).
        params: how it was drawn.
    """
    behaviour = behaviour_logits(logits, params)  # (n, V)
    if params.top_k == 0 and params.top_p == 1.0:
        return log_prob_and_entropy(behaviour, tokens)
    unfiltered = behaviour_logits(logits, replace(params, top_k=0, top_p=1.0))  # (n, V)
    column = tokens[:, None]  # (n, 1)
    kept = behaviour.scatter(-1, column, unfiltered.gather(-1, column))  # (n, V)
    return token_log_prob(kept, tokens), entropy(behaviour)


def _index(token_ids: Sequence[int], vocab_size: int, like: Tensor) -> Tensor:
    bad = [token for token in token_ids if not 0 <= token < vocab_size]
    if bad:
        raise ValueError(f"expected token ids in 0 … {vocab_size - 1}, got {bad}")
    return torch.tensor(list(token_ids), dtype=torch.int64, device=like.device)
