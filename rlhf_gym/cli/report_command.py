"""`rlhf-gym report RUN [RUN …]`: one page about a run, or about several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from rlhf_gym.cli.app import COMMANDS, fail
from rlhf_gym.pipeline.terminal import say_table
from rlhf_gym.report import write_report
from rlhf_gym.runs import RunFolder


@dataclass(frozen=True)
class ReportOptions:
    """What the page is about, and where it goes."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN …]", help_behavior_hint="")]
    """Run folders. One: its report. Several: one page that compares them, finished or not."""
    output: Path | None = None
    """The page; by default report.html in the run's folder, of several runs runs_compared.html in this one."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("expected at least one run folder, got none: rlhf-gym report RUN [RUN …]")


def report(arguments: Sequence[str]) -> int:
    """Write the page. Returns the exit code."""
    console = Console()
    try:
        options = tyro.cli(
            ReportOptions, args=list(arguments), prog="rlhf-gym report", description=f"{COMMANDS['report']}."
        )
        path = write_report([RunFolder(run) for run in options.runs], options.output)
    except (ValueError, OSError) as error:
        return fail(str(error))
    console.print(escape(str(path)), highlight=False, soft_wrap=True)
    if len(options.runs) == 1:
        metrics = RunFolder(options.runs[0]).metrics("evaluate")
        assert metrics is not None
        say_table(console, metrics)
    return 0
