"""What measurements hand back, and how it is shown: on the terminal, as Markdown, as JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import BUSY, Settings

PACKAGES = ("rlhf-gym", "torch", "transformers", "stable-baselines3", "gymnasium", "numpy")


@dataclass(frozen=True)
class Row:
    """One claim: what was compared with what, and whether it is what it should be."""

    what: str
    against: str
    measured: float | None
    """A ratio; None where it was not measured."""
    target: float | None
    """The target; None for a figure without one."""
    at_most: bool = False
    """Whether the target is an upper bound."""
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None where there is nothing to tell."""
        if self.measured is None or self.target is None:
            return None
        return self.measured <= self.target if self.at_most else self.measured >= self.target

    def cells(self) -> list[str]:
        """The row's cells as text."""
        measured = "unmeasured" if self.measured is None else f"{self.measured:.2f}"
        target = "–" if self.target is None else f"{'≤' if self.at_most else '≥'} {self.target:g}"
        reached = {None: "–", True: "yes", False: "no"}[self.reached]
        return [self.what, self.against, measured, target, reached, self.note]


HEADER = ["what", "against", "measured", "target", "reached", "note"]


@dataclass(frozen=True)
class Detail:
    """A table of the rates behind the rows."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """The rows and tables of one measurement."""

    name: str
    rows: list[Row]
    details: list[Detail]
    foreign: float
    """Highest share of the CPU that other processes used during a part of it."""


@dataclass(frozen=True)
class Report:
    """The results of a whole run."""

    date: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    settings: Settings
    sections: list[Section]

    def cautions(self) -> list[str]:
        """The measurements that other processes disturbed."""
        return [
            f"{section.name}: other processes used {100 * section.foreign:.0f} % of the CPU while this was measured"
            for section in self.sections
            if section.foreign > BUSY
        ]


def describe(settings: Settings, command: str, sections: list[Section]) -> Report:
    """A run with its date, machine and versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "from a checkout"
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(settings.threads),
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else "CPU",
    }
    return Report(datetime.date.today().isoformat(), command, machine, versions, settings, sections)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def show(report: Report, console: Console) -> None:
    """Print the results as tables."""
    for section in report.sections:
        for detail in section.details:
            console.print(_table(detail.title, detail.header, detail.rows))
    rows = [row.cells() for section in report.sections for row in section.rows]
    console.print(_table("The claims", HEADER, rows))
    for caution in report.cautions():
        console.print(f"[yellow]caution[/] {caution}")


def _table(title: str, header: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column, name in enumerate(header):
        numeric = column > 0 and all(_is_number(row[column]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _is_number(text: str) -> bool:
    return text in ("", "–", "unmeasured") or text.lstrip("≥≤ −-")[:1].isdigit()


def markdown(report: Report) -> str:
    """The same as a Markdown page, which says where its numbers come from."""
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    versions = ", ".join(f"{key} {value}" for key, value in report.versions.items())
    lines = [
        f"<!-- written by `{report.command}`; do not edit -->",
        "",
        f"{report.date}; {machine}; {versions}; medians of {report.settings.rounds} interleaved rounds.",
        "",
        *_markdown_table(HEADER, [row.cells() for section in report.sections for row in section.rows]),
    ]
    for caution in report.cautions():
        lines += ["", f"Caution: {caution}."]
    for section in report.sections:
        for detail in section.details:
            lines += ["", f"**{detail.title}**", "", *_markdown_table(detail.header, detail.rows)]
    return "\n".join(lines) + "\n"


def _markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def to_json(report: Report) -> str:
    """All results as JSON."""
    return json.dumps(asdict(report) | {"cautions": report.cautions()}, indent=2, ensure_ascii=False) + "\n"
