"""A run's way through KL: what gold and proxy were at each distance from π_ref."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlhf_gym.report.charts import smooth
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.folder import StageName
from rlhf_gym.runs.records import iterations

WINDOW = 5
"""Iterations that are averaged where single ones are too noisy to read."""


class Point(NamedTuple):
    """A place on the way, smoothed."""

    tokens: float
    """Response tokens learnt from when it was reached."""
    kl: float
    """KL(π‖π_ref) per response, nats."""
    gold: float
    """Mean gold of the policy's responses."""
    proxy: float
    """Mean score of r_φ of the same."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What one PPO run logged, an entry an iteration. Gold is of the responses it was learning from."""

    tokens: np.ndarray
    """Tokens that the policy had learnt from before it wrote these responses, (iterations,)."""
    kl: np.ndarray
    """KL(π‖π_ref) per response in nats, as estimated from the iteration's responses, (iterations,)."""
    gold: np.ndarray
    """Mean gold, (iterations,)."""
    proxy: np.ndarray
    """Mean score of r_φ, shaped and before any KL penalty, (iterations,)."""

    def smoothed(self, window: int = WINDOW) -> Trajectory:
        """Running means of KL, gold and proxy over this many iterations."""
        return Trajectory(self.tokens, smooth(self.kl, window), smooth(self.gold, window), smooth(self.proxy, window))

    def at(self, kl: float, window: int = WINDOW) -> Point:
        """Where the smoothed KL first reached so much, interpolated between two iterations; NaN where it never did."""
        way = self.smoothed(window)
        reached = np.flatnonzero(way.kl >= kl)
        if not len(reached):
            return Point(math.nan, kl, math.nan, math.nan)
        i = int(reached[0])
        before = max(i - 1, 0)
        apart = way.kl[i] - way.kl[before]
        share = (kl - way.kl[before]) / apart if apart > 0 else 1.0
        values = [v[before] + share * (v[i] - v[before]) for v in (way.tokens, way.gold, way.proxy)]
        return Point(float(values[0]), kl, float(values[1]), float(values[2]))

    def best(self, window: int = WINDOW) -> Point:
        """Where the smoothed gold was highest."""
        way = self.smoothed(window)
        return way._point(int(way.gold.argmax()))

    def last(self, window: int = WINDOW) -> Point:
        """The end: means over the last iterations."""
        ends = [float(v[-window:].mean()) for v in (self.kl, self.gold, self.proxy)]
        return Point(float(self.tokens[-1]), *ends)

    def _point(self, i: int) -> Point:
        return Point(float(self.tokens[i]), float(self.kl[i]), float(self.gold[i]), float(self.proxy[i]))


def read_trajectory(folder: RunFolder, stage: StageName, seed: int, round: int = 1) -> Trajectory:
    """From a run's folder; iterations without a look at gold are left out.

    Raises:
        ValueError: there is none with gold.
    """
    path = folder.seed(stage, round, seed)
    log = iterations(path)
    before = [0, *(record["tokens"] for record in log)][: len(log)]  # an iteration is logged after its update
    found = [
        (tokens, record.get("rlhf/kl_initial", record["rlhf/kl"]), record["rlhf/gold"], record["rlhf/score"])
        for tokens, record in zip(before, log, strict=True)
        if "rlhf/gold" in record
    ]
    if not found:
        raise ValueError(f"expected iterations with gold in {path}, got {len(log)} iterations without")
    return Trajectory(*np.array(found, dtype=np.float64).T)
