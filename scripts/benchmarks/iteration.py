"""A whole PPO iteration, ours and the peer's, each in a fresh process: the peer before and after."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.common import Iteration, Say, Settings, Shape
from benchmarks.tables import Detail, Row, Section

SCRIPTS = Path(__file__).resolve().parent.parent
PEER = "TRL PPO"
MISSING = "TRL is missing: give --peer-python, a Python that has trl 1.12"


class Runner(Protocol):
    """Who runs an iteration and says what it took."""

    def ours(self, given: Iteration) -> dict[str, Any]:
        """What `own_ppo.measure` gives."""

    def peer(self, given: Iteration) -> dict[str, Any] | None:
        """What `peer_ppo.measure` gives; None where there is no peer."""


@dataclass(frozen=True)
class Processes:
    """Fresh processes: nothing that was measured before is in their memory."""

    peer_python: Path | None

    def ours(self, given: Iteration) -> dict[str, Any]:
        """Run our agent in this Python."""
        return self._run(sys.executable, "benchmarks.own_ppo", given)

    def peer(self, given: Iteration) -> dict[str, Any] | None:
        """Run the peer in its own Python, if there is one."""
        return None if self.peer_python is None else self._run(str(self.peer_python), "benchmarks.peer_ppo", given)

    @staticmethod
    def _run(python: str, module: str, given: Iteration) -> dict[str, Any]:
        paths = [str(SCRIPTS), str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(given.threads)}
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if given.device == "cpu" else {}
        done = subprocess.run(
            [python, "-m", module, json.dumps(dataclasses.asdict(given))],
            env={**os.environ, **offline, **hidden, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{python} -m {module} failed:\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Kind:
    """A setting in which our agent is run."""

    name: str
    critic: str
    frozen: bool
    target: float | None


KINDS = (
    Kind("critic on the policy's trunk", "shared", False, 2.0),
    Kind("critic on a trunk of its own", "separate", False, None),
    Kind("lower half frozen", "shared", True, 4.0),
)


@dataclass(frozen=True)
class Found:
    """The measurements at one size of model."""

    given: Iteration
    ours: dict[str, dict[str, Any]]
    """The measurements of ours, by the name of their kind."""
    peers: list[dict[str, Any]]
    """The peer's measurements before and after ours; empty where there is no peer."""

    @property
    def peer_name(self) -> str:
        """The peer's name with its version."""
        return f"{PEER} {self.peers[0]['version']}" if self.peers else PEER

    @property
    def peer_seconds(self) -> float:
        """The median of the peer's iterations, over both measurements."""
        return statistics.median(s for found in self.peers for s in found["seconds"])

    def seconds(self, kind: str) -> float:
        """The median time of our iterations."""
        return statistics.median(self.ours[kind]["seconds"])

    @property
    def tokens(self) -> int:
        """Response tokens of an iteration."""
        return self.given.episodes * self.given.response


def measure(settings: Settings, say: Say, runner: Runner) -> Section:
    """Every fp32 size: time, memory, and where the time goes."""
    found = [_measure(shape, settings, say, runner) for shape in settings.shapes if shape.dtype == "float32"]
    details = [_details(found)]
    foreign = max((r["foreign"] for f in found for r in [*f.ours.values(), *f.peers]), default=0.0)
    return Section("iteration", [row for f in found for row in _rows(f)], details, foreign)


def _measure(shape: Shape, settings: Settings, say: Say, runner: Runner) -> Found:
    given = Iteration(
        shape=shape,
        device=settings.device,
        threads=settings.threads,
        iterations=settings.rounds,
        warm_ups=settings.warm_ups + 1,  # a rollout begins with steps whose weights are not laid out yet
        response=settings.response,
    )
    half = dataclasses.replace(given, warm_ups=1, iterations=-(-settings.rounds // 2))
    say(f"{shape.name}: PPO iterations of the peer, before")
    peers = [runner.peer(half)]
    ours = {}
    for kind in KINDS:
        say(f"{shape.name}: PPO iterations, {kind.name}")
        frozen = shape.n_layer // 2 if kind.frozen else 0
        ours[kind.name] = runner.ours(dataclasses.replace(given, critic=kind.critic, freeze_layers=frozen))
    say(f"{shape.name}: PPO iterations of the peer, after")
    peers.append(runner.peer(half))
    return Found(given, ours, [peer for peer in peers if peer is not None])


def _rows(found: Found) -> list[Row]:
    size = found.given.shape.name
    rows = []
    for kind in KINDS:
        ratio = found.peer_seconds / found.seconds(kind.name) if found.peers else None
        note = "tokens/s of a whole iteration; the peer trains two models" if found.peers else MISSING
        rows.append(Row(f"PPO iteration, {kind.name} ({size})", found.peer_name, ratio, kind.target, note=note))
    for kind in KINDS:
        peak = found.ours[kind.name]["peak_mb"]
        ratio = peak / max(peer["peak_mb"] for peer in found.peers) if found.peers else None
        note = f"{peak:,.0f} MB; a fresh process each" if found.peers else MISSING
        target = 0.6 if kind.target is not None else None
        rows.append(
            Row(f"its peak memory, {kind.name} ({size})", found.peer_name, ratio, target, at_most=True, note=note)
        )
    return rows


def _details(found: list[Found]) -> Detail:
    phases = ("rollout", "scoring", "update")
    header = ["size", "", "s/iteration", "tokens/s", *phases, "peak MB", "libraries alone, MB", "weights trained"]
    lines = []

    def line(one: Found, name: str, seconds: float, shares: list[str], result: dict[str, Any]) -> None:
        memory = [f"{result['peak_mb']:,.0f}", f"{result['libraries_mb']:,.0f}", f"{result['trained']:,}"]
        lines.append([one.given.shape.name, name, f"{seconds:.2f}", f"{one.tokens / seconds:,.0f}", *shares, *memory])

    for one in found:
        if one.peers:
            line(
                one,
                one.peer_name,
                one.peer_seconds,
                ["–"] * len(phases),
                max(one.peers, key=lambda peer: peer["peak_mb"]),
            )
        for kind, result in one.ours.items():
            seconds = one.seconds(kind)
            line(one, kind, seconds, [f"{100 * statistics.median(result[p]) / seconds:.0f} %" for p in phases], result)
    return Detail("A PPO iteration: 64 episodes, 4 epochs × 4 minibatches, fp32", header, lines)
