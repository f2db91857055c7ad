"""The sweep as Markdown: the fits of every arm, and what moves with what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from studies import mean_and_error

from overoptimizing.outcome import Outcome, points, trend
from overoptimizing.sweep import Factor
from rlhf_gym.functional import OveroptimizationFit
from rlhf_gym.runs.summaries import count

TITLES: dict[Factor, str] = {
    "size": "size of r_φ, weights", "labels": "preferences", "noise": "share of flipped labels"
}  # fmt: skip
BETTER: dict[Factor, str] = {"size": "larger", "labels": "more data", "noise": "less noise"}
HEAD = "| {} | r_φ right, % | α | β | peak at √KL | gold there | gold at the end |"


def markdown(found: dict[Factor, list[Outcome]]) -> str:
    """A table for each factor, of PPO and of the best of n, then the trends."""
    lines = []
    for factor, outcomes in found.items():
        lines += [HEAD.format(TITLES[factor]), "|---|---|---|---|---|---|---|"]
        lines += [_row(factor, outcome) for outcome in outcomes] + [""]
    largest = max(outcomes[0].runs[0]["best_of_n"]["n"][-1] for outcomes in found.values())
    lines += [f"Best of n, the same reward models, d(α − βd), n up to {largest}:", ""]
    lines += ["| arm | α | β | peak at √KL | gold there | gold at the largest n |", "|---|---|---|---|---|---|"]
    seen = dict.fromkeys(outcome.arm for outcomes in found.values() for outcome in outcomes)
    by_arm = {outcome.arm: outcome for outcomes in found.values() for outcome in outcomes}
    lines += [_best_of_n_row(by_arm[arm]) for arm in seen] + [""]
    return "\n".join([*lines, *trends(found)]) + "\n"


def trends(found: dict[Factor, list[Outcome]]) -> list[str]:
    """Whether peaks come later and higher, a line a factor and question."""
    lines = ["| as r_φ gets … | peak at √KL, fitted | gold there | highest gold seen at √KL | gold there |",
             "|---|---|---|---|---|"]  # fmt: skip
    for factor, outcomes in found.items():
        if len(outcomes) < 2:
            continue
        ordered = outcomes[::-1] if factor == "noise" else outcomes
        cells = []
        for i in range(4):
            t = trend(list(zip(*([p[i] for p in o.peaks] for o in ordered), strict=True)))
            chance = "p < 0.0001" if t.chance < 1e-4 else f"p = {t.chance:.2g}"
            cells.append(f"{round(t.correlation, 2) + 0.0:+.2f} ({chance})".replace("-", "−"))
        lines.append(_line([BETTER[factor], *cells]))
    return lines


def level_name(factor: Factor, outcome: Outcome) -> str:
    """What an arm is called along one factor."""
    if factor == "size":
        return count(outcome.runs[0]["weights"])
    return f"{outcome.arm.labels:,}" if factor == "labels" else f"{outcome.arm.noise:g}"


def _row(factor: Factor, outcome: Outcome) -> str:
    right = mean_and_error([100 * a for a in outcome.accuracies])
    end = mean_and_error([end_gold(run) for run in outcome.runs])
    fitted = fit_cells(outcome.ppo, outcome.reach("ppo"))
    return _line([level_name(factor, outcome), _pm(*right, digits=1), *fitted, _pm(*end)])


def _best_of_n_row(outcome: Outcome) -> str:
    arm, last = outcome.arm, [float(points(run, "best_of_n").gold[-1]) for run in outcome.runs]
    name = f"{count(outcome.runs[0]['weights'])}, {arm.labels:,} labels, {arm.noise:g} flipped"
    fitted = fit_cells(outcome.best_of_n, outcome.reach("best_of_n"))
    return _line([name, *fitted, _pm(*mean_and_error(last))])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def end_gold(run: dict[str, Any], last: int = 5) -> float:
    """Gold's rise at the end of PPO, the mean of the last iterations, in the SFT policy's standard deviations."""
    return float(points(run, "ppo").gold[-last:].mean())


def fit_cells(fit: OveroptimizationFit, reach: float) -> list[str]:
    """α, β, where the curve peaks and how high, each with its 95 % interval; no peak beyond what was measured."""
    a, b = fit.intervals()
    cells = [_with_interval(fit.alpha, a), _with_interval(fit.beta, b)]
    if fit.peak_distance > reach and fit.curve([reach**2])[0] <= 0:
        return [*cells, "none, it falls", "–"]
    if fit.peak_distance > reach:
        return [*cells, f"beyond {_number(reach)} {_bracket(fit.peak_interval())}", "–"]
    peak = _with_interval(fit.peak_distance, fit.peak_interval())
    return [*cells, peak, _with_interval(fit.peak_gold, fit.peak_gold_interval())]


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return _number(value) if any(math.isnan(end) for end in interval) else f"{_number(value)} {_bracket(interval)}"


def _bracket(interval: Sequence[float]) -> str:
    return f"[{_number(interval[0])}, {_number(interval[1])}]"


def _number(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return (f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}").replace("-", "−")


def _pm(mean: float, error: float, digits: int = 2) -> str:
    text = f"{mean:.{digits}f}" if math.isnan(error) else f"{mean:.{digits}f} ± {error:.{digits}f}"
    return text.replace("-", "−")
