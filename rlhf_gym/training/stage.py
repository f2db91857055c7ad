"""One supervised stage on `transformers.Trainer`: optimizer, schedule, checkpoints, resume, history, progress.

The Trainer divides the summed loss of each optimizer step by that step's total weight (tokens, or prompts), so that
micro-batches add up to exactly the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_gym.lm.loading import quiet_transformers
from rlhf_gym.training.config import StageConfig
from rlhf_gym.training.data import LengthGroupedBatches
from rlhf_gym.training.folder import CHECKPOINTS, last_checkpoint


@dataclass(frozen=True)
class Stage:
    """What one supervised stage is, apart from how it is optimised."""

    name: str
    """For the progress bar and for messages."""
    model: nn.Module
    """What is trained, in place."""
    examples: Sequence[Any]
    """What it is trained on."""
    lengths: Sequence[int]
    """Length of each example, to batch those of like length."""
    collate: Callable[[Sequence[Any]], dict[str, Any]]
    """Examples to the batch that `loss` gets."""
    weight: Callable[[dict[str, Any]], float]
    """Total weight of a batch: what its summed loss is divided by."""
    loss: Callable[[nn.Module, dict[str, Any]], Tensor]
    """Summed loss of a batch, differentiable."""
    evaluate: Callable[[], Any]
    """Metrics on held-out data: a frozen dataclass."""


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves, apart from the trained model."""

    metrics: Any
    """The held-out metrics after the last step."""
    history: list[dict[str, Any]]
    """What was logged: training loss every few steps, held-out metrics (`heldout_…`) every epoch."""


def run_stage(stage: Stage, config: StageConfig, folder: Path) -> StageResult:
    """Train, going on from the last checkpoint in `folder` if there is one. The model ends in eval mode.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    with quiet_transformers(), _progress() as bar:
        trainer = _StageTrainer(stage, config, folder, bar)
        checkpoint = last_checkpoint(folder)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        stage.model.eval()
        if trainer.last_evaluation is None or trainer.last_evaluation[0] != trainer.state.global_step:
            trainer.evaluate()
    assert trainer.last_evaluation is not None
    history = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    return StageResult(trainer.last_evaluation[1], history)


def training_arguments(config: StageConfig, folder: Path, steps_per_epoch: int) -> TrainingArguments:
    """The Trainer's arguments for this config."""
    micro = config.micro_batch_size or config.batch_size
    return TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // micro,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=math.ceil(config.warmup_ratio * config.epochs * steps_per_epoch),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=config.bf16,
        use_cpu=config.use_cpu,
        logging_steps=config.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if config.evaluate_each_epoch else "no",
        eval_steps=steps_per_epoch,  # not "epoch": that would evaluate after the checkpoint of the same step is written
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


class _StageTrainer(Trainer):
    """The Trainer with our batches, our loss and our evaluation."""

    model_accepts_loss_kwargs: bool

    def __init__(self, stage: Stage, config: StageConfig, folder: Path, bar: Progress) -> None:
        args = training_arguments(config, folder, -(-len(stage.examples) // config.batch_size))
        self._batch_size = config.batch_size
        super().__init__(
            model=stage.model,
            args=args,
            train_dataset=stage.examples,  # type: ignore[arg-type]
            eval_dataset=[None],  # type: ignore[arg-type] # `evaluate` below has its own
            callbacks=[_NoLastCheckpoint(), _ShowProgress(stage.name, bar)],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # the loss comes divided by the whole step's weight
        self.stage = stage
        self.last_evaluation: tuple[int, Any] | None = None

    def get_train_dataloader(self) -> DataLoader:
        batches = LengthGroupedBatches(
            self.stage.lengths,
            self._batch_size,
            self.args.per_device_train_batch_size,
            seed=self.args.seed,
            epoch=self._current_epoch,
        )
        loader: DataLoader = DataLoader(
            self.stage.examples,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self.stage.collate,
            pin_memory=self.args.device.type == "cuda",
        )
        return self.accelerator.prepare(loader)

    def _current_epoch(self) -> int:
        return int(self.state.epoch or 0)  # n + 1 after the last step of epoch n, the same when resumed

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = torch.tensor(sum(self.stage.weight(batch) for batch in batches), device=device)
        return batches, self.accelerator.gather(total).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        assert isinstance(num_items_in_batch, Tensor)
        # Processes average their gradients, and each has divided by the weight of all.
        return self.stage.loss(model, inputs) * self.accelerator.num_processes / num_items_in_batch

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.stage.model.eval()
        metrics = self.stage.evaluate()
        assert is_dataclass(metrics) and not isinstance(metrics, type)
        self.last_evaluation = (self.state.global_step, metrics)
        logged = {f"heldout_{name}": value for name, value in asdict(metrics).items()}
        self.log(dict(logged))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logged)
        return logged

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise FloatingPointError(
                f"expected a finite loss, got {logs['loss']} at step {self.state.global_step} of the {self.stage.name}"
            )
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # nothing reads it


class _NoLastCheckpoint(TrainerCallback):
    """After the last step the model itself is saved, so there is no checkpoint to write."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step >= state.max_steps:
            control.should_save = False
        return control


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, transient=True, disable=not get_console().is_terminal)  # a file would get empty lines


class _ShowProgress(TrainerCallback):
    """Moves the bar on, and writes the latest training loss beside it."""

    def __init__(self, name: str, bar: Progress) -> None:
        self._name = name
        self._bar = bar

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._task = self._bar.add_task(
            self._name, total=state.max_steps, completed=state.global_step, visible=state.is_world_process_zero
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs:
            self._bar.update(self._task, description=f"{self._name}, loss {logs['loss']:.4f}")
