"""The report's section on over-optimisation: what the reward model likes, and what is good."""

from __future__ import annotations

import math
from typing import Any

from rlhf_gym.report.charts import Chart, Level
from rlhf_gym.report.figures import GoodhartFit, goodhart_chart, goodhart_facts, training_chart
from rlhf_gym.report.parts import PROXY, figure, legend, signed, typeset
from rlhf_gym.report.run import ReportRun
from rlhf_gym.runs.records import BestOfN, read_best_of_n
from rlhf_gym.runs.summaries import agent_label

KINDS = {"ppo": "With the penalty", "unleashed": "Without", "best_of": "Best of n"}


def goodhart_section(run: ReportRun) -> str:
    """Gold and proxy over training and over √KL; empty where there is no gold."""
    histories, metrics = run.histories, run.evaluation
    sft = metrics["summary"][0]
    if metrics["judge"] != "gold" or sft["gold_std"] == 0 or not len(histories.curve("ppo", "rlhf/gold")[0]):
        return ""
    best = read_best_of_n(run.folder)
    chart, fits = goodhart_chart(histories, sft, best)
    facts = goodhart_facts(histories)
    start = f"the SFT policy’s {signed(sft['gold'][0])}"
    levels = _gold_levels(metrics)
    gold = training_chart(histories, "rlhf/gold", "gold reward", levels=levels)
    proxy = training_chart(histories, "rlhf/score", "score of r_φ, in standard deviations of the SFT policy")
    agent = agent_label(metrics)
    forms = [("dash", "r_φ"), ("dot", "gold, an iteration"), ("", "gold, fitted")]
    key = legend(histories, agent, forms if best is None else [("best_of", "best of n SFT responses by r_φ"), *forms])
    return f"""
<h2>What the reward model likes, and what is good</h2>
<p>{_goodhart_story(facts, start).replace("r_φ", PROXY)}</p>
{legend(histories, agent)}
<div class="charts wide">{figure(gold, f"No agent sees gold: it is read off the responses {agent} was learning from.")}
{figure(proxy, f"What {agent} maximises, before the KL penalty.")}</div>
<div class="charts wide beside">{figure(chart, "")}
<div class="aside">{key}<p class="caption">{_fit_story(chart, fits, best)}</p></div></div>"""


def _goodhart_story(facts: dict[str, dict[str, float]], start: str) -> str:
    sentences = []
    if "unleashed" in facts:
        f = facts["unleashed"]
        fell = f["peak"] - f["last"] > 0.1 * max(f["peak"] - f["first"], 1e-9)
        ending = f"and falls to {signed(f['last'])} by the end" if fell else f"and ends at {signed(f['last'])}"
        while_ = "r_φ goes on rising" if f["proxy_last"] > f["proxy_at_peak"] else "r_φ no longer rises"
        sentences.append(
            f'<span class="ink-unleashed">Without the KL penalty</span>, gold goes from {start} to its '
            f"highest, {signed(f['peak'])}, after {f['peak_tokens'] / 1000:.0f}k tokens {ending}, while {while_}, "
            f"from {signed(f['proxy_at_peak'])} to {signed(f['proxy_last'])}."
        )
    f = facts["ppo"]
    sentences.append(
        f'<span class="ink-ppo">With the penalty</span>, gold goes from {start} to {signed(f["last"])} '
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
    hidden = [KINDS[kind].lower() for kind in fits if kind not in shown]
    if hidden:
        text += f" Bands wider than the picture are left out: {', '.join(hidden)}."
    stories = [f'<br><span class="ink-{kind}">{KINDS[kind]}</span>: {_one_fit(found)}' for kind, found in fits.items()]
    return typeset(text) + "".join(stories)


def _certainty(fits: dict[str, GoodhartFit]) -> list[str]:
    """What the intervals are over."""
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
    fit, reach = found.fit, found.reach
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


def _gold_levels(metrics: dict[str, Any]) -> list[Level]:
    n = metrics["best_of"]
    found = [row for row in metrics["summary"] if row["kind"] in ("sft", "best_of")]
    labels = {"sft": "SFT", "best_of": f"SFT, best of {n}"}
    return [Level(row["gold"][0], row["kind"], labels[row["kind"]]) for row in found]
