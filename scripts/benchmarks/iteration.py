"""A whole PPO iteration, ours and the peer's, each in a fresh process: the peer before and after, or before."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.compare import Row, Say, Settings
from benchmarks.models import Iteration, Shape

SCRIPTS = Path(__file__).resolve().parent.parent
MISSING = "TRL was not run: give --peer-python, a Python that has trl 1.12"


@dataclass(frozen=True)
class Processes:
    """Fresh processes: nothing that was measured before is in their memory."""

    peer_python: Path | None

    def ours(self, given: Iteration) -> dict[str, Any]:
        """Run our agent in this Python, or on ranks of it: what `own_ppo.measure` gives."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={given.ranks}"] * (
            given.ranks > 0
        )
        return self._run([sys.executable, *launcher], "benchmarks.own_ppo", given)

    def peer(self, given: Iteration) -> dict[str, Any] | None:
        """Run the peer in its own Python, if there is one: what `peer_ppo.measure` gives."""
        return None if self.peer_python is None else self._run([str(self.peer_python)], "benchmarks.peer_ppo", given)

    @staticmethod
    def _run(python: list[str], module: str, given: Iteration) -> dict[str, Any]:
        paths = [str(SCRIPTS), str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(given.threads)}
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if given.device == "cpu" else {}
        done = subprocess.run(
            [*python, "-m", module, json.dumps(dataclasses.asdict(given))],
            env={**os.environ, **offline, **hidden, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(python)} -m {module} failed:\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.splitlines()[-1])


class Kind(NamedTuple):
    """A setting in which our agent is run."""

    name: str
    """Its name in the table."""
    peer: str
    """Which of the peer's settings it is compared with: full or lora."""
    beside_full: bool = False
    """Whether it is compared with our own iteration of all layers, too."""


KINDS = {
    "full": Kind("all layers", "full"),
    "half": Kind("lower half frozen", "full"),
    "bf16": Kind("all layers, bf16", "full", beside_full=True),
    "separate": Kind("all layers, critic on a trunk of its own", "full"),
    "lora": Kind("LoRA r=16 on all linear layers", "lora", beside_full=True),
}


def measure(settings: Settings, say: Say, runner: Processes) -> list[Row]:
    """Tokens a second and memory, against the peer's and against our own iteration of all layers."""
    rows = []
    for shape in settings.shapes:
        given = Iteration(
            shape=shape,
            device=settings.device,
            threads=settings.threads,
            iterations=settings.rounds,
            warm_ups=settings.warm_ups,
            response=settings.ppo_response,
            episodes=settings.ppo_episodes,
        )
        half = dataclasses.replace(given, warm_ups=min(1, settings.warm_ups), iterations=-(-settings.rounds // 2))
        theirs: dict[str, list[dict[str, Any]]] = {"full": [], "lora": []}

        def ask_peer(half: Iteration = half, theirs: dict[str, list[dict[str, Any]]] = theirs) -> None:
            for kind, found in theirs.items():
                say(f"{half.shape.name}: PPO iterations, {kind}, the peer's")
                measured = runner.peer(dataclasses.replace(half, kind=kind))
                found += [] if measured is None else [measured]

        ask_peer()
        ours = {}
        for kind in KINDS:
            say(f"{shape.name}: PPO iterations, {kind}, ours")
            ours[kind] = runner.ours(dataclasses.replace(given, kind=kind))
        if settings.rounds > 1:
            ask_peer()
        rows += [row for kind in KINDS for row in _rows(given, kind, ours, theirs[KINDS[kind].peer])]
    return rows


def _rows(given: Iteration, kind: str, ours: dict[str, dict[str, Any]], peers: list[dict[str, Any]]) -> list[Row]:
    """The rows of one kind: against the peer, its memory, against our own iteration of all layers."""
    tokens = given.episodes * given.response
    size = given.shape.name
    about = KINDS[kind]
    what = f"PPO iteration, {about.name}"
    name = f"TRL PPO {peers[0]['version']}, {about.peer}" if peers else f"TRL PPO, {about.peer}"
    rate = tokens / statistics.median(ours[kind]["seconds"])
    theirs = tokens / statistics.median(s for peer in peers for s in peer["seconds"]) if peers else None
    note = f"{given.episodes} episodes × {given.response}; rollout and scores {100 * ours[kind]['rollout_share']:.0f} %"
    note = note if peers else f"{note}; {MISSING}"
    rows = [Row(what, size, name, rate, theirs, rate / theirs if theirs else None, note)]
    peak = ours[kind]["peak_mb"]
    most = max((peer["peak_mb"] for peer in peers), default=None)
    note = f"of a fresh process; the libraries alone {ours[kind]['libraries_mb']:,.0f}"
    rows.append(Row(f"{what}: peak MB", size, name, peak, most, peak / most if most else None, note))
    if about.beside_full:
        full = tokens / statistics.median(ours["full"]["seconds"])
        rows.append(Row(what, size, "ours, all layers, fp32", rate, full, rate / full, "one run of each"))
    return rows


def measure_ranks(settings: Settings, say: Say, runner: Processes) -> list[Row]:
    """Tokens a second of a PPO iteration on several ranks, one thread each, against one rank; by turns, on the wall."""
    rows = []
    for shape in settings.shapes:
        found: dict[int, list[dict[str, Any]]] = {1: [], settings.ranks: []}
        for turn in range(-(-settings.rounds // 2)):
            for count in sorted(found, reverse=turn % 2 == 1):
                say(f"{shape.name}: a PPO iteration on {count} ranks, one thread each")
                given = Iteration(shape, settings.device, 1, 1, settings.warm_ups, settings.ppo_response, ranks=count)
                found[count].append(runner.ours(dataclasses.replace(given, episodes=settings.ppo_episodes)))
        tokens = settings.ppo_episodes * settings.ppo_response
        one, several = ([tokens / run["seconds"][0] for run in found[count]] for count in (1, settings.ranks))
        ratios = [a / b for a, b in zip(several, one, strict=True)]
        shares = "; ".join(
            f"{count} {'rank' if count == 1 else 'ranks'}: {_phases(runs)}" for count, runs in found.items()
        )
        note = f"{shares}; rounds {min(ratios):.2f}–{max(ratios):.2f}"
        medians = statistics.median(several), statistics.median(one)
        what = f"PPO iteration on {settings.ranks} ranks × 1 thread"
        rows.append(Row(what, shape.name, "1 rank × 1 thread", *medians, statistics.median(ratios), note))
        say(f"{shape.name}: the same, sharded")
        given = dataclasses.replace(given, ranks=settings.ranks, episodes=settings.ppo_episodes, kind="sharded")
        rows += _sharded_rows(given, runner.ours(given), found[1], found[settings.ranks])
    return rows


def _sharded_rows(
    given: Iteration, sharded: dict[str, Any], alone: list[dict[str, Any]], replicas: list[dict[str, Any]]
) -> list[Row]:
    """Memory and time of a sharded agent: against one rank, and against as many that hold all weights."""
    what = f"PPO, sharded over {given.ranks} ranks"
    one, each = (statistics.median(run["held_mb"] for run in runs) for runs in (alone, replicas))
    peaks = [run["peak_mb"] - run["libraries_mb"] for run in (sharded, *alone[:1])]
    note = (
        f"the most that a rank held at the end of a rollout or at an optimizer step; a replica {each:,.0f}; peak of "
        f"rank 0 without the libraries {peaks[0]:,.0f}, of 1 rank {peaks[1]:,.0f}"
    )
    held = sharded["held_mb"]
    memory = Row(f"{what}: MB of weights, gradients, moments", given.shape.name, "1 rank", held, one, held / one, note)
    tokens = given.episodes * given.response
    rate = tokens / sharded["seconds"][0]
    theirs = tokens / statistics.median(run["seconds"][0] for run in replicas)
    against = f"{given.ranks} replicas"
    return [memory, Row(what, given.shape.name, against, rate, theirs, rate / theirs, f"one run; {_phases([sharded])}")]


def _phases(runs: list[dict[str, Any]]) -> str:
    """The share of each phase of an iteration, the median over runs."""
    rollout = statistics.median(run["rollout_share"] for run in runs)
    meeting = statistics.median(run["meeting_share"] for run in runs)
    return (
        f"{100 * rollout:.0f} % rollout and scores, {100 * (1 - rollout):.0f} % update, in them {100 * meeting:.0f} % "
        "meetings"
    )


LARGE_VOCABULARY = Shape("1 layer, V=49,152", 1, 576, 49_152, 9)


def measure_vocabulary(settings: Settings, say: Say, runner: Processes) -> list[Row]:
    """What evaluating 16 responses of 256 tokens in one minibatch takes above what is there before, against an fp32
    tensor (B, T, V) of them."""
    rows = []
    for kind in ("full", "lora"):
        say(f"memory of an update at a large vocabulary, {kind}")
        given = Iteration(LARGE_VOCABULARY, settings.device, settings.threads, 1, 0, 256, 16, 1, 1, kind=kind)
        whole = given.episodes * given.response * given.shape.vocab_size * 4 / 2**20
        added = runner.ours(given)["update_mb"]
        what = f"memory of a forward and a backward pass, {KINDS[kind].name}: MB"
        note = "16 responses of 256 tokens in one minibatch; gradients of the weights included"
        rows.append(Row(what, given.shape.name, "one fp32 (B, T, V)", added, whole, added / whole, note))
    return rows
