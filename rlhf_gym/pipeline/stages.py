"""The whole run: its stages in order, those that are complete skipped, one line said about each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf_gym.lm import quiet_transformers
from rlhf_gym.pipeline import terminal
from rlhf_gym.pipeline.collect import collect_stage
from rlhf_gym.pipeline.context import Run, use_threads
from rlhf_gym.pipeline.evaluate import evaluate_stage
from rlhf_gym.pipeline.preparation import prepare
from rlhf_gym.pipeline.reward import reward_stage
from rlhf_gym.pipeline.supervised import pretrain_stage, sft_stage
from rlhf_gym.pipeline.train import train_stage, without_kl_stage
from rlhf_gym.progress import duration
from rlhf_gym.ranks import ranks
from rlhf_gym.report import write_report
from rlhf_gym.runs.folder import IN_ROUNDS
from rlhf_gym.runs.summaries import (
    collect_line,
    evaluate_line,
    pretrain_line,
    reward_line,
    sft_line,
    train_line,
)
from rlhf_gym.settings import RunConfig, StageName
from rlhf_gym.tasks import Task


@dataclass(frozen=True)
class Stage:
    """One stage of one run."""

    name: StageName
    """Its name, on the command line and in the folder."""
    round: int
    """The round it belongs to; 1 where there are no rounds."""
    work: Callable[[], dict[str, Any]]
    """Does it; what comes back marks it as complete."""
    line: Callable[[dict[str, Any]], str]
    """Makes one line of the stage's metrics."""
    idle: str = ""
    """Why there is nothing to do, where there is nothing."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a stage, which is named; what is on the disk can be gone on with."""


def run(
    config: RunConfig | None = None,
    *,
    task: Task | None = None,
    only: StageName | None = None,
    redo: StageName | None = None,
    console: Console | None = None,
) -> Path:
    """Go through the stages into `config.run_dir`, or on from where an earlier call stopped.

        from rlhf_gym.pipeline import run
        from rlhf_gym.settings import RunConfig

        run(RunConfig(run_dir=Path("runs/mine"), seeds=1))

    Args:
        config: the settings; `RunConfig()` runs the embedded task.
        task: a task of your own, instead of the one that the settings name.
        only: this stage alone, for which all before it must be complete.
        redo: begin again from this stage; what it and later ones left is removed.
        console: where progress is shown; the terminal by default.

    Returns:
        The run's folder.

    Raises:
        ValueError, OSError: before any work: something given is not as expected, or the folder is another run's.
    """
    prepared = prepare(config or RunConfig(), task=task, console=console, redo=redo)
    return execute(prepared, only=only, redo=redo)


def execute(run: Run, *, only: StageName | None = None, redo: StageName | None = None) -> Path:
    """The stages of a run that has been checked. See `run`.

    Of several ranks all go through the same stages, and meet at the end of each; rank 0 has the folder, and writes.
    """
    group = ranks()
    with group.failing_together(), quiet_transformers():
        if only is not None:
            check_inputs(run, only, redo)
        with run.folder.occupied() if group.leads else nullcontext():
            group.from_first(lambda: _open(run, redo), "the run's folder")
            _execute(run, only)
    return run.folder.root


def _open(run: Run, redo: StageName | None) -> None:
    run.folder.open(run.config, redo=redo, notes=run.notes)
    run.folder.check()


def _execute(run: Run, only: StageName | None) -> None:
    terminal.say_header(run, use_threads(run))
    many = run.config.rounds > 1
    stages = list(stages_of(run))
    if only is not None:
        named = [stage for stage in stages if stage.name == only]
        stages = [next((stage for stage in named if not is_complete(run, stage)), named[-1])] if named else []
        if not named and only != "report":
            terminal.say_stage(run.console, only, "", "there is none in this run")
    for stage in stages:
        _go_through(
            run, stage, stage.name if not many or stage.name not in IN_ROUNDS else f"{stage.name} {stage.round}"
        )
    if only in (None, "evaluate", "report"):
        ranks().from_first(lambda: _report(run), "the report")


def stages_of(run: Run) -> Iterator[Stage]:
    """All stages but the report, in order."""
    shipped = f"skipped: the pretrained model is there ({_short(run.task.pretrained)})"
    yield Stage("pretrain", 1, lambda: pretrain_stage(run), pretrain_line, idle="" if run.makes_pretrained else shipped)
    no_demonstrations = "skipped: no demonstrations, the pretrained model itself is the SFT policy"
    yield Stage("sft", 1, lambda: sft_stage(run), sft_line, idle="" if run.task.demonstrations else no_demonstrations)
    for round in range(1, run.config.rounds + 1):
        yield from _round(run, round)
    yield Stage("evaluate", 1, lambda: evaluate_stage(run), evaluate_line)


def _round(run: Run, round: int) -> Iterator[Stage]:
    there = "the reward model is there" if run.steps is None else "r_φ learns from labelled steps"
    own = "" if run.config.task.compares else f"skipped: {there}"
    yield Stage("collect", round, lambda: collect_stage(run, round), collect_line, idle=own)
    yield Stage("reward", round, lambda: reward_stage(run, round), reward_line)
    yield Stage("train", round, lambda: train_stage(run, round), train_line)
    if round == 1 and run.trains_without_kl:
        yield Stage("without_kl", round, lambda: without_kl_stage(run, round), train_line)


def is_complete(run: Run, stage: Stage) -> bool:
    """Whether the stage is complete."""
    return bool(stage.idle) or run.folder.metrics(stage.name, stage.round) is not None


def check_inputs(run: Run, only: StageName, redo: StageName | None = None) -> None:
    """A stage alone needs all before it; what `redo` begins again from is not there any more.

    Raises:
        ValueError: one of them is not complete.
    """
    stages = list(stages_of(run))
    kept = next((i for i, stage in enumerate(stages) if stage.name == redo), len(stages))
    complete = [i < kept and is_complete(run, stage) for i, stage in enumerate(stages)]
    targets = [i for i, stage in enumerate(stages) if stage.name == only]
    left = [i for i in targets if not complete[i]]
    first = left[0] if left else targets[-1] if targets else len(stages)
    for done, stage in zip(complete[:first], stages, strict=False):
        if not done and not stage.idle and stage.name != "without_kl":
            raise ValueError(
                f"expected {stage.name} to be complete before {only}, got a run folder without it: run "
                f"`rlhf-gym {stage.name} --run-dir {run.config.run_dir}` first"
            )


def _go_through(run: Run, stage: Stage, label: str) -> None:
    if stage.idle:
        terminal.say_stage(run.console, label, "", stage.idle)
        return
    done = run.folder.metrics(stage.name, stage.round)
    if done is not None:
        if ranks().leads:
            run.folder.tidy(stage.name, stage.round)
        terminal.say_stage(run.console, label, "done", stage.line(done))
        return
    started = time.perf_counter()
    try:
        metrics = stage.work()
    except KeyboardInterrupt as error:
        raise Interrupted(label) from error
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    ranks().from_first(lambda: run.folder.complete(stage.name, stage.round, metrics), f"the end of {label}")
    terminal.say_stage(run.console, label, duration(metrics["seconds"]), stage.line(run_metrics(run, stage)))


def run_metrics(run: Run, stage: Stage) -> dict[str, Any]:
    """What a stage left, as it reads from the folder."""
    metrics = run.folder.metrics(stage.name, stage.round)
    assert metrics is not None
    return metrics


def _report(run: Run) -> None:
    started = time.perf_counter()
    path = write_report(run.folder)
    terminal.say_stage(run.console, "report", duration(time.perf_counter() - started), str(path))
    metrics = run.folder.metrics("evaluate")
    if metrics is not None:
        terminal.say_table(run.console, metrics)


def _short(source: object) -> str:
    text = str(source)
    return text if len(text) <= 40 else "…" + text[-39:]
