"""What the information at the end of an episode says."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_gym.envs.episode import Episode
from rlhf_gym.lm.tokens import decode


def ending_info(
    episode: Episode,
    *,
    score: float | None,
    raw_score: float | None,
    log_ratio: float | None,
    attached: bool,
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[str, Any]:
    """Score, KL, length, why it ended, and the texts.

    Args:
        score: None while it is deferred.
        raw_score: r_φ's own; None while it is deferred and where nothing shapes it.
        log_ratio: Σ_t log π(a_t|s_t) − log π_ref(a_t|s_t); None without a reference or while deferred.
        attached: whether a policy said log π; if not, the sum is −log π_ref(y|x) and called `ref_log_prob`, its
            negative: it would not be a KL.
        tokenizer: for the texts; None for none.
    """
    info: dict[str, Any] = {}
    if score is not None:
        info["score"] = score
    if raw_score is not None:
        info["raw_score"] = raw_score
    if log_ratio is not None:
        info |= {"kl": log_ratio} if attached else {"ref_log_prob": -log_ratio}
    info["response_length"] = episode.response_length
    info["finish_reason"] = episode.finish_reason
    if tokenizer is not None:
        texts = decode(tokenizer, [episode.prompt_ids.tolist(), episode.response_ids.tolist()])
        info["prompt"], info["response"] = texts
    return info
