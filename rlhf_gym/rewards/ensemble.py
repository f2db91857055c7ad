"""Several reward models as one, so that the policy cannot exploit the errors of a single one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.chat import Prompt, Response
from rlhf_gym.rewards.classifier import is_token_classifier
from rlhf_gym.rewards.dense import ResponseTokens
from rlhf_gym.rewards.model import ENSEMBLE_FILE, RewardModel, read_ensemble_file, write_ensemble_file
from rlhf_gym.rewards.reward import LearnedReward, RewardNormalizer, Scores
from rlhf_gym.rewards.token_model import TokenRewardModel
from rlhf_gym.settings.stages import Aggregate


class RewardEnsemble(LearnedReward):
    """Reward models with trunks of their own: each scores alone, by its own normalizer, and they are then aggregated.

    Normalise the members (`fit_normalizers`) before comparing them: a Bradley–Terry reward's origin is arbitrary, and
    the minimum of unnormalised members is the one that happens to lie lowest.
    """

    def __init__(
        self,
        members: Sequence[RewardModel | TokenRewardModel],
        aggregate: Aggregate = "mean",
        *,
        uncertainty_weight: float = 0.1,
    ) -> None:
        """
        Args:
            members: at least one, with one head each; those that give rewards at tokens are aggregated token by token.
            aggregate: how members become one score: "mean", "min" (WCO) or "uwo" (mean − λ·variance).
            uncertainty_weight: λ of "uwo".
        """
        super().__init__(aggregate, uncertainty_weight)
        if not members:
            raise ValueError("expected at least one member, got none")
        if any(len(member) != 1 for member in members):
            raise ValueError(f"expected members with one head each, got {[len(member) for member in members]} heads")
        self.members = nn.ModuleList(members)

    @property
    def parts(self) -> Sequence[RewardModel | TokenRewardModel]:
        """The members: each reads an episode in its own way."""
        return list(self.members)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.members)

    @property
    def at_tokens(self) -> bool:
        return any(part.at_tokens for part in self.parts)

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def max_length(self) -> int | None:
        return min((part.max_length for part in self.parts if part.max_length is not None), default=None)

    @property
    def normalizers(self) -> Sequence[RewardNormalizer]:
        return tuple(part.normalizers[0] for part in self.parts)

    @normalizers.setter
    def normalizers(self, normalizers: Sequence[RewardNormalizer]) -> None:
        if len(normalizers) != len(self):
            raise ValueError(f"expected {len(self)} normalizers, one a member, got {len(normalizers)}")
        for part, normalizer in zip(self.parts, normalizers, strict=True):
            part.normalizers = (normalizer,)

    def lend_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        for part in self.parts:
            part.lend_tokenizer(tokenizer)

    def reads_tokens(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None) -> bool:
        """Whether all members read the policy's tokens."""
        return all(part.reads_tokens(tokenizer, vocab_size) for part in self.parts)

    def scores_of_tokens(
        self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int | None = None, normalise: bool = True
    ) -> Scores:
        """As of each member alone; the members must share the tokens' vocabulary."""
        found = [
            part.score_tokens(input_ids, attention_mask, batch_size=batch_size, normalise=normalise)
            for part in self.parts
        ]
        members = torch.stack(found)  # (k, B)
        return Scores(self.combine(members), members)

    def scores_of_texts(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        *,
        closed: Sequence[bool] | None = None,
        tokens: Sequence[ResponseTokens] | None = None,
        batch_size: int | None = None,
        normalise: bool = True,
    ) -> Scores:
        """As of each member alone, which reads the texts with its own tokenizer."""
        found = [
            part.scores_of_texts(prompts, responses, closed=closed, batch_size=batch_size, normalise=normalise)
            for part in self.parts
        ]
        members = torch.cat([scores.members for scores in found])  # (k, B)
        return Scores(self.combine(members), members)

    def room_for(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
        return np.logical_and.reduce([part.room_for(prompts, responses) for part in self.parts])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write each member to `folder/member_<i>`, and how they are aggregated."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for i, part in enumerate(self.parts):
            part.save_pretrained(folder / f"member_{i}")
        write_ensemble_file(folder, self, trunk="separate")

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | str = "auto", device: str | torch.device = "cpu"
    ) -> RewardEnsemble:
        """The ensemble that `save_pretrained` wrote.

        Raises:
            FileNotFoundError, ValueError: the folder is not that of an ensemble of separate members.
        """
        folder = Path(folder)
        record = read_ensemble_file(folder)
        if record.trunk != "separate":
            raise ValueError(f"expected an ensemble of separate members in {folder}, got one on a shared trunk")
        members = [_load_one(folder / f"member_{i}", dtype=dtype, device=device) for i in range(record.members)]
        return cls(members, record.aggregate, uncertainty_weight=record.uncertainty_weight)


def load_reward(
    source: str | Path, device: str | torch.device = "cpu", *, dtype: torch.dtype | str = "auto"
) -> LearnedReward:
    """The reward model or ensemble that `save_pretrained` wrote, or one from the hub; a token classifier too."""
    if (Path(source) / ENSEMBLE_FILE).is_file() and read_ensemble_file(source).trunk == "separate":
        return RewardEnsemble.from_pretrained(source, dtype=dtype, device=device)
    return _load_one(source, dtype=dtype, device=device)


def _load_one(
    source: str | Path, *, dtype: torch.dtype | str, device: str | torch.device
) -> RewardModel | TokenRewardModel:
    """A reward model, of the kind that its configuration names."""
    kind = TokenRewardModel if is_token_classifier(source) else RewardModel
    return kind.from_pretrained(source, dtype=dtype, device=device)
