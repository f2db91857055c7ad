"""Training of a token reward model on labelled steps: cross-entropy at the last token of each, as in TRL's PRMTrainer.

Uesato et al. 2022 (arXiv:2211.14275); Lightman et al. 2023 (arXiv:2305.20050).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rlhf_gym.lm.tokens import pad_rows
from rlhf_gym.preferences import LabelledSteps
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import RewardNormalizer, TokenRewardModel
from rlhf_gym.rewards.token_model import StepRow
from rlhf_gym.settings import SupervisedConfig
from rlhf_gym.training.data import check_rows, described, fingerprint
from rlhf_gym.training.reward_modeling import load_into
from rlhf_gym.training.stage import SupervisedStage, run_stage


@dataclass(frozen=True)
class StepMetrics:
    """A token reward model on held-out steps."""

    accuracy: float
    """Share of steps whose label is the more probable one by the model; log-odds of 0 count as bad."""
    log_loss: float
    """Mean of −log P(label), in nats: log 2 = .693 is chance."""
    good: float
    """Share of good steps: always saying the more frequent label is right in max(good, 1 − good) of them."""
    steps: int
    """Number of steps."""
    n: int
    """Number of responses."""


class StepExample(NamedTuple):
    """One response to learn from."""

    row: StepRow
    """Its tokens, and where its steps end."""
    labels: tuple[bool, ...]
    """Whether each step is good, (S,)."""


class StepBatch(NamedTuple):
    """A batch of right-padded rows, and the steps that end in them."""

    input_ids: Tensor
    """The token ids, (B, L) int64."""
    attention_mask: Tensor
    """1 for real tokens, 0 for padding, (B, L) int64."""
    rows: Tensor
    """The row of each step, (S,) int64."""
    places: Tensor
    """The place of its last token in the row, (S,) int64."""
    labels: Tensor
    """1 where it is good, else 0, (S,) float32."""

    @property
    def total_weight(self) -> float:
        """Number of steps."""
        return float(len(self.labels))

    def to(self, device: torch.device) -> StepBatch:
        """The same batch on a device."""
        return StepBatch(*(x.to(device) for x in self))


def train_token_reward_model(
    reward_model: TokenRewardModel,
    responses: Sequence[LabelledSteps],
    *,
    heldout: Sequence[LabelledSteps],
    config: SupervisedConfig | None = None,
    output_dir: str | Path,
    resume: bool = True,
) -> StepMetrics:
    """Train `reward_model` in place by L = −(1/S) Σ log P(label), over all S steps of a batch.

    Each step is read where its separator is complete (`TokenRewardModel.labelled_row`). Of two labels it is their
    cross-entropy; with one label P(good) is the sigmoid of the logit.

    The model's normalizer is set back to mean 0 and std 1.

    Args:
        reward_model: with a tokenizer; see `TokenRewardModel.from_language_model` for where to begin.
        responses: responses in steps, each with a label.
        heldout: others for the metrics, best to other prompts (`rlhf_gym.preferences.split_by_prompt`).
        config: `SupervisedConfig()` by default; of a `RewardModelingConfig` what concerns pairs is not read.
        output_dir, resume: as in `train_sft`, whose result and errors these are.
    """
    config = config or SupervisedConfig()
    examples = step_examples(reward_model, responses, "response")
    unseen = step_examples(reward_model, heldout, "held-out response")
    micro_batch_size = config.micro_batch_size or config.batch_size
    reward_model.normalizers = [RewardNormalizer()]
    stage = SupervisedStage(
        name="step reward modelling",
        model=reward_model,
        examples=examples,
        lengths=[len(example.row.ids) for example in examples],
        collate=collate_steps,
        loss=_summed_loss,
        evaluate=partial(step_metrics, reward_model, unseen, batch_size=4 * micro_batch_size),
        metrics=StepMetrics,
        identity={
            "model": described(reward_model.model),
            "data": fingerprint([part for e in examples for part in (e.row.ids, e.row.reads, e.labels)]),
            "heldout": fingerprint([part for e in unseen for part in (e.row.ids, e.row.reads, e.labels)]),
        },
        save=reward_model.save_pretrained,
        load=partial(load_into, reward_model),
    )
    return run_stage(stage, config, output_dir, resume=resume)


def step_examples(
    reward_model: TokenRewardModel, responses: Sequence[LabelledSteps], what: str = "response"
) -> list[StepExample]:
    """The rows of labelled responses, checked: each fits the model.

    Raises:
        ValueError: there are none, or one does not fit; `what` is what the message calls it.
    """
    found = [StepExample(reward_model.labelled_row(r.prompt, r.steps), r.labels) for r in responses]
    rows = [example.row.ids for example in found]
    check_rows(rows, what=what, max_length=reward_model.max_length, vocab_size=reward_model.vocab_size)
    return found


def step_metrics(
    reward_model: TokenRewardModel, examples: Sequence[StepExample], *, batch_size: int | None = None
) -> StepMetrics:
    """How well the model tells good steps from bad ones. Of several ranks each reads a share of the examples."""
    found = ranks().spread(
        [example.row for example in examples],
        lambda rows: reward_model.log_odds(rows, batch_size=batch_size),
        "held-out steps",
    )
    odds = torch.cat(found)  # (S,)
    labels = torch.tensor([label for example in examples for label in example.labels], dtype=torch.float32)  # (S,)
    return StepMetrics(
        accuracy=float(((odds > 0) == (labels > 0)).float().mean()),
        log_loss=float(binary_cross_entropy_with_logits(odds, labels)),
        good=float(labels.mean()),
        steps=len(labels),
        n=len(examples),
    )


def collate_steps(examples: Sequence[StepExample]) -> StepBatch:
    """The batch of these responses."""
    ids, mask = pad_rows([example.row.ids for example in examples])  # (B, L)
    return StepBatch(
        torch.from_numpy(ids),
        torch.from_numpy(mask).long(),
        torch.tensor([i for i, example in enumerate(examples) for _ in example.labels]),
        torch.tensor([place for example in examples for place in example.row.reads]),
        torch.tensor([label for example in examples for label in example.labels], dtype=torch.float32),
    )


def _summed_loss(model: nn.Module, batch: StepBatch) -> Tensor:
    """Σ over steps of −log P(label)."""
    odds = model(batch.input_ids, batch.attention_mask)[batch.rows, batch.places]  # (S,)
    return binary_cross_entropy_with_logits(odds, batch.labels, reduction="sum")
