"""python scripts/benchmark.py: how fast the package is, beside its peers, in one run on one machine.

    python scripts/benchmark.py                                          # CPU, two sizes with random weights
    python scripts/benchmark.py --only loop reward --sizes tiny          # a part of it
    python scripts/benchmark.py --peer-python .trl/bin/python --markdown docs/speed_table.md
    python scripts/benchmark.py --model FOLDER --rounds 3 --warm-ups 2   # every row on a real model
    python scripts/benchmark.py --device cuda --model FOLDER             # on a GPU

Every comparison has the same model, batch, lengths, dtype and threads on both sides, measured in turn, and is the
median over the rounds of the ratio within a round; two machines' tokens a second say nothing about each other, ratios
do. `docs/speed.md` says what each row means. The peer's PPO runs in a Python of its own, which has TRL 1.12 (`pip
install torch trl==1.12.0 accelerate datasets peft`); without one its rows say that it is missing.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import tyro
from benchmarks import iteration, loops
from benchmarks.compare import ForeignLoad, Row, Say, Settings, markdown
from benchmarks.models import SMALL, TINY, of_folder

from rlhf_gym.lm import quiet_transformers

Name = Literal["loop", "reward", "lengths", "long", "replay", "iteration", "vocabulary", "stock"]
NAMES: tuple[Name, ...] = ("loop", "reward", "lengths", "long", "replay", "iteration", "vocabulary", "stock")
Kind = Literal["full", "half", "bf16", "separate", "lora"]
KINDS: tuple[Kind, ...] = ("full", "half", "bf16", "separate", "lora")


@dataclass(frozen=True)
class Arguments:
    """What is measured, and where the results go."""

    model: Path | None = None
    """The folder of a causal language model, measured instead of random weights; the responses of PPO are then 32 of 24
    tokens."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where both sides run."""
    threads: int = 2
    """The number of torch's threads, for both sides."""
    rounds: int = 5
    """Timed repeats of each variant."""
    warm_ups: int = Settings.warm_ups
    """Untimed calls of each variant of ours."""
    only: tuple[Name, ...] = NAMES
    """Measure only these."""
    kinds: tuple[Kind, ...] = KINDS
    """PPO iterations of only these kinds."""
    peers: tuple[Literal["full", "lora"], ...] = ("full", "lora")
    """Which of the peer's iterations are run beside them."""
    batches: tuple[int, ...] = Settings.batches
    """Batches of the loops."""
    sizes: tuple[Literal["tiny", "small"], ...] = ("tiny", "small")
    """Random weights of these sizes: 1M and 13M."""
    peer_python: Path | None = None
    """The path of a Python that has TRL 1.12."""
    json: Path | None = None
    """Write all results to this file as JSON."""
    markdown: Path | None = None
    """Write the table to this file as Markdown."""
    quick: bool = False
    """Very short repeats: to see that it runs, not how fast."""

    def settings(self) -> Settings:
        """The settings that the measurements share."""
        shapes = tuple({"tiny": TINY, "small": SMALL}[name] for name in self.sizes)
        ppo = {}
        if self.model is not None:
            shapes = (of_folder(self.model),)
            ppo = {"ppo_episodes": 32, "ppo_response": 24}
        return Settings(
            shapes=shapes,
            device=self.device,
            threads=self.threads,
            rounds=self.rounds,
            warm_ups=1 if self.quick else self.warm_ups,
            min_seconds=0.0 if self.quick else Settings.min_seconds,
            batches=self.batches,
            **ppo,
        )


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

    settings = arguments.settings()
    load = ForeignLoad()
    rows = run(
        settings, arguments.only, say, iteration.Processes(arguments.peer_python), arguments.kinds, arguments.peers
    )
    about = heading(settings, shown_command(sys.argv[1:]), load())
    print(markdown(rows, about))
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown(rows, about) + "\n")
    if arguments.json is not None:
        results = {"about": about, "rows": [asdict(row) | {"reached": row.reached} for row in rows]}
        arguments.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def run(
    settings: Settings,
    only: tuple[Name, ...],
    say: Say,
    runner: iteration.Runner,
    kinds: tuple[Kind, ...] = KINDS,
    peers: tuple[str, ...] = ("full", "lora"),
) -> list[Row]:
    """Run the chosen measurements one after another."""
    torch.set_num_threads(settings.threads)
    of_loops = tuple(name for name in ("loop", "reward") if name in only)
    parts: list[tuple[bool, Callable[[], list[Row]]]] = [
        (bool(of_loops), lambda: loops.measure_loops(settings, say, of_loops)),
        ("lengths" in only, lambda: loops.measure_unequal(settings, say)),
        ("long" in only, lambda: loops.measure_long(settings, say)),
        ("replay" in only, lambda: loops.measure_replay(settings, say)),
        ("iteration" in only, lambda: iteration.measure(settings, say, runner, kinds, peers)),
        ("vocabulary" in only, lambda: iteration.measure_vocabulary(settings, say, runner)),
        ("stock" in only, lambda: loops.measure_stock(settings, say)),
    ]
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        return [row for wanted, part in parts if wanted for row in part()]


def heading(settings: Settings, command: str, foreign: float) -> str:
    """The date, command, machine and versions, and what others used of the machine."""
    packages = ("torch", "transformers", "peft", "stable-baselines3", "gymnasium", "numpy")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    device = torch.cuda.get_device_name() if settings.device == "cuda" else "CPU"
    return (
        f"<!-- written by `{command}`; do not edit -->\n\n{datetime.date.today()}; {platform.system()} "
        f"{platform.machine()}, {processor()}, {os.cpu_count()} cores, {settings.threads} threads, {device}; Python "
        f"{platform.python_version()}, {versions}; medians of {settings.rounds} rounds, tokens a second unless said; "
        f"other processes used {100 * foreign:.0f} % of the CPU meanwhile."
    )


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def shown_command(given: Sequence[str]) -> str:
    """What was typed, without where things lie on this machine."""

    def shown(word: str) -> str:
        name, equals, value = word.rpartition("=")
        return name + equals + ("PATH" if Path(value).is_absolute() else value)

    return " ".join(["python", "scripts/benchmark.py", *map(shown, given)])


if __name__ == "__main__":
    main()
