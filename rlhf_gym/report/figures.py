"""The report's pictures, drawn from what PPO logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rlhf_gym.functional import OveroptimizationFit, fit_rl
from rlhf_gym.report.charts import Band, Chart, Level, Line, Mark, smooth
from rlhf_gym.runs.folder import RunFolder
from rlhf_gym.runs.records import BestOfN, iterations

Log = list[dict[str, Any]]
TOKENS = "response tokens in training"
NAMES = {"ppo": "with KL penalty", "unleashed": "without"}


@dataclass(frozen=True)
class Histories:
    """What each kind of PPO logged, a log a seed, the rounds one after another."""

    logs: dict[str, list[Log]]
    """By kind, "ppo" and perhaps "unleashed"; tokens count on from round to round."""
    breaks: tuple[float, ...]
    """Tokens at which a new round begins."""

    @classmethod
    def read(cls, folder: RunFolder, seeds: Sequence[int], rounds: int) -> Histories:
        """From the run folder."""
        logs: dict[str, list[Log]] = {"ppo": [[] for _ in seeds]}
        offset, breaks = 0, []
        for round in range(1, rounds + 1):
            longest = offset
            for log, seed in zip(logs["ppo"], seeds, strict=True):
                for record in iterations(folder.seed("ppo", round, seed)):
                    log.append(record | {"tokens": record["tokens"] + offset})
                longest = max(longest, log[-1]["tokens"] if log else 0)
            offset = longest
            breaks.append(float(offset))
        free = [iterations(folder.seed("unleashed", 1, seed)) for seed in seeds]
        if all(free):
            logs["unleashed"] = free
        return cls(logs, tuple(breaks[:-1]))

    def curve(self, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The mean over the seeds of a quantity, on a grid of tokens they all reach."""
        logs = [column(log, name) for log in self.logs[kind]]
        logs = [(x, y) for x, y in logs if len(x)]
        if not logs:
            return np.zeros(0), np.zeros(0)
        low, high = max(x[0] for x, _ in logs), min(x[-1] for x, _ in logs)
        grid = np.linspace(low, high, max(2, min(len(x) for x, _ in logs)))
        return grid, np.mean([np.interp(grid, x, y) for x, y in logs], axis=0)

    def kl(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """`curve` of the KL to the π_ref that training began with: a π_ref that follows the policy has another."""
        moving = any("rlhf/kl_initial" in record for log in self.logs[kind] for record in log)
        return self.curve(kind, "rlhf/kl_initial" if moving else "rlhf/kl")


def column(log: Log, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and values of a quantity, where it was logged."""
    found = [(record["tokens"], record[name]) for record in log if name in record]
    x, y = zip(*found, strict=True) if found else ((), ())
    return np.array(x, dtype=float), np.array(y, dtype=float)


def training_chart(
    histories: Histories, name: str, title: str, *, levels: Sequence[Level] = (), from_zero: bool = False
) -> Chart:
    """A quantity over training: each seed thin, their mean on top, with the KL penalty and without."""
    lines: list[Line] = []
    for kind, logs in histories.logs.items():
        if len(logs) > 1:
            lines += [Line(*column(log, name), kind=kind, style="thin") for log in logs]
    for kind in histories.logs:
        lines.append(Line(*histories.curve(kind, name), kind=kind, name=NAMES[kind]))
    return Chart(title, TOKENS, lines, levels, breaks=histories.breaks, from_zero=from_zero)


class GoodhartFit(NamedTuple):
    """Gao et al.'s curve through the gold of one kind of policy."""

    fit: OveroptimizationFit
    """In standard deviations of the SFT policy."""
    reach: float
    """√KL of the farthest point it was fitted to."""
    witnesses: int
    """Seeds, or prompts for the best of n, that its intervals are over; 1: the iterations of a single seed."""

    @property
    def peaks(self) -> bool:
        """Whether the curve turns within what was measured: only then is there a peak to show."""
        return 0 < self.fit.peak_distance <= self.reach

    def band(self, height: float) -> Band | None:
        """The curve's 95 % band; None where it is wider than a picture of this height, and would only cover it."""
        d = np.linspace(0, self.reach, 80)
        low, high = self.fit.band(d**2)
        return Band(d, low, high, "") if float(np.mean(high - low)) < height else None


def goodhart_chart(
    histories: Histories, sft: dict[str, Any], best: BestOfN | None = None
) -> tuple[Chart, dict[str, GoodhartFit]]:
    """Gold and proxy over √KL, in the SFT policy's standard deviations, with the curves of Gao et al. through gold.

    Args:
        histories: what PPO logged, with KL penalty and perhaps without.
        sft: the row of the SFT policy in the evaluation's summary.
        best: the best of n for every n, where it was measured.

    Returns:
        The chart, and the fits by kind ("ppo", "unleashed", "best_of") for what the caption says.
    """
    lines: list[Line] = []
    fits: dict[str, GoodhartFit] = {}
    for kind in histories.logs:
        distance, rise = _rises(histories, kind, sft)
        if not len(rise):
            continue
        _, proxy = histories.curve(kind, "rlhf/score")
        _, kl = histories.kl(kind)
        order = np.argsort(np.sqrt(np.clip(kl, 0, None)), kind="stable")
        window = max(3, len(order) // 4)  # where the leash holds, many iterations stand at one distance
        far = smooth(np.sqrt(np.clip(kl, 0, None))[order], window)
        lines.append(Line(far, smooth(proxy[order], window), kind, f"r_φ, {NAMES[kind]}", "dashed"))
        lines.append(Line(distance, rise, kind, "", "points"))
        fit = fit_over_seeds(histories, kind, sft)
        if fit is not None:
            fits[kind] = GoodhartFit(fit, float(distance.max()), len(_fitted(histories, kind, sft)))
    if best is not None:
        gold, proxy = (values.mean(axis=0) for values in best.rise())  # (sizes,) each
        lines.append(Line(np.sqrt(best.kl), proxy, "best_of", "r_φ, best of n", "dashed"))
        lines.append(Line(np.sqrt(best.kl), gold, "best_of", "", "points"))
        if (fit := best.fit()) is not None:
            fits["best_of"] = GoodhartFit(fit, float(np.sqrt(best.kl[-1])), len(best.gold))
    curves = {kind: np.linspace(0, found.reach, 80) for kind, found in fits.items()}
    names = {kind: f"gold, {'best of n' if kind == 'best_of' else NAMES[kind]} (fit)" for kind in fits}
    chart = Chart(
        "gold and r_φ, in standard deviations of the SFT policy",
        "distance from π_ref, √KL (√nats)",
        lines + [Line(d, fits[kind].fit.curve(d**2), kind, names[kind]) for kind, d in curves.items()],
        bands=[band._replace(kind=kind) for kind, f in fits.items() if (band := f.band(picture_height(lines)))],
        marks=[
            Mark(f.fit.peak_distance, f.fit.peak_gold, kind, f"peak at {f.fit.peak_kl:.1f} nats")
            for kind, f in fits.items()
            if f.peaks
        ],
    )
    return chart, fits


def picture_height(lines: Sequence[Line]) -> float:
    """From the lowest value that is shown to the highest."""
    y = np.concatenate([np.asarray(line.y, dtype=float) for line in lines])
    return float(y.max() - y.min())


def fit_over_seeds(histories: Histories, kind: str, sft: dict[str, Any]) -> OveroptimizationFit | None:
    """Gao et al.'s curve through the gold of each seed, their mean; None where no seed has enough points.

    One seed alone is taken as one run whose neighbouring iterations may agree.
    """
    runs = _fitted(histories, kind, sft)
    if not runs:
        return None
    kl = np.concatenate([distance**2 for distance, _ in runs])
    rise = np.concatenate([rise for _, rise in runs])
    if len(runs) == 1:
        return fit_rl(kl, rise, ordered=True)
    return fit_rl(kl, rise, runs=np.repeat(np.arange(len(runs)), [len(distance) for distance, _ in runs]))


def _fitted(histories: Histories, kind: str, sft: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(√KL, rise of gold) of each seed that has enough points for a curve."""
    single = [_rises(Histories({kind: [log]}, ()), kind, sft) for log in histories.logs[kind]]
    return [(d, rise) for d, rise in single if np.unique(d[d > 0]).size >= 3]


def _rises(histories: Histories, kind: str, sft: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """√KL and gold less the SFT policy's, in its standard deviations, where gold was looked at."""
    tokens, gold = histories.curve(kind, "rlhf/gold")
    if not len(gold):
        return np.zeros(0), np.zeros(0)
    distance = np.sqrt(np.clip(np.interp(tokens, *histories.kl(kind)), 0, None))
    return distance, (gold - sft["gold"][0]) / sft["gold_std"]


def goodhart_facts(histories: Histories) -> dict[str, dict[str, float]]:
    """Where each kind's gold began, peaked and ended, and where its proxy stood then: smoothed means of the seeds."""
    facts = {}
    for kind in histories.logs:
        tokens, gold = histories.curve(kind, "rlhf/gold")
        _, proxy = histories.curve(kind, "rlhf/score")
        if not len(gold):
            continue
        window = max(3, len(gold) // 12)
        gold, proxy = smooth(gold, window), smooth(proxy, window)
        peak = int(gold.argmax())
        facts[kind] = {
            "first": float(gold[0]),
            "peak": float(gold[peak]),
            "peak_tokens": float(tokens[peak]),
            "last": float(gold[-1]),
            "proxy_first": float(proxy[0]),
            "proxy_at_peak": float(np.interp(tokens[peak], histories.curve(kind, "rlhf/score")[0], proxy)),
            "proxy_last": float(proxy[-1]),
        }
    return facts
