"""Several reward models as one, so that the policy cannot exploit the errors of a single one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_gym.rewards.model import RewardModel
from rlhf_gym.rewards.normalization import RewardNormalizer

Aggregate = Literal["mean", "min", "uwo"]
Trunk = Literal["separate", "shared"]

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


def check_aggregate(aggregate: str) -> None:
    """There is such a way to make one score of several.

    Raises:
        ValueError: there is none.
    """
    if aggregate not in get_args(Aggregate):
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
        check_aggregate(aggregate)
        self.members = nn.ModuleList(members)
        self.aggregate: Aggregate = aggregate
        self.uncertainty_weight = uncertainty_weight

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[RewardModel]:
        for member in self.members:
            assert isinstance(member, RewardModel)
            yield member

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self)).device

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
        write_ensemble_file(folder, len(self), self.aggregate, self.uncertainty_weight, trunk="separate")

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | str = "auto", device: str | torch.device = "cpu"
    ) -> RewardEnsemble:
        """What `save_pretrained` wrote.

        Raises:
            FileNotFoundError, ValueError: the folder is not that of an ensemble of separate members.
        """
        folder = Path(folder)
        settings = read_ensemble_file(folder)
        if settings.trunk != "separate":
            raise ValueError(f"expected an ensemble of separate members in {folder}, got one on a shared trunk")
        members = [
            RewardModel.from_pretrained(folder / f"member_{i}", dtype=dtype, device=device)
            for i in range(settings.members)
        ]
        return cls(members, settings.aggregate, uncertainty_weight=settings.uncertainty_weight)


# -- the file beside an ensemble's weights -----------------------------------------------------------------------------


@dataclass(frozen=True)
class EnsembleFile:
    """How an ensemble is put together."""

    members: int
    """How many."""
    aggregate: Aggregate
    """How they become one score."""
    uncertainty_weight: float
    """λ of "uwo"."""
    trunk: Trunk = "separate"
    """Whether each has a folder of its own, or all are heads of the model beside this file."""
    normalizers: tuple[RewardNormalizer, ...] = ()
    """One a head, where the trunk is shared; separate members keep their own."""


def write_ensemble_file(
    folder: Path,
    members: int,
    aggregate: Aggregate,
    uncertainty_weight: float,
    *,
    trunk: Trunk,
    normalizers: Sequence[RewardNormalizer] = (),
) -> None:
    """Write `reward_ensemble.json`."""
    record = EnsembleFile(members, aggregate, uncertainty_weight, trunk, tuple(normalizers))
    (folder / ENSEMBLE_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n")


def read_ensemble_file(folder: str | Path) -> EnsembleFile:
    """What `write_ensemble_file` wrote.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(folder) / ENSEMBLE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"expected {ENSEMBLE_FILE} in {folder}, got a folder without it")
    record = json.loads(path.read_text())
    normalizers = tuple(RewardNormalizer.from_dict(values) for values in record.get("normalizers", ()))
    return EnsembleFile(**(record | {"normalizers": normalizers}))
