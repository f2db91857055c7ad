"""The report's section on over-optimisation: gold and r_φ as the policy moves away from π_ref."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rlhf_gym.functional import OveroptimizationFit, fit_rl
from rlhf_gym.report.charts import Band, Chart, Level, Line, Mark, smooth
from rlhf_gym.report.parts import PROXY, figure, kind_legend, legend, seed_legend, signed, typeset
from rlhf_gym.report.run import Histories, ReportRun
from rlhf_gym.report.training import GOLD, SCORE, training_chart
from rlhf_gym.runs.records import BestOfN, read_best_of_n
from rlhf_gym.runs.summaries import agent_label
from rlhf_gym.settings import StageName

LABELS = {"train": "with KL penalty", "without_kl": "without", "best_of": "best of n"}


def goodhart_section(run: ReportRun) -> str:
    """Gold and r_φ over training and over √KL; empty where there is no gold."""
    metrics = run.evaluation
    sft = metrics["summary"][0]
    histories = run.histories
    if metrics["judge"] != "gold" or sft["gold_std"] == 0 or not len(histories.curve("train", GOLD.name)[0]):
        return ""
    best = read_best_of_n(run.folder)
    chart, fits = goodhart_chart(histories, sft, best)
    kinds = kind_legend(histories, agent_label(metrics))
    forms = [("dash", "r_φ"), ("dot", "gold, an iteration"), ("", "gold, fitted")]
    best_item = [] if best is None else [("best_of", "best of n SFT responses by r_φ")]
    start = f"the SFT policy’s {signed(sft['gold'][0])}"
    levels = [
        Level(entry["gold"][0], entry["kind"], "SFT" if entry is sft else f"SFT, best of {metrics['best_of']}")
        for entry in metrics["summary"]
        if entry["kind"] in ("sft", "best_of")
    ]
    return f"""
<h2>What the reward model likes, and what is good</h2>
<p>{_story(goodhart_facts(histories), start).replace("r_φ", PROXY)}</p>
{legend([*kinds, *seed_legend([histories])])}
<div class="charts wide">{figure(training_chart(histories, GOLD, levels=levels), GOLD.caption)}
{figure(training_chart(histories, SCORE), SCORE.caption)}</div>
<div class="charts wide beside">{figure(chart, "")}
<div class="aside">{legend([*kinds, *best_item, *forms])}
<p class="caption">{_fit_story(chart, fits, best)}</p></div></div>"""


def _story(facts: dict[str, dict[str, float]], start: str) -> str:
    sentences = []
    if "without_kl" in facts:
        f = facts["without_kl"]
        fell = f["peak"] - f["last"] > 0.1 * max(f["peak"] - f["first"], 1e-9)
        ending = f"and falls to {signed(f['last'])} by the end" if fell else f"and ends at {signed(f['last'])}"
        while_ = "r_φ goes on rising" if f["proxy_last"] > f["proxy_at_peak"] else "r_φ no longer rises"
        sentences.append(
            f'<span class="ink-without_kl">Without the KL penalty</span>, gold goes from {start} to its '
            f"highest, {signed(f['peak'])}, after {f['peak_tokens'] / 1000:.0f}k tokens {ending}, while {while_}, "
            f"from {signed(f['proxy_at_peak'])} to {signed(f['proxy_last'])}."
        )
    f = facts["train"]
    sentences.append(
        f'<span class="ink-train">With the penalty</span>, gold goes from {start} to {signed(f["last"])} '
        f"and r_φ to {signed(f['proxy_last'])}."
    )
    return " ".join(sentences)


def _fit_story(chart: Chart, fits: dict[str, GoodhartFit], best: BestOfN | None) -> str:
    """What the dots and lines are, then each curve: α and b with their intervals, and where it peaks or why nowhere."""
    dots = "Each dot is the mean gold of an iteration"
    if best is not None:
        prompts, n = best.gold.shape
        dots += f", or of the best of 1, 2, 3, 4, 6 … {n} of {n} SFT responses to each of {prompts} held-out prompts"
    text = f"{dots}; the dashed line is what r_φ made of the same responses, smoothed in training."
    if fits:
        forms = "d(α − b log d) for RL, d(α − bd) for the best of n" if "best_of" in fits else "d(α − b log d)"
        text += (
            f" The curves through gold are those of Gao et al. (2022), {forms}, d = √KL; brackets and bands are 95 % "
            f"intervals, {'; '.join(_certainty(fits))}."
        )
    shown = {band.kind for band in chart.bands}
    hidden = [LABELS[kind] for kind in fits if kind not in shown]
    if hidden:
        text += f" Bands wider than the picture are left out: {', '.join(hidden)}."
    names = {kind: LABELS[kind][0].upper() + LABELS[kind][1:] for kind in fits}
    stories = [f'<br><span class="ink-{kind}">{names[kind]}</span>: {_one_fit(fits[kind])}' for kind in fits]
    return typeset(text) + "".join(stories)


def _certainty(fits: dict[str, GoodhartFit]) -> list[str]:
    """What the intervals are computed over, in words."""
    found = []
    seeds = next((f.witnesses for kind, f in fits.items() if kind != "best_of"), 0)
    if seeds == 1:
        found.append("for RL over the iterations of the one seed, what another seed would bring not in them")
    elif seeds:
        found.append(f"for RL over {seeds} seeds")
    return found + ([f"for the best of n over {fits['best_of'].witnesses} prompts"] if "best_of" in fits else [])


def _one_fit(found: GoodhartFit) -> str:
    fit = found.fit
    alpha, decline = fit.intervals()
    figures = f"α = {fit.alpha:.2f} {_bracket(alpha)}, b = {fit.decline:.2f} {_bracket(decline)}".replace("-", "−")
    return typeset(f"{figures}; {peak_words(found)}.")


def peak_words(found: GoodhartFit) -> str:
    """Where the fitted curve peaks; where it does not within what was measured, that it does not."""
    fit = found.fit
    reach = found.reach
    low, high = fit.peak_interval()
    if found.peaks:
        end = f"{high**2:.1f} nats" if high < 10 * reach else "where, if anywhere, is open"
        where = f"at a KL of {fit.peak_kl:.1f} nats ({low**2:.1f} to {end})"
        return f"gold is highest {where}, {fit.peak_gold:+.2f} {_bracket(fit.peak_gold_interval())}".replace("-", "−")
    if fit.peak_distance == 0 or (fit.decline <= 0 and fit.curve([reach**2])[0] <= 0):
        return "gold falls from the start"
    if fit.decline <= 0:
        return "gold does not turn within what was measured, and the curve, with b ≤ 0, never does: no peak to predict"
    if fit.peak_distance <= 1.5 * reach:
        return f"gold still rises at the farthest point, {reach**2:.1f} nats; the curve would peak at {fit.peak_kl:.1f}"
    return (
        f"gold does not turn within the {reach**2:.1f} nats that were measured, and a peak that far beyond them would "
        "be a guess"
    )


def _bracket(interval: tuple[float, float]) -> str:
    low, high = interval
    return "" if math.isnan(low) or math.isnan(high) else f"[{low:.2f}, {high:.2f}]"


def goodhart_facts(histories: Histories) -> dict[str, dict[str, float]]:
    """Where each kind's gold began, peaked and ended, and where its proxy stood then: smoothed means of the seeds."""
    facts: dict[str, dict[str, float]] = {}
    for kind in histories.logs:
        tokens, gold = histories.curve(kind, GOLD.name)
        _, proxy = histories.curve(kind, SCORE.name)
        if not len(gold):
            continue
        window = max(3, len(gold) // 12)
        gold = smooth(gold, window)
        proxy = smooth(proxy, window)
        peak = int(gold.argmax())
        facts[kind] = {
            "first": float(gold[0]),
            "peak": float(gold[peak]),
            "peak_tokens": float(tokens[peak]),
            "last": float(gold[-1]),
            "proxy_at_peak": float(np.interp(tokens[peak], histories.curve(kind, SCORE.name)[0], proxy)),
            "proxy_last": float(proxy[-1]),
        }
    return facts


class GoodhartFit(NamedTuple):
    """Gao et al.'s curve through the gold of one kind of policy."""

    fit: OveroptimizationFit
    """In standard deviations of the SFT policy."""
    reach: float
    """√KL of the farthest point it was fitted to."""
    witnesses: int
    """Seeds, or prompts for the best of n, that its intervals are over; 1 for the iterations of a single seed."""

    @property
    def peaks(self) -> bool:
        """Whether the curve turns within what was measured: only then is there a peak to show."""
        return 0 < self.fit.peak_distance <= self.reach


def goodhart_chart(
    histories: Histories, sft: dict[str, Any], best: BestOfN | None = None
) -> tuple[Chart, dict[str, GoodhartFit]]:
    """Gold and proxy over √KL, in the SFT policy's standard deviations, with the curves of Gao et al. through gold.

    Args:
        histories: what PPO logged, with KL penalty and perhaps without.
        sft: the row of the SFT policy in the evaluation's summary.
        best: the best of n for every n, where it was measured.

    Returns:
        The chart, and the fits by kind ("train", "without_kl", "best_of") for what the caption says.
    """
    lines: list[Line] = []
    fits: dict[str, GoodhartFit] = {}
    for kind in histories.logs:
        distance, rise = _rises(histories, kind, sft)
        if not len(rise):
            continue
        _, proxy = histories.curve(kind, SCORE.name)
        far = np.sqrt(np.clip(histories.kl(kind)[1], 0, None))  # (n,)
        order = np.argsort(far, kind="stable")
        window = max(3, len(order) // 4)  # the KL penalty keeps many iterations at one distance
        lines.append(
            Line(smooth(far[order], window), smooth(proxy[order], window), kind, f"r_φ, {LABELS[kind]}", "dashed")
        )
        lines.append(Line(distance, rise, kind, "", "points"))
        if (found := fit_over_seeds(histories, kind, sft, float(distance.max()))) is not None:
            fits[kind] = found
    if best is not None:
        gold, proxy = (values.mean(axis=0) for values in best.rise())  # (sizes,) each
        lines.append(Line(np.sqrt(best.kl), proxy, "best_of", "r_φ, best of n", "dashed"))
        lines.append(Line(np.sqrt(best.kl), gold, "best_of", "", "points"))
        if (fit := best.fit()) is not None:
            fits["best_of"] = GoodhartFit(fit, float(np.sqrt(best.kl[-1])), len(best.gold))
    height = float(np.ptp(np.concatenate([np.asarray(line.y, dtype=float) for line in lines])))
    bands: list[Band] = []
    marks: list[Mark] = []
    for name, found in fits.items():
        d = np.linspace(0, found.reach, 80)  # √KL, (80,)
        lines.append(Line(d, found.fit.curve(d**2), kind, f"gold, {LABELS[name]} (fit)"))
        low, high = found.fit.band(d**2)  # (80,) each
        if np.mean(high - low) < height:  # a wider band would only cover the picture
            bands.append(Band(d, low, high, name))
        if found.peaks:
            peak = f"peak at {found.fit.peak_kl:.1f} nats"
            marks.append(Mark(found.fit.peak_distance, found.fit.peak_gold, name, peak))
    title = "gold and r_φ, in standard deviations of the SFT policy"
    return Chart(title, "distance from π_ref, √KL (√nats)", lines, bands=bands, marks=marks), fits


def fit_over_seeds(histories: Histories, kind: StageName, sft: dict[str, Any], reach: float) -> GoodhartFit | None:
    """Gao et al.'s curve through the gold of each seed, their mean; None where no seed has enough points.

    A single seed is taken as one run whose neighbouring iterations may agree.
    """
    single = [_rises(Histories({kind: [log]}, ()), kind, sft) for log in histories.logs[kind]]
    runs = [(distance, rise) for distance, rise in single if np.unique(distance[distance > 0]).size >= 3]
    if not runs:
        return None
    kl = np.concatenate([distance**2 for distance, _ in runs])
    rises = np.concatenate([rise for _, rise in runs])
    if len(runs) == 1:
        return GoodhartFit(fit_rl(kl, rises, ordered=True), reach, 1)
    seeds = np.repeat(np.arange(len(runs)), [len(distance) for distance, _ in runs])
    return GoodhartFit(fit_rl(kl, rises, runs=seeds), reach, len(runs))


def _rises(histories: Histories, kind: StageName, sft: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """√KL and gold less the SFT policy's, in its standard deviations, where gold was looked at."""
    tokens, gold = histories.curve(kind, GOLD.name)
    if not len(gold):
        return np.zeros(0), np.zeros(0)
    distance = np.sqrt(np.clip(np.interp(tokens, *histories.kl(kind)), 0, None))
    return distance, (gold - sft["gold"][0]) / sft["gold_std"]
