"""python scripts/benchmark.py: how fast the package is, beside its peers, in one run on one machine.

    python scripts/benchmark.py                                          # CPU, two sizes with random weights
    python scripts/benchmark.py --only loop reward --sizes tiny          # a part of it
    python scripts/benchmark.py --only ranks --sizes small --ranks 2     # two processes that train one agent
    python scripts/benchmark.py --peer-python .trl/bin/python --markdown docs/studies/speed_table.md
    python scripts/benchmark.py --model FOLDER --rounds 3 --warm-ups 2   # every row on a real model
    python scripts/benchmark.py --device cuda --model FOLDER             # on a GPU

Every comparison has the same model, batch, lengths, dtype and threads on both sides, measured in turn, and is the
median over the rounds of the ratio within a round; two machines' tokens a second say nothing about each other, ratios
do. `docs/studies/speed.md` says what each row means. The peer's PPO runs in a Python of its own, with TRL 1.12 (`pip
install torch trl==1.12.0 accelerate datasets peft`); without one its rows say that it is missing.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import tyro
from benchmarks import iteration, loops
from benchmarks.compare import Row, Say, Settings, markdown
from benchmarks.models import SMALL, TINY, of_folder

from rlhf_gym.lm import quiet_transformers

Name = Literal[
    "loop", "reward", "lengths", "turns", "long", "replay", "products", "adapter", "iteration", "ranks", "vocabulary"
]


@dataclass(frozen=True)
class Arguments(Settings):
    """What is measured, and where the results go."""

    model: Path | None = None
    """The folder of a causal language model, measured instead of random weights; the responses of PPO are then 32 of 24
    tokens."""
    sizes: tuple[Literal["tiny", "small"], ...] = ("tiny", "small")
    """Random weights of these sizes: 1M and 13M."""
    only: tuple[Name, ...] = get_args(Name)
    """Measure only these."""
    peer_python: Path | None = None
    """The path of a Python that has TRL 1.12."""
    markdown: Path | None = None
    """Write the table to this file as Markdown."""

    def with_shapes(self) -> Arguments:
        """The same with the shapes that are asked for."""
        if self.model is None:
            return replace(self, shapes=tuple({"tiny": TINY, "small": SMALL}[name] for name in self.sizes))
        return replace(self, shapes=(of_folder(self.model),), ppo_episodes=32, ppo_response=24)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device for --device cuda, found none")
    if arguments.peer_python is not None and not arguments.peer_python.is_file():
        raise SystemExit(f"expected a Python at --peer-python, found no file {arguments.peer_python}")
    if arguments.model is not None and not (arguments.model / "config.json").is_file():
        raise SystemExit(f"expected a model's folder with config.json at --model, found none in {arguments.model}")

    def say(text: str) -> None:
        print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)

    settings = arguments.with_shapes()
    rows = run(settings, arguments.only, say, iteration.Processes(arguments.peer_python))
    table = markdown(rows, heading(settings))
    print(table)
    if arguments.markdown is not None:
        arguments.markdown.write_text(table + "\n")


def run(settings: Settings, only: tuple[Name, ...], say: Say, runner: iteration.Processes) -> list[Row]:
    """Run the chosen measurements one after another."""
    torch.set_num_threads(settings.threads)
    of_loops = tuple(name for name in ("loop", "reward") if name in only)
    parts: list[tuple[bool, Callable[[], list[Row]]]] = [
        (bool(of_loops), lambda: loops.measure_loops(settings, say, of_loops)),
        ("lengths" in only, lambda: loops.measure_unequal(settings, say)),
        ("turns" in only, lambda: loops.measure_turns(settings, say)),
        ("long" in only, lambda: loops.measure_long(settings, say)),
        ("replay" in only, lambda: loops.measure_replay(settings, say)),
        ("products" in only, lambda: loops.measure_products(settings, say)),
        ("adapter" in only, lambda: loops.measure_adapter(settings, say)),
        ("iteration" in only, lambda: iteration.measure(settings, say, runner)),
        ("ranks" in only, lambda: iteration.measure_ranks(settings, say, runner)),
        ("vocabulary" in only, lambda: iteration.measure_vocabulary(settings, say, runner)),
    ]
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        return [row for wanted, part in parts if wanted for row in part()]


def heading(settings: Settings) -> str:
    """The date, machine and versions, and how busy the machine was."""
    packages = ("torch", "transformers", "peft", "stable-baselines3", "gymnasium", "numpy")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    device = torch.cuda.get_device_name() if settings.device == "cuda" else "CPU"
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return (
        f"<!-- written by scripts/benchmark.py; do not edit -->\n\n{datetime.date.today()}; {platform.system()} "
        f"{platform.machine()}, {processor[1] if processor else 'unknown'}, {os.cpu_count()} cores, "
        f"{settings.threads} threads, {device}; Python {platform.python_version()}, {versions}; medians of "
        f"{settings.rounds} rounds, tokens a second unless said; the machine's load at the end was "
        f"{os.getloadavg()[2]:.1f} (mean of 15 minutes)."
    )


if __name__ == "__main__":
    main()
