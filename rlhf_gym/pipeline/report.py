"""`report.html`: one file, no request to anywhere, light and dark. Whatever a model wrote is escaped.

A page is made of sections, functions from a run (or several) to HTML: a new one is a line in `SECTIONS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template

from rlhf_gym.pipeline.folder import RunFolder
from rlhf_gym.pipeline.report_goodhart import goodhart_section
from rlhf_gym.pipeline.report_making import making_section
from rlhf_gym.pipeline.report_reward import reward_section
from rlhf_gym.pipeline.report_run import ReportRun, read_run
from rlhf_gym.pipeline.report_samples import samples_section
from rlhf_gym.pipeline.report_table import head_section, table_section
from rlhf_gym.pipeline.report_training import training_section

HERE = Path(__file__).parent
SECTIONS: tuple[Callable[[ReportRun], str], ...] = (
    head_section,
    table_section,
    goodhart_section,
    reward_section,
    training_section,
    samples_section,
    making_section,
)
"""The page about one run, from top to bottom; a section that has nothing to say is empty."""


def write_report(folders: RunFolder | Sequence[RunFolder], output: str | Path | None = None) -> Path:
    """Write the report of a run that has been evaluated.

    Args:
        folders: the run's.
        output: the page; by default `report.html` in the run's folder.

    Raises:
        ValueError: it has not been evaluated.
    """
    (folder,) = [folders] if isinstance(folders, RunFolder) else folders
    run = read_run(folder)
    return write_page(
        folder.report if output is None else Path(output),
        title=f"rlhf_gym: {run.name}",
        body="\n".join(section(run) for section in SECTIONS),
    )


def write_page(path: Path, *, title: str, body: str) -> Path:
    """Write all of a page or nothing."""
    page = Template((HERE / "report.html").read_text()).substitute(
        title=escape(title),
        css=(HERE / "report.css").read_text(),
        js=(HERE / "report.js").read_text(),
        body=body,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path
