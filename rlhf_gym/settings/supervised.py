"""The settings of supervised training: of a language model, and of a reward model.

What belongs to the model is set on the model: dropout in its config, gradient checkpointing by its own method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from annotated_types import Interval

from rlhf_gym.ranges import Count, NonNegative, Positive, Seed, Share, Whole, check_ranges
from rlhf_gym.settings.defaults import Row

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class SupervisedConfig:
    """The settings of every supervised stage."""

    epochs: Count = 1
    """Passes over the data."""
    learning_rate: Positive = 5e-5
    """Adam's learning rate at its highest."""
    batch_size: Count = 32
    """Sequences for each optimizer step; of preferences, pairs (a ranking counts as one)."""
    micro_batch_size: Count | None = None
    """As many of them are held in memory at once, a divisor of `batch_size`; None: the whole batch. Same gradient."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: Share = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: NonNegative = 0.0
    """AdamW's weight decay."""
    max_grad_norm: NonNegative = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    seed: Seed = 0
    """Seed of the order of the data and of dropout."""
    evaluate_each_epoch: bool = True
    """Measure the held-out data after each epoch, not only at the end."""
    save_steps: Whole = 500
    """Steps between the checkpoints to resume from, or half a minute where that is sooner; 0 for none."""
    log_steps: Count = 10
    """Steps between the entries of the history."""
    bf16: bool = False
    """Compute in bfloat16, with weights as they are."""
    use_cpu: bool = False
    """Stay on the CPU even where there is an accelerator."""

    def __post_init__(self) -> None:
        check_ranges(self)
        micro = self.micro_batch_size
        if micro is not None and self.batch_size % micro:
            raise ValueError(f"expected micro_batch_size to divide batch_size {self.batch_size}, got {micro}")


@dataclass(frozen=True)
class SFTConfig(SupervisedConfig):
    """Supervised training of a language model: fine-tuning on demonstrations, or pretraining on texts."""

    epochs: Count = 3
    """Passes over the data."""


@dataclass(frozen=True)
class RewardModelingConfig(SupervisedConfig):
    """Training of a reward model on preferences."""

    epochs: Count = 1
    """Passes over the preferences; more than one soon overfits (Ouyang et al. 2022, arXiv 2203.02155)."""
    learning_rate: Positive = 1e-5
    """Adam's learning rate at its highest."""
    by_prompt: bool = False
    """Keep all pairs of a prompt in one batch, where they run each response once and weigh one together: 1/C(K,2) each
    if all of K responses were compared (Ouyang et al. 2022). Rankings are kept so anyway."""
    use_margin: bool = False
    """Ask the chosen response to win by the record's margin, where it has one (Llama 2, arXiv 2307.09288)."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0
    """ε in [0, 0.5): the share of labels taken to be wrong."""
    bootstrap: bool = False
    """Learn from a draw of as many preferences, with replacement, and each head of a shared trunk from one of its own:
    members of an ensemble then differ in their data too."""
    centering: NonNegative = 0.0
    """Weight of (r_chosen + r_rejected)², which holds scores near 0 (Eisenstein et al. 2023, arXiv 2312.09244)."""


Supervised = TypeVar("Supervised", bound=SupervisedConfig)


def from_row(kind: type[Supervised], row: Row, width: int | None = None) -> Supervised:
    """The settings of a supervised stage that a row of the table gives a model of this hidden size."""
    return kind(learning_rate=row.rate(width), **row.settings)
