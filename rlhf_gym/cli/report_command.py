"""`rlhf-gym report RUN [RUN …]`: one page about a run, or about several side by side."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from rlhf_gym.cli.options import ReportOptions
from rlhf_gym.pipeline.terminal import say_table
from rlhf_gym.report import write_report
from rlhf_gym.runs import RunFolder


def report(options: ReportOptions) -> int:
    """Write the page. Returns the exit code.

    Raises:
        ValueError, OSError: a folder is no run's, or has nothing to report yet.
    """
    console = Console()
    path = write_report([RunFolder(run) for run in options.runs], options.output)
    console.print(escape(str(path)), highlight=False, soft_wrap=True)
    if len(options.runs) == 1:
        metrics = RunFolder(options.runs[0]).metrics("evaluate")
        assert metrics is not None
        say_table(console, metrics)
    return 0
