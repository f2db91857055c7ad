"""A learned reward: a Transformers trunk and a scalar head, read at the last real token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.lm.loading import quiet_transformers
from rlhf_gym.rewards.classifier import Classifier, classifier_from_language_model, load_classifier
from rlhf_gym.rewards.normalization import RewardNormalizer

NORMALIZER_FILE = "reward_normalizer.json"


class RewardModel(Classifier):
    """r_φ(x, y): the scalar head of an `AutoModelForSequenceClassification(num_labels=1)` on its trunk's state.

    How rows are read, and by which part of the model, is `Classifier`'s to say.

    Attributes:
        normalizer: what `score_tokens` and `score_texts` apply to the raw score.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        normalizer: RewardNormalizer | None = None,
    ) -> None:
        if model.config.num_labels != 1:
            raise ValueError(f"expected a reward model with num_labels=1, got {model.config.num_labels}")
        super().__init__(model, tokenizer)
        self.normalizer = RewardNormalizer() if normalizer is None else normalizer

    # -- making, loading, saving ------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device: str | torch.device = "cpu",
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """A trained reward model: a hub name, or a folder that holds config, safetensors and (mostly) a tokenizer.

        Raises:
            ValueError: the checkpoint has no scalar head, or has one with several outputs.
        """
        loaded = load_classifier(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        if loaded.model.config.num_labels != 1:
            raise ValueError(
                f"expected a reward model with num_labels=1, got {loaded.model.config.num_labels} in {str(source)!r}; "
                "SharedTrunkEnsemble.from_pretrained loads one whose heads are the members of an ensemble"
            )
        file, normalizer = Path(source) / NORMALIZER_FILE, RewardNormalizer()
        if file.is_file():
            normalizer = RewardNormalizer.from_dict(json.loads(file.read_text()))
        return cls(loaded.model, loaded.tokenizer, normalizer=normalizer)

    @classmethod
    def from_language_model(
        cls,
        source: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        dtype: torch.dtype | str = "auto",
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> RewardModel:
        """The start of reward modelling: a copy of a language model's trunk, and a new head.

        The head's weights are N(0, 1/(H+1)) and its bias 0 (Huang et al. 2024, arXiv:2403.17031), so that first
        scores are of order 1 whatever the width H.

        Args:
            source: a hub name, a folder, or the model itself (copied, never shared; an adapter is merged).
            tokenizer: that of the language model; by default the one beside `source`, if `source` is no model.
            dtype: of the weights; `"auto"` keeps what is there.
            device: where to put the reward model.
            seed: for the head's weights.
        """
        loaded = classifier_from_language_model(source, tokenizer, heads=1, dtype=dtype, device=device, seed=seed)
        return cls(loaded.model, loaded.tokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, config, tokenizer and normalizer. `AutoModelForSequenceClassification` loads the folder too
        (and gives the raw score; where pad token and EOS differ, for it looks for the pad token)."""
        folder = Path(folder)
        with quiet_transformers():
            self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        (folder / NORMALIZER_FILE).write_text(json.dumps(self.normalizer.to_dict(), indent=2) + "\n")

    # -- scoring ----------------------------------------------------------------------------------------------------

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw scores (B,) in float32, differentiable, of right-padded rows (B, L) with their mask (B, L)."""
        return self.heads(input_ids, attention_mask).squeeze(-1)

    def score_tokens(
        self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int | None = None, normalise: bool = True
    ) -> Tensor:
        """Normalised scores (B,), float32, of right-padded rows (B, L) with their mask (B, L), without gradients.

        Rows of like length go together, `batch_size` at a time (by default what suits the device), with dropout off
        whatever the mode of the module. A row's score does not depend on its batch-mates or on its padding.

        Raises:
            ValueError: the mask is not that of right-padded rows of at least one token, or a row is longer than the
                model's context.
        """
        scores = self.head_scores(input_ids, attention_mask, batch_size=batch_size).squeeze(-1)  # (B,)
        return self.normalizer.apply(scores) if normalise else scores

    def score_texts(
        self, prompts: Sequence[str], responses: Sequence[str], *, batch_size: int | None = None, normalise: bool = True
    ) -> np.ndarray:
        """Normalised scores (B,), float32, of responses to prompts, each response closed by the EOS."""
        rows = self.encode_rows(prompts, responses)  # (B, L), (B, L)
        return self.score_tokens(*rows, batch_size=batch_size, normalise=normalise).numpy()

    def fit_normalizer(
        self, prompts: Sequence[str], responses: Sequence[str], *, batch_size: int | None = None
    ) -> None:
        """Set `normalizer` so that these responses (a reference policy's) have scores of mean 0 and std 1."""
        scores = self.score_texts(prompts, responses, batch_size=batch_size, normalise=False)
        self.normalizer = RewardNormalizer.fit(scores)
