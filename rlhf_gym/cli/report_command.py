"""`rlhf-gym report RUN [RUN …]`, a page about a run or several side by side, and `rlhf-gym check RUN`."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from rlhf_gym.cli.options import CheckRun, ReportOptions
from rlhf_gym.files import read_json
from rlhf_gym.manifest import MANIFEST_FILE, write_manifest
from rlhf_gym.pipeline.terminal import say_table
from rlhf_gym.report import write_report
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.folder import IN_ROUNDS


def report(options: ReportOptions) -> int:
    """Write the page. Returns the exit code.

    Raises:
        ValueError, OSError: a folder is no run's, or has nothing to report yet.
    """
    console = Console()
    for run in options.runs:
        RunFolder(run).check()
    path = write_report([RunFolder(run) for run in options.runs], options.output)
    console.print(escape(str(path)), highlight=False, soft_wrap=True)
    if len(options.runs) == 1:
        metrics = RunFolder(options.runs[0]).metrics("evaluate")
        assert metrics is not None
        say_table(console, metrics)
    return 0


def check_run(options: CheckRun) -> int:
    """Check a run's files. Returns the exit code.

    Raises:
        ValueError: the folder is no run's, or a file is not what its stage left.
    """
    console = Console()
    folder = RunFolder(options.run)
    if folder.config() is None:
        raise ValueError(f"expected the folder of a run, got {options.run} without a config.json")
    stages = list(folder.complete_stages())
    if options.accept:
        for name, round in stages:
            write_manifest(folder.stage(name, round))
    folder.check(thorough=True)
    for name, round in stages:
        listed = read_json(folder.stage(name, round) / MANIFEST_FILE)
        files = "written before there were manifests" if listed is None else f"{len(listed)} files as they were"
        console.print(f"{name if name not in IN_ROUNDS else f'{name} {round}'}: {files}", highlight=False)
    return 0
