"""Several reward models as one, so that the policy cannot exploit the errors of a single one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_gym.rewards.model import RewardModel

Aggregate = Literal["mean", "min", "uwo"]

ENSEMBLE_FILE = "reward_ensemble.json"


def aggregate_scores(member_scores: Tensor, aggregate: Aggregate, uncertainty_weight: float = 0.1) -> Tensor:
    """One score (B,) from the members' (members, B).

    Coste et al. 2023 (arXiv:2310.02743), section 3: "mean"; "min", worst-case optimisation (WCO); "uwo",
    uncertainty-weighted optimisation, mean − λ·(1/k) Σᵢ (rᵢ − mean)².
    """
    if aggregate == "mean":
        return member_scores.mean(dim=0)
    if aggregate == "min":
        return member_scores.amin(dim=0)
    if aggregate == "uwo":
        return member_scores.mean(dim=0) - uncertainty_weight * member_scores.var(dim=0, correction=0)
    raise ValueError(f"expected aggregate to be one of {get_args(Aggregate)}, got {aggregate!r}")


class RewardEnsemble(nn.Module):
    """Reward models that each score alone, normalised by their own normalizer, and are then aggregated.

    Normalise the members (`RewardModel.fit_normalizer`) before comparing them: a Bradley–Terry reward's origin is
    arbitrary, and the minimum of unnormalised members is the one that happens to lie lowest.
    """

    def __init__(
        self, members: Sequence[RewardModel], aggregate: Aggregate = "mean", *, uncertainty_weight: float = 0.1
    ) -> None:
        """
        Args:
            members: at least one.
            aggregate: "mean", "min" (WCO) or "uwo" (mean − λ·variance).
            uncertainty_weight: λ of "uwo"; .1 served Coste et al. with PPO.
        """
        super().__init__()
        if not members:
            raise ValueError("expected at least one member, got none")
        if aggregate not in get_args(Aggregate):
            raise ValueError(f"expected aggregate to be one of {get_args(Aggregate)}, got {aggregate!r}")
        self.members = nn.ModuleList(members)
        self.aggregate: Aggregate = aggregate
        self.uncertainty_weight = uncertainty_weight

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[RewardModel]:
        for member in self.members:
            assert isinstance(member, RewardModel)
            yield member

    def combine(self, member_scores: Tensor) -> Tensor:
        """One score (B,) from the members' (members, B)."""
        return aggregate_scores(member_scores, self.aggregate, self.uncertainty_weight)

    def member_scores(self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int = 64) -> Tensor:
        """Each member's score, (members, B)."""
        return torch.stack([m.score_tokens(input_ids, attention_mask, batch_size=batch_size) for m in self])

    def score_tokens(self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int = 64) -> Tensor:
        """Aggregated scores (B,), as `RewardModel.score_tokens`; the members must share the tokens' vocabulary."""
        return self.combine(self.member_scores(input_ids, attention_mask, batch_size=batch_size))

    def score_texts(self, prompts: Sequence[str], responses: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Aggregated scores (B,); each member reads the texts with its own tokenizer."""
        scores = [torch.from_numpy(m.score_texts(prompts, responses, batch_size=batch_size)) for m in self]
        return self.combine(torch.stack(scores)).numpy()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write each member to `folder/member_<i>`, and how they are aggregated."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for i, member in enumerate(self):
            member.save_pretrained(folder / f"member_{i}")
        settings = {
            "members": len(self),
            "aggregate": self.aggregate,
            "uncertainty_weight": self.uncertainty_weight,
        }
        (folder / ENSEMBLE_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | str = "auto", device: str | torch.device = "cpu"
    ) -> RewardEnsemble:
        """What `save_pretrained` wrote."""
        folder = Path(folder)
        if not (folder / ENSEMBLE_FILE).is_file():
            raise FileNotFoundError(f"expected {ENSEMBLE_FILE} in {folder}, got a folder without it")
        settings = json.loads((folder / ENSEMBLE_FILE).read_text())
        members = [
            RewardModel.from_pretrained(folder / f"member_{i}", dtype=dtype, device=device)
            for i in range(settings["members"])
        ]
        return cls(members, settings["aggregate"], uncertainty_weight=settings["uncertainty_weight"])
