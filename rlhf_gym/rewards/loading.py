"""A learned reward of whatever kind, from its folder or name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rlhf_gym.rewards.ensemble import ENSEMBLE_FILE, RewardEnsemble, read_ensemble_file
from rlhf_gym.rewards.model import RewardModel
from rlhf_gym.rewards.normalization import RewardNormalizer
from rlhf_gym.rewards.shared_trunk import SharedTrunkEnsemble

LearnedReward = RewardModel | RewardEnsemble | SharedTrunkEnsemble
"""r_φ: one reward model, or several as an ensemble."""


def load_reward(
    source: str | Path, device: str | torch.device = "cpu", *, dtype: torch.dtype | str = "auto"
) -> LearnedReward:
    """What `save_pretrained` of a reward model or of an ensemble wrote, or a reward model from the hub."""
    if not (Path(source) / ENSEMBLE_FILE).is_file():
        return RewardModel.from_pretrained(source, dtype=dtype, device=device)
    if read_ensemble_file(source).trunk == "shared":
        return SharedTrunkEnsemble.from_pretrained(source, dtype=dtype, device=device)
    return RewardEnsemble.from_pretrained(source, dtype=dtype, device=device)


def get_normalizers(reward: LearnedReward) -> list[RewardNormalizer]:
    """That of the reward model, or of each member."""
    if isinstance(reward, SharedTrunkEnsemble):
        return list(reward.normalizers)
    return [model.normalizer for model in ([reward] if isinstance(reward, RewardModel) else reward)]


def set_normalizers(reward: LearnedReward, normalizers: Sequence[RewardNormalizer]) -> None:
    """Put the reward model, or each member, into the unit that `get_normalizers` read.

    Raises:
        ValueError: there are more or fewer than members.
    """
    if isinstance(reward, SharedTrunkEnsemble):
        reward.normalizers = normalizers
        return
    models = [reward] if isinstance(reward, RewardModel) else list(reward)
    if len(normalizers) != len(models):
        raise ValueError(f"expected {len(models)} normalizers, one a reward model, got {len(normalizers)}")
    for model, normalizer in zip(models, normalizers, strict=True):
        model.normalizer = normalizer
