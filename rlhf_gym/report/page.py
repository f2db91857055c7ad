"""`report.html`: one file, no request to anywhere, light and dark. Whatever a model wrote is escaped.

A page is made of sections, functions from a run (or several) to HTML: a new one is a line in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template

from rlhf_gym.files import write_text
from rlhf_gym.report.compare import (
    about_section,
    check_runs,
    compare_head,
    compare_samples,
    compare_table,
    curves_section,
    frontier_section,
    settings_section,
    unique_names,
)
from rlhf_gym.report.goodhart import goodhart_section
from rlhf_gym.report.overview import head_section, making_section, table_section
from rlhf_gym.report.reward import reward_section
from rlhf_gym.report.run import ReportRun, read_run
from rlhf_gym.report.samples import samples_section
from rlhf_gym.report.training import monitor_section, training_section
from rlhf_gym.runs.folder import RunFolder

HERE = Path(__file__).parent
SECTIONS: tuple[Callable[[ReportRun], str], ...] = (
    head_section,
    table_section,
    goodhart_section,
    reward_section,
    training_section,
    monitor_section,
    samples_section,
    making_section,
)
"""The page about one run, from top to bottom; a section that has nothing to say is empty."""


COMPARISON: tuple[Callable[[Sequence[ReportRun]], str], ...] = (
    compare_table,
    settings_section,
    frontier_section,
    curves_section,
    compare_samples,
)
"""The page about several runs, between its head and what there is about each of them alone."""
COMPARISON_FILE = "runs_compared.html"


def write_report(folders: RunFolder | Sequence[RunFolder], output: str | Path | None = None) -> Path:
    """Write the report of an evaluated run, or of several runs side by side, finished or not.

    Args:
        folders: the run's, or those of 2 to 8 runs of one task.
        output: the page; by default `report.html` in the run's folder, of several `runs_compared.html` in the current
            one.

    Raises:
        ValueError: there is no run in a folder, a single one has not been evaluated, or several cannot be compared.
        IsADirectoryError, NotADirectoryError: there is a folder where the page was to go, or a file for its folder.
    """
    given = [folders] if isinstance(folders, RunFolder) else list(folders)
    if not given:
        raise ValueError("expected at least one run, got none")
    page = given[0].report if len(given) == 1 else Path(COMPARISON_FILE)
    page = page if output is None else Path(output)
    if page.is_dir():
        raise IsADirectoryError(f"expected a file to write the report to, got the folder {page}")
    above = next(folder for folder in page.absolute().parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"expected a folder to write {page.name} into, got the file {above}")
    if len(given) == 1:
        run = read_run(given[0])
        return write_page(page, title=f"rlhf_gym: {run.name}", body="\n".join(section(run) for section in SECTIONS))
    names = unique_names([folder.root for folder in given])
    runs = [read_run(folder, name=name) for folder, name in zip(given, names, strict=True)]
    check_runs(runs)
    body = [compare_head(runs), *(section(runs) for section in COMPARISON), about_section(runs, page)]
    return write_page(page, title=f"rlhf_gym: {', '.join(names)}", body="\n".join(body))


def write_page(path: Path, *, title: str, body: str) -> Path:
    """Write all of a page or nothing."""
    page = Template((HERE / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        css=(HERE / "report.css").read_text(encoding="utf-8"),
        js=(HERE / "report.js").read_text(encoding="utf-8"),
        body=body,
    )
    write_text(path, page)
    return path
