"""What is logged of a rollout. Each name is defined in docs/metrics.md."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.logger import Logger

from rlhf_gym.agents.buffer import EpisodeBuffer


def record_rollout(
    logger: Logger, buffer: EpisodeBuffer, scores: np.ndarray, log_ratios: np.ndarray, *, kl_coef: float
) -> float:
    """Log a rollout's means over its episodes and tokens; returns the mean KL, per sequence.

    Args:
        scores: of each episode, (E,); log_ratios: log π − log π_ref, (E, T); kl_coef: β.
    """
    lengths = buffer.response_lengths.numpy()  # (E,)
    kl = log_ratios.sum(axis=1)  # (E,)
    record = logger.record
    record("rlhf/score", float(scores.mean()))
    record("rlhf/score_std", float(scores.std()))
    record("rlhf/kl", float(kl.mean()))
    record("rlhf/kl_per_token", float(kl.sum() / lengths.sum()))
    record("rlhf/kl_coef", kl_coef)
    record("rlhf/return", float(buffer.rewards.sum(dim=1).mean()))
    record("rlhf/response_length", float(lengths.mean()))
    record("rlhf/stopped", float(np.mean([e.finish_reason == "stop" for e in buffer.episodes])))
    return float(kl.mean())


def explained_variance(buffer: EpisodeBuffer) -> float:
    """1 − Var[return − value] / Var[return] over the real tokens; NaN where all returns are the same."""
    returns, values = buffer.returns[buffer.mask], buffer.values[buffer.mask]
    spread = float(returns.var())
    return float("nan") if spread == 0 else 1 - float((returns - values).var()) / spread


def forget_pending(logger: Logger) -> None:
    """Take back what was logged since the last line was written."""
    for pending in (logger.name_to_value, logger.name_to_count, logger.name_to_excluded):
        pending.clear()
