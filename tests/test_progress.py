"""Progress off a terminal: short work is silent, long work says a plain line now and then, with what is left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rlhf_gym import progress as progress_module
from rlhf_gym.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed; a test moves them on."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def lines(seconds: float, steps: int, clock: list[float], **settings: object) -> list[str]:
    """What work of so many seconds in so many equal steps says."""
    console = Console(file=io.StringIO(), width=80)
    with Progress("texts", console).over(steps, **settings) as shown:  # type: ignore[arg-type]
        for step in range(steps - shown._done):
            clock[0] += seconds / steps
            shown.update(shown._done + 1, figures=f"loss {step}")
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_short_work_says_nothing_off_a_terminal(clock: list[float]) -> None:
    assert lines(29, 100, clock) == []


def test_long_work_says_a_line_every_thirty_seconds(clock: list[float]) -> None:
    said = lines(300, 100, clock)
    assert len(said) == 9
    assert said[0] == "  texts: 10 of 100 (10%), 4:30 left; loss 9"
    assert said[-1].startswith("  texts: 90 of 100 (90%), 0:30 left")


def test_very_long_work_says_some_twenty_lines_each_tenfold_of_its_time(clock: list[float]) -> None:
    assert 25 < len(lines(36_000, 10_000, clock)) < 60


def test_the_time_left_is_that_of_what_is_still_to_do_after_a_restart(clock: list[float]) -> None:
    assert lines(200, 100, clock, done=50)[0] == "  texts: 65 of 100 (65%), 1:10 left; loss 14"


def test_no_label_shows_nothing_and_a_terminal_has_a_bar_in_place_of_lines(clock: list[float]) -> None:
    for label, terminal in ((None, False), ("texts", True)):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        with Progress(label, console).over(2) as shown:
            clock[0] += 100
            shown.advance()
        assert ("texts: 1 of 2" in console.file.getvalue()) is False  # type: ignore[attr-defined]
        assert ("50 %" in console.file.getvalue()) is terminal  # type: ignore[attr-defined]


def test_a_unit_counts_several_steps_as_one(clock: list[float]) -> None:
    assert lines(400, 100, clock, unit=10)[0].startswith("  texts: 0 of 10 (8%), 6:08 left")
