"""`Progress`: how far long work has come, as a bar on a terminal and as plain lines where the output is none."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

QUIET = 30.0
"""Seconds between two plain lines at least, and before the first: short work says nothing."""
SHARE = 0.1
"""Between two plain lines passes this share of the time so far, at least: about ten lines for each tenfold of it."""


class Progress:
    """Progress of one piece of work, `with Progress("responses").over(400) as progress: … progress.advance()`.

    On a terminal it is a bar, which goes when the work is over. Elsewhere (a file, a pipe) it is a plain line after 30
    seconds and then every 30 seconds, in long work every tenth of the time so far.

    Args:
        label: what is done; None shows nothing.
        console: where it is shown; the terminal by default.
    """

    def __init__(self, label: str | None, console: Console | None = None) -> None:
        self.label = label
        self._console = get_console() if console is None else console
        self._bar = Bar(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[figures]}", style="dim"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=label is None or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(label or "", figures="")
        self._total = self._done = self._begun_with = 0
        self._unit = 1
        self._figures = ""
        self._started = self._said = time.monotonic()

    def over(self, total: int, *, done: int = 0, unit: int = 1) -> Self:
        """The same progress, of so much work, of which some is done; it is counted in units of so much."""
        self._unit = unit
        self._total = total
        self._done = done
        self._begun_with = done
        self._bar.update(self._task, total=total, completed=done)
        return self

    def advance(self, more: int = 1) -> None:
        """So much more has been done."""
        self.update(self._done + more)

    def update(self, done: int, *, figures: str | None = None) -> None:
        """So much has been done, and this is how its figures stand; None leaves them."""
        self._done = done
        if self.label is None:
            return
        self._figures = self._figures if figures is None else figures
        self._bar.update(self._task, completed=done, figures=self._figures)
        now = time.monotonic()
        if self._console.is_terminal:
            return
        if now - self._said >= max(QUIET, SHARE * (now - self._started)) and done < self._total:
            self._said = now
            self._console.print(f"  {self._line(now)}", markup=False, highlight=False, soft_wrap=True)

    def _line(self, now: float) -> str:
        spent = now - self._started
        more = self._done - self._begun_with
        left = "" if more <= 0 else f", {duration(spent / more * (self._total - self._done))} left"
        figures = f"; {self._figures}" if self._figures else ""
        share = self._done / max(1, self._total)
        return (
            f"{self.label}: {self._done // self._unit:,} of {self._total // self._unit:,} ({share:.0%}){left}{figures}"
        )

    def __enter__(self) -> Self:
        self._started = self._said = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def duration(seconds: float) -> str:
    """A duration in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
