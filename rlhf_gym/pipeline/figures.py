"""The report's pictures, drawn from what PPO logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_gym.functional import fit_rl, rl_curve
from rlhf_gym.pipeline.charts import Chart, Level, Line, Mark, smooth
from rlhf_gym.pipeline.folder import RunFolder
from rlhf_gym.pipeline.ppo import iterations

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


def goodhart_chart(histories: Histories, sft: dict[str, Any]) -> tuple[Chart, dict[str, Any]]:
    """Gold and proxy over √KL, in the SFT policy's standard deviations, with the curve of Gao et al. through gold.

    Also returns what the caption says: the fitted peak of the run without KL penalty (or with, if it is alone).
    """
    lines, marks, facts = [], [], {}
    for kind in histories.logs:
        _, kl = histories.curve(kind, "rlhf/kl")
        tokens, gold = histories.curve(kind, "rlhf/gold")
        _, proxy = histories.curve(kind, "rlhf/score")
        if not len(gold):
            continue
        distance = np.sqrt(np.clip(np.interp(tokens, *histories.curve(kind, "rlhf/kl")), 0, None))
        rise = (gold - sft["gold"][0]) / sft["gold_std"]
        order = np.argsort(np.sqrt(np.clip(kl, 0, None)), kind="stable")
        window = max(3, len(order) // 4)  # where the leash holds, many iterations stand at one distance
        far = smooth(np.sqrt(np.clip(kl, 0, None))[order], window)
        lines.append(Line(far, smooth(proxy[order], window), kind, f"r_φ, {NAMES[kind]}", "dashed"))
        lines.append(Line(distance, rise, kind, "", "points"))
        fit = fit_or_none(distance, rise)
        if fit is None:
            continue
        reach = np.linspace(0, float(distance.max()), 80)
        lines.append(Line(reach, rl_curve(reach**2, fit.alpha, fit.beta), kind, f"gold, {NAMES[kind]} (fit)"))
        facts[kind] = {"alpha": fit.alpha, "beta": fit.beta, "peak_distance": fit.peak_distance}
        if 0 < fit.peak_distance < float(distance.max()):
            marks.append(Mark(fit.peak_distance, fit.peak_gold, kind, f"peak at {fit.peak_distance**2:.1f} nats"))
    chart = Chart("gold and r_φ, in standard deviations of the SFT policy", "distance from π_ref, √KL (√nats)",
                  lines, marks=marks)  # fmt: skip
    return chart, facts


def fit_or_none(distance: np.ndarray, rise: np.ndarray) -> Any:
    """Gao et al.'s curve through points; None where there are too few to fit."""
    if np.unique(distance[distance > 0]).size < 3:
        return None
    return fit_rl(distance**2, rise)


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
