"""What came out of the sweep: a fit for each arm, and whether peaks move with what is swept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal, NamedTuple

import numpy as np
from studies import Trajectory

from overoptimizing.sweep import Arm
from rlhf_gym.functional import OveroptimizationFit, best_of_n_kl, fit_best_of_n, fit_rl

Way = Literal["ppo", "best_of_n"]
WINDOW = 5
"""Iterations averaged where a peak is looked for without a fit."""


class Points(NamedTuple):
    """What was measured along one run, in units of the SFT policy's standard deviation."""

    kl: np.ndarray
    """KL from the SFT policy, nats, (n,). For PPO an estimate, which may come out below 0 near it: those count as 0."""
    gold: np.ndarray
    """Gold less the SFT policy's, (n,)."""
    proxy: np.ndarray
    """r_φ, (n,)."""


def points(figures: dict[str, Any], way: Way) -> Points:
    """Of one arm and seed, as `Workshop.figures` left them."""
    sft, found = figures["sft"], figures[way]
    kl = np.maximum(found["kl"], 0) if way == "ppo" else best_of_n_kl(found["n"])
    return Points(kl, (np.array(found["gold"]) - sft["gold"]) / sft["gold_std"], np.array(found["proxy"]))


def fit(runs: Sequence[dict[str, Any]], way: Way) -> OveroptimizationFit:
    """Over the seeds of an arm, each of them one witness; a single seed's points are one run in order."""
    each = [points(run, way) for run in runs]
    kl, gold = (np.concatenate([getattr(p, name) for p in each]) for name in ("kl", "gold"))
    which = np.repeat(np.arange(len(each)), [len(p.kl) for p in each])
    curve = fit_rl if way == "ppo" else fit_best_of_n
    return curve(kl, gold, runs=which) if len(each) > 1 else curve(kl, gold, ordered=True)


class Peak(NamedTuple):
    """Where one seed's gold was highest."""

    distance: float
    """√KL there, by the seed's own fit."""
    gold: float
    """Gold's rise there, by the fit."""
    seen_distance: float
    """√KL where the running mean of gold was highest: no curve assumed."""
    seen_gold: float
    """Gold's rise there."""


def peak(run: dict[str, Any]) -> Peak:
    """Of PPO, one seed."""
    own, p = fit([run], "ppo"), points(run, "ppo")
    best = Trajectory(np.zeros(len(p.kl)), p.kl, p.gold, p.proxy).best(WINDOW)
    return Peak(own.peak_distance, own.peak_gold, float(np.sqrt(best.kl)), best.gold)


@dataclass(frozen=True, eq=False)
class Outcome:
    """An arm over its seeds."""

    arm: Arm
    """Which."""
    runs: list[dict[str, Any]]
    """The figures of each seed."""

    @property
    def ppo(self) -> OveroptimizationFit:
        """d(α − β log d) through gold on PPO's way."""
        return fit(self.runs, "ppo")

    @property
    def best_of_n(self) -> OveroptimizationFit:
        """d(α − βd) through gold of the best of n."""
        return fit(self.runs, "best_of_n")

    def reach(self, way: Way) -> float:
        """√KL that the middle one of the seeds came to."""
        return float(np.median([np.sqrt(points(run, way).kl.max()) for run in self.runs]))

    @property
    def peaks(self) -> list[Peak]:
        """A seed each."""
        return [peak(run) for run in self.runs]

    @property
    def accuracies(self) -> list[float]:
        """Share of SFT pairs that r_φ orders as gold does, a seed each."""
        return [run["accuracy"] for run in self.runs]


class Trend(NamedTuple):
    """Whether a quantity rises along the levels of a factor, within seeds."""

    correlation: float
    """Spearman's rank correlation with the levels, the mean over the seeds."""
    chance: float
    """How probable it is that the levels in random order, in every seed, would give as much or more."""


def trend(values: Sequence[Sequence[float]]) -> Trend:
    """Page's test for ordered alternatives (1963), a seed a block, a level a column; (seeds, levels).

    Its statistic is the sum over seeds of Σ_j j·rank_j, here as the mean of the seeds' rank correlations, which it
    determines. The chance is exact: all orders of a seed's ranks are equally likely, seeds independent. Ties share
    their mean rank; a seed in which everything ties counts 0.
    """
    table = np.asarray(values, dtype=np.float64)
    places = np.arange(table.shape[1]) - (table.shape[1] - 1) / 2  # (levels,)
    observed, sums = 0.0, {0.0: 1.0}
    for row in table:
        ranks = _ranks(row) - (len(row) - 1) / 2  # (levels,)
        scale = float(np.sqrt((places @ places) * (ranks @ ranks)))
        each = [round(float(places @ np.array(order)) / scale, 9) if scale else 0.0 for order in permutations(ranks)]
        observed += float(places @ ranks) / scale if scale else 0.0
        share = {value: each.count(value) / len(each) for value in set(each)}
        longer: dict[float, float] = {}
        for total, p in sums.items():
            for value, q in share.items():
                key = round(total + value, 9)
                longer[key] = longer.get(key, 0.0) + p * q
        sums = longer
    chance = sum(p for total, p in sums.items() if total >= observed - 1e-6)
    return Trend(observed / len(table), min(chance, 1.0))


def _ranks(row: np.ndarray) -> np.ndarray:
    """0 … levels − 1, equal values their mean rank."""
    return np.array([(row < value).sum() + ((row == value).sum() - 1) / 2 for value in row], dtype=np.float64)
