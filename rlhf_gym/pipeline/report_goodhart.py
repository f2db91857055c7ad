"""The report's section on over-optimisation: what the reward model likes, and what is good."""

from __future__ import annotations

from typing import Any

from rlhf_gym.pipeline.charts import Level
from rlhf_gym.pipeline.figures import goodhart_chart, goodhart_facts, training_chart
from rlhf_gym.pipeline.report_parts import PROXY, figure, legend, signed, typeset
from rlhf_gym.pipeline.report_run import ReportRun
from rlhf_gym.pipeline.terminal import agent_label


def goodhart_section(run: ReportRun) -> str:
    """Gold and proxy over training and over √KL; empty where there is no gold."""
    histories, metrics = run.histories, run.evaluation
    sft = metrics["summary"][0]
    if metrics["judge"] != "gold" or sft["gold_std"] == 0 or not len(histories.curve("ppo", "rlhf/gold")[0]):
        return ""
    chart, fits = goodhart_chart(histories, sft)
    facts = goodhart_facts(histories)
    start = f"the SFT policy’s {signed(sft['gold'][0])}"
    levels = _gold_levels(metrics)
    gold = training_chart(histories, "rlhf/gold", "gold reward", levels=levels)
    proxy = training_chart(histories, "rlhf/score", "score of r_φ, in standard deviations of the SFT policy")
    agent = agent_label(metrics)
    key = legend(histories, agent, [("dash", "r_φ"), ("dot", "gold, an iteration"), ("", "gold, fitted")])
    return f"""
<h2>What the reward model likes, and what is good</h2>
<p>{_goodhart_story(facts, start).replace("r_φ", PROXY)}</p>
{legend(histories, agent)}
<div class="charts wide">{figure(gold, f"No agent sees gold: it is read off the responses {agent} was learning from.")}
{figure(proxy, f"What {agent} maximises, before the KL penalty.")}</div>
<div class="charts wide beside">{figure(chart, "")}
<div class="aside">{key}<p class="caption">{typeset(_fit_story(fits))}</p></div></div>"""


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


def _fit_story(fits: dict[str, Any]) -> str:
    stories = []
    for kind, name in (("ppo", "with the penalty"), ("unleashed", "without")):
        if kind in fits:
            stories.append(f"{name}, α = {fits[kind]['alpha']:.2f} and β = {fits[kind]['beta']:.2f}".replace("-", "−"))
    curve = (
        f" The curve through gold is d(α − β log d), as in Gao et al. (2022): {'; '.join(stories)}." if stories else ""
    )
    return (
        "Each dot is the mean gold of an iteration; the dashed line, smoothed, is what r_φ made of the same responses."
        + curve
    )


def _gold_levels(metrics: dict[str, Any]) -> list[Level]:
    n = metrics["best_of"]
    found = [row for row in metrics["summary"] if row["kind"] in ("sft", "best_of")]
    labels = {"sft": "SFT", "best_of": f"SFT, best of {n}"}
    return [Level(row["gold"][0], row["kind"], labels[row["kind"]]) for row in found]
