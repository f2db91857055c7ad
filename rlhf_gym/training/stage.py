"""The loop of every supervised stage: batches of like length, AdamW, a schedule, checkpoints, held-out metrics.

The summed loss of an optimizer step is divided by the total weight (tokens, or prompts) of that step, so that
micro-batches add up to exactly the whole batch. So do ranks: each works on every N-th example of a batch, and their
gradients are added up before the clipping (docs/scaling.md).

The folder of a stage holds

training.json    what is trained on what, written first: another run does not resume this one
checkpoint.safetensors    where to resume from, while the stage runs, and checkpoint.before.safetensors, the one
                          before it; removed when it has finished
config.json, *.safetensors, tokenizer files    the trained model, moved in whole at the end
history.json     what was logged
manifest.json    names, sizes and SHA-256 of these files: damage is found before the model is loaded again
metrics.json     written last: the stage has finished
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from rich import get_console
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf_gym.agents.replicas import check_equal_weights, sum_gradients
from rlhf_gym.files import (
    InputError,
    checkpoint_next,
    read_checkpoint,
    read_object,
    reading,
    remove_checkpoints,
    rotate_checkpoint,
    write_json,
)
from rlhf_gym.lm.finite import REMEDY, check_weights
from rlhf_gym.lm.loading import quiet_transformers
from rlhf_gym.lm.tensors import check_names, check_tensor, load_optimizer
from rlhf_gym.manifest import MANIFEST_FILE, damages, write_manifest
from rlhf_gym.progress import Progress
from rlhf_gym.ranks import ranks
from rlhf_gym.settings import SupervisedConfig

RUN_FILE = "training.json"
HISTORY_FILE = "history.json"
METRICS_FILE = "metrics.json"
CHECKPOINT = "checkpoint.safetensors"
STAGING = "unfinished"
MAY_CHANGE = ("reward_normalizer.json", "config.json")
"""Files of a trained model that may be written again: its scores' unit is fitted later."""
SAVE_SECONDS = 30.0
"""Seconds between two checkpoints at most, where writing one is quick."""
SAVE_SHARE = 0.02
"""The share of the time that checkpoints between `save_steps` may take."""
Example = TypeVar("Example")
Metrics = TypeVar("Metrics")
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
class SupervisedStage(Generic[Example, Metrics]):
    """What one supervised stage learns, apart from how it is optimised."""

    name: str
    """The stage's name, in the progress bar and in messages."""
    model: nn.Module
    """The model that is trained, in place."""
    examples: Sequence[Example]
    """The training data."""
    lengths: Sequence[int]
    """Length of each example, to batch those of like length."""
    collate: Callable[[Sequence[Example]], Batch]
    """A function that makes a batch of examples."""
    loss: Callable[[nn.Module, Any], Tensor]
    """Summed loss of a batch, differentiable."""
    evaluate: Callable[[], Metrics]
    """Metrics on held-out data, a frozen dataclass, the same on all ranks; the model is in eval mode."""
    metrics: type[Metrics]
    """Class of these metrics."""
    identity: dict[str, str]
    """Descriptions of model and data, for JSON: a stage with another identity does not resume this one."""
    save: Callable[[Path], None]
    """Writes the trained model into a folder."""
    load: Callable[[Path], None]
    """Loads into `model` what `save` wrote."""


@dataclass
class StageState:
    """How far a stage has come. A checkpoint holds it beside weights, moments and random state."""

    step: int
    """Optimizer steps taken."""
    losses: list[float]
    """Losses of the steps since the last entry of the history."""
    history: list[dict[str, Any]]
    """Entries so far: training loss every few steps, held-out metrics (`heldout_…`) every epoch."""


def is_finished(folder: str | Path) -> bool:
    """Whether a supervised stage has run to its end in `folder`."""
    return (Path(folder) / METRICS_FILE).is_file()


def run_stage(
    stage: SupervisedStage[Example, Metrics], config: SupervisedConfig, output_dir: str | Path, *, resume: bool
) -> Metrics:
    """Train, and leave model, metrics and history in `output_dir`. The model ends in eval mode.

    Of several ranks all call it, with the same arguments; rank 0 alone writes. They begin with its weights.

    Args:
        stage: what is learned.
        config: how it is optimised.
        output_dir: the stage's folder.
        resume: go on from the checkpoint in `output_dir`; if the stage had finished, load its model. False begins
            again, removing what an earlier run of ours left.

    Returns:
        The held-out metrics after the last step.

    Raises:
        InputError: the stage had finished, and its files are damaged.
        FileExistsError: the folder holds a model that no run of ours wrote.
        ValueError: with `resume`, the folder is another run's; or a rank has other data or settings.
        FloatingPointError: a loss, a gradient or a weight is no longer finite; the last checkpoint is kept.
    """
    with ranks().failing_together():
        return _run(stage, config, Path(output_dir), resume=resume)


def _run(stage: SupervisedStage[Example, Metrics], config: SupervisedConfig, folder: Path, *, resume: bool) -> Metrics:
    group = ranks()
    run = json.loads(json.dumps({"stage": stage.name, **stage.identity, "config": asdict(config)}))  # type: ignore[call-overload]
    for rank, others in enumerate(group.gather(run, f"the start of the {stage.name}")):
        for name in run:
            if others.get(name) != run[name]:
                raise ValueError(
                    f"expected one {name} of the {stage.name} on all ranks, got {others.get(name)!r} on rank {rank} "
                    f"and {run[name]!r} on rank {group.rank}"
                )
    if group.leads:
        _open_folder(folder, run, resume=resume)
    if group.broadcast(is_finished(folder), f"the folder of the {stage.name}"):
        if found := [damage for damage in damages(folder) if damage.path.name not in MAY_CHANGE]:
            raise InputError(
                f"expected what the {stage.name} left in {folder}, got other files: {found[0].path.name} "
                f"{found[0].words}. Remove the folder, or begin again with resume=False."
            )
        if group.leads:
            remove_checkpoints(folder / CHECKPOINT)
        with quiet_transformers():
            stage.load(folder)
        stage.model.eval()
        return stage.metrics(**read_object(folder / METRICS_FILE))
    metrics, history = _train(stage, config, folder)
    if group.leads:
        _keep(stage, folder, metrics, history)
    group.meet(f"the end of the {stage.name}")
    return metrics


def _keep(
    stage: SupervisedStage[Example, Metrics], folder: Path, metrics: Metrics, history: list[dict[str, Any]]
) -> None:
    """Write what a finished stage leaves; its mark last."""
    with quiet_transformers():
        stage.save(folder / STAGING)
    for path in sorted((folder / STAGING).iterdir(), key=lambda path: path.name == "config.json"):  # this one last
        os.replace(path, folder / path.name)
    (folder / STAGING).rmdir()
    write_json(folder / HISTORY_FILE, history)
    write_manifest(folder, METRICS_FILE, asdict(metrics))  # type: ignore[call-overload]
    write_json(folder / METRICS_FILE, asdict(metrics))  # type: ignore[call-overload]
    remove_checkpoints(folder / CHECKPOINT)


def _train(
    stage: SupervisedStage[Example, Metrics], config: SupervisedConfig, folder: Path
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Train from the checkpoint in `folder`, if there is one; the metrics after the last step, and the history."""
    accelerator = None if config.use_cpu else torch.accelerator.current_accelerator(check_available=True)
    device = accelerator or torch.device("cpu")
    model = stage.model.to(device)
    group = ranks()
    group.copy_from_first([*model.parameters(), *model.buffers()], f"the weights of rank 0 for the {stage.name}")
    torch.manual_seed(group.own_seed(config.seed))
    optimizer = _optimizer(model, config)
    found, trouble = read_checkpoint(folder / CHECKPOINT, lambda path: _load_checkpoint(path, model, optimizer, device))
    if trouble and group.leads:
        get_console().print(f"  {trouble}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    state = found or StageState(0, [], [])
    begun = group.gather(state.step, f"the checkpoint of the {stage.name}")
    if len(set(begun)) > 1:
        raise InputError(f"expected one checkpoint in {folder} on all ranks, got those after the steps {begun}")
    steps_per_epoch = -(-len(stage.examples) // config.batch_size)
    steps = config.epochs * steps_per_epoch
    metrics: Any = None
    figures = ""
    saved = time.monotonic()
    saving = 0.0

    def log(**figures: Any) -> None:
        state.history.append({**figures, "epoch": round(state.step / steps_per_epoch, 4), "step": state.step})

    with Progress(stage.name if group.leads else None).over(steps, done=state.step) as shown:
        while state.step < steps:
            epoch, done = divmod(state.step, steps_per_epoch)
            for batch in epoch_batches(stage.lengths, config.batch_size, seed=config.seed, epoch=epoch)[done:]:
                rate = config.learning_rate * schedule_factor(config, state.step, steps)
                where = f"at step {state.step + 1} of the {stage.name}"
                examples = [stage.examples[i] for i in batch]
                due = time.monotonic() - saved > max(SAVE_SECONDS, saving / SAVE_SHARE)
                loss, norm, due = _train_step(stage, examples, optimizer, rate, config, device, where=where, due=due)
                state.step += 1
                state.losses.append(loss)
                if state.step == 1 or state.step % config.log_steps == 0:
                    mean = sum(state.losses) / len(state.losses)
                    log(loss=mean, grad_norm=norm, learning_rate=rate)
                    figures = f"loss {mean:.4f}"
                    state.losses = []
                if state.step == steps:  # those of a step before would have shown in the next loss
                    check_weights(model, f"the model {where}", advice=REMEDY)
                    check_equal_weights(model, f"after the last step of the {stage.name}")
                if state.step == steps or (config.evaluate_each_epoch and state.step % steps_per_epoch == 0):
                    model.eval()
                    metrics = stage.evaluate()
                    log(**{f"heldout_{name}": value for name, value in asdict(metrics).items()})
                if config.save_steps and state.step < steps and (state.step % config.save_steps == 0 or due):
                    started = time.monotonic()
                    _save_checkpoint(folder / CHECKPOINT, state, model, optimizer, device)
                    saved = time.monotonic()
                    saving = saved - started
                shown.update(state.step, figures=figures)
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


def _open_folder(folder: Path, run: dict[str, Any], *, resume: bool) -> None:
    """Make `folder` ready for the run that `run` describes, keeping what an earlier start of the same run left."""
    if not (folder / RUN_FILE).is_file():
        if (folder / "config.json").is_file():
            raise FileExistsError(f"expected a new folder or that of an earlier run, got another model in {folder}")
    elif resume:
        before = read_object(folder / RUN_FILE)
        differing = sorted(name for name in before.keys() | run.keys() if before.get(name) != run.get(name))
        if differing:
            name = differing[0]
            raise ValueError(
                f"expected the run that {folder} was started with, got another {', '.join(differing)} "
                f"({name}: {before.get(name)} before, {run.get(name)} now). "
                "Choose another folder, or begin again with resume=False."
            )
    else:
        for name in (METRICS_FILE, MANIFEST_FILE, HISTORY_FILE, "config.json"):  # the marks of a finished run go first
            (folder / name).unlink(missing_ok=True)
        for path in folder.glob("*.safetensors*"):
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    write_json(folder / RUN_FILE, run)


def _optimizer(model: nn.Module, config: SupervisedConfig) -> torch.optim.AdamW:
    """AdamW, whose weight decay leaves biases and the gains of norms alone."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _train_step(
    stage: SupervisedStage[Example, Metrics],
    examples: Sequence[Example],
    optimizer: torch.optim.AdamW,
    learning_rate: float,
    config: SupervisedConfig,
    device: torch.device,
    *,
    where: str,
    due: bool,
) -> tuple[float, float, bool]:
    """One optimizer step on one batch: its mean loss, the gradient's norm before clipping, and whether rank 0 has a
    checkpoint `due`.

    Of several ranks each takes every N-th example; loss, gradient and step are those of all.

    Raises:
        FloatingPointError: either is not finite; the weights are those before the step.
    """
    stage.model.train()
    size = config.micro_batch_size or config.batch_size
    group = ranks()
    own = examples[group.rank :: group.size]
    parts = [stage.collate(own[i : i + size]) for i in range(0, len(own), size)]
    weight = sum(part.total_weight for part in (parts if group.size == 1 else [stage.collate(examples)]))
    total = torch.zeros((), device=device)
    for part in parts:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            loss = stage.loss(stage.model, part.to(device)) / weight
        loss.backward()
        total += loss.detach()
    if group.size > 1:
        found = {"loss": total, "due": torch.tensor(float(due and group.leads), device=device)}
        found = sum_gradients(stage.model.parameters(), found)
        total = found["loss"]
        due = bool(found["due"])
    norm = nn.utils.clip_grad_norm_(stage.model.parameters(), config.max_grad_norm or math.inf)
    for what, value in (("loss", total), ("gradient norm", norm)):
        if not math.isfinite(float(value)):
            check_weights(stage.model, f"the model {where}", advice=REMEDY)
            raise FloatingPointError(f"expected a finite {what}, got {float(value)} {where}: {REMEDY}")
    for each in optimizer.param_groups:
        each["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    return float(total), float(norm), due


def _save_checkpoint(
    path: Path, state: StageState, model: nn.Module, optimizer: torch.optim.AdamW, device: torch.device
) -> None:
    """Write all that the next step depends on, or nothing; never weights that are not finite over ones that are.

    Rank 0 writes it, with the random states of all.
    """
    check_weights(model, f"the model after step {state.step}", advice=REMEDY)
    random = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        random["device"] = torch.get_device_module(device).get_rng_state()
    group = ranks()
    first, *others = group.gather(random, "a checkpoint")
    if not group.leads:
        return
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    tensors |= {f"random.{name}": value for name, value in first.items()}
    for rank, own in enumerate(others, 1):
        tensors |= {f"random.{name}.{rank}": value for name, value in own.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    said = json.dumps(asdict(state))
    save_file(contiguous, checkpoint_next(path), metadata={"state": said, "sha256": _digest(said, contiguous)})
    rotate_checkpoint(path)


def _digest(state: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a checkpoint holds: the format has no sum of its own by which damage could be seen."""
    found = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.AdamW, device: torch.device) -> StageState:
    """Restore what `_save_checkpoint` wrote.

    Raises:
        InputError: the file is damaged, or is that of another model. Nothing of it is taken over.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    weights: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    with reading("a checkpoint", path), safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is no dict)
        if metadata.get("sha256", "") != _digest(metadata["state"], tensors):
            raise InputError("expected the contents that its SHA-256 is of, got others")
        state = StageState(**json.loads(metadata["state"]))
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "model":
                weights[name] = tensor
            elif kind == "optimizer":
                index, _, moment = name.partition(".")
                moments.setdefault(int(index), {})[moment] = tensor
        check_names("the weights of the model", weights, parameters)
        for name, value in weights.items():
            check_tensor(f"the weight {name}", value, parameters[name])
        load_optimizer(optimizer, moments, optimizer.state_dict()["param_groups"], steps=state.step)
        for name, value in weights.items():
            parameters[name].data.copy_(value)
        group = ranks()
        place = f".{group.rank}" if group.rank else ""
        if f"random.cpu{place}" not in tensors:  # fewer ranks wrote it
            torch.manual_seed(group.own_seed(torch.initial_seed() + state.step))
            return state
        torch.set_rng_state(tensors[f"random.cpu{place}"])
        if device.type != "cpu":
            torch.get_device_module(device).set_rng_state(tensors[f"random.device{place}"])
        return state
