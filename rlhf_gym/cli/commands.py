"""The commands that run stages: settings from the command line, laid over those of the run folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, get_args

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import arg

from rlhf_gym.cli.app import COMMANDS, fail
from rlhf_gym.pipeline import Interrupted, execute, prepare
from rlhf_gym.pipeline.annotate import LabellingError
from rlhf_gym.pipeline.reward import UnfitRewardError
from rlhf_gym.pipeline.stages import check_inputs
from rlhf_gym.rewards import ScoreError
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.folder import BusyFolderError
from rlhf_gym.settings import RunConfig, StageName, TaskConfig, default_config


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    config: Annotated[RunConfig, arg(name="")]
    """The settings."""
    redo: StageName | None = None
    """Begin again from this stage: what it and all later stages left is removed, and their settings may be others."""


def go(command: str, arguments: Sequence[str]) -> int:
    """Run a stage, or all of them. Returns the exit code."""
    console = Console()
    try:
        options = parse(command, arguments)
        only = None if command == "run" else next(name for name in get_args(StageName) if name == command)
        run = prepare(options.config, console=console, redo=options.redo)
        if only is not None:
            check_inputs(run, only, options.redo)
    except (ValueError, OSError, ImportError) as error:
        return fail(str(error))
    try:
        execute(run, only=only, redo=options.redo)
    except (BusyFolderError, UnfitRewardError, LabellingError, ScoreError) as error:
        return fail(str(error))
    except Interrupted as interrupt:
        console.print(
            f"\n[bold]Interrupted[/bold] in {interrupt}. What is complete is kept; this goes on from there:\n\n"
            f"  rlhf-gym {command} --run-dir {escape(str(run.folder.root))}\n",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        return 130
    return 0


def parse(command: str, arguments: Sequence[str]) -> Options:
    """The settings: those given, over those of the run folder if it has some, else over what suits the task.

    Raises:
        SystemExit: --help, or what tyro cannot make sense of.
        ValueError: settings that do not go together.
    """
    return tyro.cli(
        Options,
        args=list(arguments),
        default=Options(starting_point(arguments)),
        prog=f"rlhf-gym {command}",
        description=f"{COMMANDS[command]}.",
    )


def starting_point(arguments: Sequence[str]) -> RunConfig:
    """The settings before the command line is read: the run folder's own, or the defaults for this kind of task."""
    glance = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    glance.add_argument("--run-dir", "--run_dir")
    for name in ("--corpus", "--model", "--prompts"):
        glance.add_argument(name)
    seen, _ = glance.parse_known_args(list(arguments))
    if seen.run_dir is not None:
        saved = RunFolder(Path(seen.run_dir)).config()
        if saved is not None:
            return replace(saved, run_dir=Path(seen.run_dir))
    if seen.model is not None and seen.prompts is not None:
        task = TaskConfig(model=seen.model, prompts=Path(seen.prompts))
    else:
        task = TaskConfig(corpus=None if seen.corpus is None else Path(seen.corpus))
    return default_config(task)
