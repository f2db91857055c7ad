"""The settings of the supervised stages, one frozen record for each.

What belongs to the model is set on the model: dropout in its config, gradient checkpointing by its own method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

Schedule = Literal["constant", "linear", "cosine"]


class StageConfig(Protocol):
    """What every supervised stage has to know; the records below say what each field means."""

    @property
    def epochs(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def micro_batch_size(self) -> int | None: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def warmup_ratio(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def evaluate_each_epoch(self) -> bool: ...
    @property
    def save_steps(self) -> int: ...
    @property
    def log_steps(self) -> int: ...
    @property
    def bf16(self) -> bool: ...
    @property
    def use_cpu(self) -> bool: ...


@dataclass(frozen=True)
class SFTConfig:
    """Supervised training of a language model: fine-tuning on demonstrations, or pretraining on texts."""

    epochs: int = 3
    """Passes over the data."""
    learning_rate: float = 5e-5
    """Adam's learning rate at its highest."""
    batch_size: int = 32
    """Sequences for each optimizer step."""
    micro_batch_size: int | None = None
    """Sequences held in memory at once, a divisor of `batch_size`; None: the whole batch. Same gradient."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    seed: int = 0
    """For the order of the data and for dropout."""
    evaluate_each_epoch: bool = True
    """Measure the held-out data after each epoch, not only at the end."""
    save_steps: int = 500
    """Steps between the checkpoints to resume from; 0 for none."""
    log_steps: int = 10
    """Steps between the entries of the history."""
    bf16: bool = False
    """Compute in bfloat16, with weights as they are."""
    use_cpu: bool = False
    """Stay on the CPU even where there is an accelerator."""

    def __post_init__(self) -> None:
        check_config(self)


@dataclass(frozen=True)
class RewardModelingConfig:
    """Training of a reward model on preferences. A ranking counts as one pair, in one batch."""

    epochs: int = 1
    """Passes over the preferences; more than one soon overfits (Ouyang et al. 2022, arXiv 2203.02155)."""
    learning_rate: float = 1e-5
    """Adam's learning rate at its highest."""
    batch_size: int = 32
    """Pairs (a ranking counts as one) for each optimizer step."""
    micro_batch_size: int | None = None
    """Pairs held in memory at once, a divisor of `batch_size`; None: the whole batch. Same gradient."""
    by_prompt: bool = False
    """Keep all pairs of a prompt in one batch, where they run each response once and weigh one together: 1/C(K,2) each
    if all of K responses were compared (Ouyang et al. 2022). Rankings are kept so anyway."""
    use_margin: bool = False
    """Ask the chosen response to win by the record's margin, where it has one (Llama 2, arXiv 2307.09288)."""
    label_smoothing: float = 0.0
    """ε in [0, 0.5): the share of labels taken to be wrong."""
    bootstrap: bool = False
    """Learn from a draw of as many preferences, with replacement, and each head of a shared trunk from one of its own:
    members of an ensemble then differ in their data too."""
    centering: float = 0.0
    """Weight of (r_chosen + r_rejected)², which holds scores near 0 (Eisenstein et al. 2023, arXiv 2312.09244)."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    seed: int = 0
    """For the order of the data and for dropout."""
    evaluate_each_epoch: bool = True
    """Measure the held-out data after each epoch, not only at the end."""
    save_steps: int = 500
    """Steps between the checkpoints to resume from; 0 for none."""
    log_steps: int = 10
    """Steps between the entries of the history."""
    bf16: bool = False
    """Compute in bfloat16, with weights as they are."""
    use_cpu: bool = False
    """Stay on the CPU even where there is an accelerator."""

    def __post_init__(self) -> None:
        check_config(self)
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"expected label_smoothing in [0, 0.5), got {self.label_smoothing}")
        if not self.centering >= 0:
            raise ValueError(f"expected centering >= 0, got {self.centering}")


def check_config(config: StageConfig) -> None:
    """Refuse settings that mean nothing, before anything is loaded.

    Raises:
        ValueError: a value out of its range.
    """
    for name, value in (("epochs", config.epochs), ("batch_size", config.batch_size), ("log_steps", config.log_steps)):
        if value < 1:
            raise ValueError(f"expected {name} >= 1, got {value}")
    micro = config.micro_batch_size
    if micro is not None and (micro < 1 or config.batch_size % micro):
        raise ValueError(f"expected micro_batch_size to divide batch_size {config.batch_size}, got {micro}")
    if not config.learning_rate > 0:
        raise ValueError(f"expected learning_rate > 0, got {config.learning_rate}")
    if not 0 <= config.warmup_ratio <= 1:
        raise ValueError(f"expected warmup_ratio in [0, 1], got {config.warmup_ratio}")
    if config.schedule not in get_args(Schedule):
        raise ValueError(f"expected schedule to be one of {get_args(Schedule)}, got {config.schedule!r}")
    for name, amount in (
        ("weight_decay", config.weight_decay),
        ("max_grad_norm", config.max_grad_norm),
        ("save_steps", config.save_steps),
    ):
        if not amount >= 0:
            raise ValueError(f"expected {name} >= 0, got {amount}")
