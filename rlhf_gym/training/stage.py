"""The loop of every supervised stage: batches of like length, AdamW, a schedule, checkpoints, held-out metrics.

The summed loss of an optimizer step is divided by the total weight (tokens, or prompts) of that step, so that
micro-batches add up to exactly the whole batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf_gym.settings import SupervisedConfig
from rlhf_gym.training.folder import CHECKPOINT

Example = TypeVar("Example")
STRETCH = 50
"""Batches whose examples are sorted by length together."""


class Batch(Protocol):
    """What `SupervisedStage.collate` makes of examples."""

    @property
    def total_weight(self) -> float:
        """What the summed loss is divided by, together with that of the step's other micro-batches."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        ...


@dataclass(frozen=True)
class SupervisedStage(Generic[Example]):
    """What one supervised stage learns, apart from how it is optimised."""

    name: str
    """For the progress bar and for messages."""
    model: nn.Module
    """The model that is trained, in place."""
    examples: Sequence[Example]
    """The training data."""
    lengths: Sequence[int]
    """Length of each example, to batch those of like length."""
    collate: Callable[[Sequence[Example]], Batch]
    """Makes a batch of examples."""
    loss: Callable[[nn.Module, Any], Tensor]
    """Summed loss of a batch, differentiable."""
    evaluate: Callable[[], Any]
    """Metrics on held-out data, a frozen dataclass; the model is in eval mode."""


@dataclass
class StageState:
    """How far a stage has come. A checkpoint holds it beside weights, moments and random state."""

    step: int
    """Optimizer steps taken."""
    losses: list[float]
    """Losses of the steps since the last entry of the history."""
    history: list[dict[str, Any]]
    """Entries so far: training loss every few steps, held-out metrics (`heldout_…`) every epoch."""


def run_stage(
    stage: SupervisedStage[Example], config: SupervisedConfig, folder: Path
) -> tuple[Any, list[dict[str, Any]]]:
    """Train, going on from the checkpoint in `folder` if there is one. The model ends in eval mode.

    Returns:
        The held-out metrics after the last step, and the history.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    accelerator = None if config.use_cpu else torch.accelerator.current_accelerator(check_available=True)
    device = accelerator or torch.device("cpu")
    model = stage.model.to(device)
    torch.manual_seed(config.seed)
    optimizer = _optimizer(model, config)
    state = StageState(0, [], [])
    if (folder / CHECKPOINT).is_file():
        state = _load_checkpoint(folder / CHECKPOINT, model, optimizer, device)
    steps_per_epoch = -(-len(stage.examples) // config.batch_size)
    steps = config.epochs * steps_per_epoch
    metrics: Any = None

    def log(**figures: Any) -> None:
        state.history.append({**figures, "epoch": round(state.step / steps_per_epoch, 4), "step": state.step})

    with _progress_bar() as bar:
        task = bar.add_task(stage.name, total=steps, completed=state.step)
        while state.step < steps:
            epoch, done = divmod(state.step, steps_per_epoch)
            for batch in epoch_batches(stage.lengths, config.batch_size, seed=config.seed, epoch=epoch)[done:]:
                rate = config.learning_rate * schedule_factor(config, state.step, steps)
                loss, norm = _train_step(stage, [stage.examples[i] for i in batch], optimizer, rate, config, device)
                state.step += 1
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"expected a finite loss, got {loss} at step {state.step} of the {stage.name}"
                    )
                state.losses.append(loss)
                if state.step == 1 or state.step % config.log_steps == 0:
                    mean = sum(state.losses) / len(state.losses)
                    log(loss=mean, grad_norm=norm, learning_rate=rate)
                    bar.update(task, description=f"{stage.name}, loss {mean:.4f}")
                    state.losses = []
                if state.step == steps or (config.evaluate_each_epoch and state.step % steps_per_epoch == 0):
                    model.eval()
                    metrics = stage.evaluate()
                    log(**{f"heldout_{name}": value for name, value in asdict(metrics).items()})
                if config.save_steps and state.step % config.save_steps == 0 and state.step < steps:
                    _save_checkpoint(folder / CHECKPOINT, state, model, optimizer, device)
                bar.update(task, completed=state.step)
    return metrics, state.history


def epoch_batches(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Batches of indices, shuffled, each of examples of like length, so that little is padding.

    The order is a function of seed and epoch alone: a resumed run sees what it would have seen. Each epoch is shuffled,
    cut into stretches of 50 batches, sorted by length within each, cut into batches, and the batches are shuffled. A
    last batch of fewer examples stays last.
    """
    sizes = np.asarray(lengths)
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(sizes))
    stretches = np.split(order, range(STRETCH * batch_size, len(order), STRETCH * batch_size))
    order = np.concatenate([s[np.argsort(-sizes[s], kind="stable")] for s in stretches])
    full = len(order) // batch_size
    places = [*rng.permutation(full).tolist(), *([full] if len(order) % batch_size else [])]
    return [order[i * batch_size : (i + 1) * batch_size].tolist() for i in places]


def schedule_factor(config: SupervisedConfig, step: int, steps: int) -> float:
    """The learning rate of optimizer step `step` of `steps`, counted from 0, as a share of the highest."""
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "linear":
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1.0


def _optimizer(model: nn.Module, config: SupervisedConfig) -> torch.optim.AdamW:
    """AdamW, whose weight decay leaves biases and the gains of norms alone."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _train_step(
    stage: SupervisedStage[Example],
    examples: Sequence[Example],
    optimizer: torch.optim.AdamW,
    learning_rate: float,
    config: SupervisedConfig,
    device: torch.device,
) -> tuple[float, float]:
    """One optimizer step on one batch: its mean loss, and the gradient's norm before clipping."""
    stage.model.train()
    size = config.micro_batch_size or config.batch_size
    parts = [stage.collate(examples[i : i + size]) for i in range(0, len(examples), size)]
    weight = sum(part.total_weight for part in parts)
    total = torch.zeros((), device=device)
    for part in parts:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            loss = stage.loss(stage.model, part.to(device)) / weight
        loss.backward()
        total += loss.detach()
    norm = nn.utils.clip_grad_norm_(stage.model.parameters(), config.max_grad_norm or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    return float(total), float(norm)


def _save_checkpoint(
    path: Path, state: StageState, model: nn.Module, optimizer: torch.optim.AdamW, device: torch.device
) -> None:
    """Write all that the next step depends on, or nothing."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if device.type != "cpu":
        tensors["random.device"] = torch.get_device_module(device).get_rng_state()
    partial = path.with_name(path.name + ".partial")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial, metadata={"state": json.dumps(asdict(state))})
    partial.replace(path)


def _load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.AdamW, device: torch.device) -> StageState:
    """Put back what `_save_checkpoint` wrote."""
    moments: dict[int, dict[str, Tensor]] = {}
    parameters = dict(model.named_parameters())
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (the file is no dict)
            kind, _, name = key.partition(".")
            if kind == "model":
                parameters[name].data.copy_(file.get_tensor(key))
            elif kind == "optimizer":
                index, _, moment = name.partition(".")
                moments.setdefault(int(index), {})[moment] = file.get_tensor(key)
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        torch.set_rng_state(file.get_tensor("random.cpu"))
        if device.type != "cpu":
            torch.get_device_module(device).set_rng_state(file.get_tensor("random.device"))
        return StageState(**json.loads(file.metadata()["state"]))


def _progress_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, transient=True, disable=not get_console().is_terminal)  # a file would get empty lines
