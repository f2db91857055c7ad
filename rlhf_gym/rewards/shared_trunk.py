"""An ensemble of reward models on one trunk: k scalar heads, and one forward for all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.lm.loading import quiet_transformers
from rlhf_gym.rewards.classifier import Classifier, classifier_from_language_model, head_layer, load_classifier
from rlhf_gym.rewards.ensemble import (
    ENSEMBLE_FILE,
    Aggregate,
    aggregate_scores,
    check_aggregate,
    read_ensemble_file,
    write_ensemble_file,
)
from rlhf_gym.rewards.model import RewardModel
from rlhf_gym.rewards.normalization import RewardNormalizer


class SharedTrunkEnsemble(Classifier):
    """k reward models that share a trunk: an `AutoModelForSequenceClassification(num_labels=k)`, a head a member.

    It costs what one model costs, in training and in scoring. The members have learned the same features from the same
    responses, so they disagree less than members with trunks of their own (`RewardEnsemble`), most of all where the
    trunk itself is wrong (Eisenstein et al. 2023, arXiv:2312.09244, on what sharing takes away).

    It stands wherever a `RewardEnsemble` does. The normalizers (one a head) put the members into one unit before they
    are aggregated; without them the minimum is of heads whose origins are arbitrary.

    Attributes:
        normalizers: what is applied to each head's raw score.
        aggregate: "mean", "min" (WCO) or "uwo" (mean − λ·variance).
        uncertainty_weight: λ of "uwo".
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        aggregate: Aggregate = "mean",
        *,
        uncertainty_weight: float = 0.1,
        normalizers: Sequence[RewardNormalizer] | None = None,
    ) -> None:
        check_aggregate(aggregate)
        super().__init__(model, tokenizer)
        self.aggregate: Aggregate = aggregate
        self.uncertainty_weight = uncertainty_weight
        self._normalizers: tuple[RewardNormalizer, ...] = ()
        self.normalizers = [RewardNormalizer()] * self.num_heads if normalizers is None else normalizers

    def __len__(self) -> int:
        return self.num_heads

    def __iter__(self) -> Iterator[RewardModel]:
        return (self.member(i) for i in range(len(self)))

    @property
    def normalizers(self) -> Sequence[RewardNormalizer]:
        """One a head."""
        return self._normalizers

    @normalizers.setter
    def normalizers(self, normalizers: Sequence[RewardNormalizer]) -> None:
        if len(normalizers) != self.num_heads:
            raise ValueError(f"expected {self.num_heads} normalizers, one a head, got {len(normalizers)}")
        self._normalizers = tuple(normalizers)

    # -- making, loading, saving ------------------------------------------------------------------------------------

    @classmethod
    def from_language_model(
        cls,
        source: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        members: int,
        aggregate: Aggregate = "mean",
        uncertainty_weight: float = 0.1,
        dtype: torch.dtype | str = "auto",
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> SharedTrunkEnsemble:
        """The start of reward modelling: a copy of a language model's trunk, and `members` new heads.

        Head i is that of `RewardModel.from_language_model(…, seed=seed + i)`.
        """
        if members < 2:
            raise ValueError(f"expected at least 2 members on a shared trunk, got {members}: one is a RewardModel")
        loaded = classifier_from_language_model(source, tokenizer, heads=members, dtype=dtype, device=device, seed=seed)
        return cls(loaded.model, loaded.tokenizer, aggregate, uncertainty_weight=uncertainty_weight)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device: str | torch.device = "cpu",
        trust_remote_code: bool = False,
    ) -> SharedTrunkEnsemble:
        """What `save_pretrained` wrote, or any `AutoModelForSequenceClassification(num_labels=k)`: then its mean.

        Raises:
            ValueError: the folder is that of an ensemble with a trunk a member, or of a model without heads.
        """
        settings = read_ensemble_file(source) if (Path(source) / ENSEMBLE_FILE).is_file() else None
        if settings is not None and settings.trunk != "shared":
            raise ValueError(f"expected an ensemble on a shared trunk in {source}, got separate members")
        loaded = load_classifier(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        if settings is None:
            return cls(loaded.model, loaded.tokenizer)
        return cls(
            loaded.model,
            loaded.tokenizer,
            settings.aggregate,
            uncertainty_weight=settings.uncertainty_weight,
            normalizers=settings.normalizers,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, config, tokenizer, normalizers and how heads are aggregated; the model loads by itself as
        `AutoModelForSequenceClassification` too, whose logits (B, k) are the heads' raw scores."""
        folder = Path(folder)
        with quiet_transformers():
            self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        write_ensemble_file(
            folder, len(self), self.aggregate, self.uncertainty_weight, trunk="shared", normalizers=self.normalizers
        )

    def member(self, index: int) -> RewardModel:
        """One head on its own, as the reward model it is: it shares the trunk's weights, its head is a copy."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected a member in [0, {len(self)}), got {index}")
        config = copy.deepcopy(self.model.config)
        config.num_labels = 1
        with torch.random.fork_rng(devices=[]):  # the new weights are drawn, and replaced
            model = AutoModelForSequenceClassification.from_config(config)
        model.to(device=self.device, dtype=self.model.dtype).eval()
        own, shared = head_layer(model), head_layer(self.model)
        if own is None or shared is None:
            raise ValueError(f"expected a class with one linear head over its trunk, got {type(model).__name__}")
        setattr(model, model.base_model_prefix, self.model.base_model)
        with torch.no_grad():
            own.weight.copy_(shared.weight[index : index + 1])
            if own.bias is not None:
                own.bias.copy_(shared.bias[index : index + 1])
        return RewardModel(model, self.tokenizer, normalizer=self.normalizers[index])

    # -- scoring ----------------------------------------------------------------------------------------------------

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw scores (B, k) in float32, differentiable, of right-padded rows (B, L) with their mask (B, L)."""
        return self.heads(input_ids, attention_mask)

    def combine(self, member_scores: Tensor) -> Tensor:
        """One score (B,) from the members' (members, B)."""
        return aggregate_scores(member_scores, self.aggregate, self.uncertainty_weight)

    def member_scores(
        self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int | None = None, normalise: bool = True
    ) -> Tensor:
        """Each member's score, (members, B), by one forward for all."""
        raw = self.head_scores(input_ids, attention_mask, batch_size=batch_size).T  # (members, B)
        if not normalise:
            return raw
        return torch.stack([n.apply(row) for n, row in zip(self.normalizers, raw, strict=True)])

    def score_tokens(
        self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int | None = None, normalise: bool = True
    ) -> Tensor:
        """Aggregated scores (B,), as `RewardModel.score_tokens`."""
        return self.combine(self.member_scores(input_ids, attention_mask, batch_size=batch_size, normalise=normalise))

    def score_texts(
        self, prompts: Sequence[str], responses: Sequence[str], *, batch_size: int | None = None, normalise: bool = True
    ) -> np.ndarray:
        """Aggregated scores (B,), float32, of responses to prompts, each response closed by the EOS."""
        rows = self.encode_rows(prompts, responses)  # (B, L), (B, L)
        return self.score_tokens(*rows, batch_size=batch_size, normalise=normalise).numpy()

    def fit_normalizers(
        self, prompts: Sequence[str], responses: Sequence[str], *, batch_size: int | None = None
    ) -> None:
        """Set the normalizers so that these responses have scores of mean 0 and std 1 by each head."""
        raw = self.member_scores(*self.encode_rows(prompts, responses), batch_size=batch_size, normalise=False)
        self.normalizers = [RewardNormalizer.fit(row) for row in raw.numpy()]
