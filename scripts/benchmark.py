"""python scripts/benchmark.py: how fast the package is, beside its peers, in one run on one machine.

    python scripts/benchmark.py                                  # CPU, two sizes
    python scripts/benchmark.py --only loop reward --sizes tiny  # a part of it
    python scripts/benchmark.py --peer-python .trl/bin/python --markdown docs/speed_table.md
    python scripts/benchmark.py --device cuda                    # two sizes more

Every comparison has the same model, batch, lengths, dtype and threads on both sides, measured in turn, and is the
median over the rounds of the ratio within a round; two machines' tokens a second say nothing about each other, ratios
do. `docs/speed.md` says what each row means. Weights are random: speed does not depend on them. The peer's PPO runs in
a Python of its own, which has TRL 1.12 (`pip install torch trl==1.12.0 accelerate datasets`); without one its rows
say that it is missing.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import tyro
from benchmarks import iteration, loops, tables
from benchmarks.common import BASE, LLAMA_1B, SHAPES, SMALL, TINY, Say, Settings
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rlhf_gym.lm import quiet_transformers

Name = Literal["loop", "reward", "recompute", "lengths", "long", "iteration", "stock"]
NAMES: tuple[Name, ...] = ("loop", "reward", "recompute", "lengths", "long", "iteration", "stock")


@dataclass(frozen=True)
class Arguments:
    """What is measured, and where the results go."""

    device: Literal["cpu", "cuda"] = "cpu"
    """cuda adds the sizes `base` and `1b`."""
    threads: int = 2
    """The number of torch's threads, for both sides."""
    rounds: int = 5
    """Timed repeats of each variant."""
    only: tuple[Name, ...] = NAMES
    """Measure only these."""
    sizes: tuple[Literal["tiny", "small", "base", "1b"], ...] = ()
    """Instead of tiny and small (and on cuda base and 1b)."""
    stock_sizes: tuple[Literal["tiny", "small"], ...] = ("tiny",)
    """At which sizes stock agents are compared: at small the naive one takes some ten minutes an iteration."""
    peer_python: Path | None = None
    """The path of a Python that has TRL 1.12."""
    json: Path | None = None
    """Write all results to this file as JSON."""
    markdown: Path | None = None
    """Write the tables to this file as Markdown."""
    quick: bool = False
    """One warm-up and very short repeats: to see that it runs, not how fast."""

    def settings(self) -> Settings:
        """The settings that the measurements share."""
        default = (TINY, SMALL, BASE, LLAMA_1B) if self.device == "cuda" else (TINY, SMALL)
        return Settings(
            shapes=tuple(SHAPES[name] for name in self.sizes) or default,
            device=self.device,
            threads=self.threads,
            rounds=self.rounds,
            stock_sizes=self.stock_sizes,
            min_seconds=0.0 if self.quick else Settings.min_seconds,
            warm_ups=1 if self.quick else Settings.warm_ups,
        )


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device for --device cuda, found none")
    if arguments.peer_python is not None and not arguments.peer_python.is_file():
        raise SystemExit(f"expected a Python at --peer-python, found no file {arguments.peer_python}")
    settings = arguments.settings()
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")

        def say(text: str) -> None:
            progress.update(task, description=text)
            progress.console.print(f"[dim]{text}[/]", highlight=False)

        report = run(settings, arguments.only, say, iteration.Processes(arguments.peer_python))
    tables.show(report, Console(width=None if sys.stdout.isatty() else 160))
    for path, text in ((arguments.json, tables.to_json), (arguments.markdown, tables.markdown)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(report))


def run(settings: Settings, only: tuple[Name, ...], say: Say, runner: iteration.Runner) -> tables.Report:
    """Run the chosen measurements one after another."""
    torch.set_num_threads(settings.threads)
    of_loops = tuple(name for name in ("loop", "reward", "recompute") if name in only)
    parts: list[tuple[bool, Callable[[], tables.Section]]] = [
        (bool(of_loops), lambda: loops.measure_loops(settings, say, of_loops)),
        ("lengths" in only, lambda: loops.measure_unequal(settings, say)),
        ("long" in only, lambda: loops.measure_long(settings, say)),
        ("iteration" in only, lambda: iteration.measure(settings, say, runner)),
        ("stock" in only, lambda: loops.measure_stock(settings, say)),
    ]
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        sections = [part() for wanted, part in parts if wanted]
    return tables.describe(settings, shown_command(sys.argv[1:]), sections)


def shown_command(given: Sequence[str]) -> str:
    """What was typed, without where things lie on this machine."""

    def shown(word: str) -> str:
        name, equals, value = word.rpartition("=")
        return name + equals + ("PATH" if Path(value).is_absolute() else value)

    return " ".join(["python", "scripts/benchmark.py", *map(shown, given)])


if __name__ == "__main__":
    main()
