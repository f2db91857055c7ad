"""Scores in a known unit: mean 0 and standard deviation 1 over the responses of a reference policy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

Scores = TypeVar("Scores", np.ndarray, Tensor)


@dataclass(frozen=True)
class RewardNormalizer:
    """score ↦ (score − mean) / std. Bradley–Terry leaves a reward's origin free; this fixes it, and the unit.

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.1; Huang et al. 2024 (arXiv:2403.17031). A `kl_coef` means the
    same for two reward models only if their scores are in the same unit.
    """

    mean: float = 0.0
    """Mean score of the reference samples."""
    std: float = 1.0
    """Standard deviation (of the population, dividing by n) of their scores."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(f"expected a finite mean and a finite std > 0, got mean={self.mean}, std={self.std}")

    @classmethod
    def fit(cls, scores: ArrayLike) -> RewardNormalizer:
        """The normalizer of reference scores (n,).

        Raises:
            ValueError: fewer than two scores, one that is not finite, or scores that are all the same.
        """
        values = np.asarray(scores, dtype=np.float64)  # (n,)
        if values.ndim != 1 or values.size < 2:
            raise ValueError(f"expected at least 2 reference scores of shape (n,), got shape {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"expected finite reference scores, got {values[~np.isfinite(values)][0]}")
        mean, std = float(values.mean()), float(values.std())
        if std <= 1e-12 * max(1.0, abs(mean)):
            raise ValueError(f"expected reference scores that differ, got {values.size} times {mean}")
        return cls(mean=mean, std=std)

    def apply(self, scores: Scores) -> Scores:
        """Normalised scores, of the shape and kind that came in."""
        return (scores - self.mean) / self.std

    def to_dict(self) -> dict[str, float]:
        """For JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, float]) -> RewardNormalizer:
        """What `to_dict` wrote."""
        return cls(mean=float(values["mean"]), std=float(values["std"]))
