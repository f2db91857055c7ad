"""`report.html`: one file, no request to anywhere, light and dark. Whatever a model wrote is escaped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from rlhf_gym.pipeline.charts import Chart, Level
from rlhf_gym.pipeline.collect import collect_line
from rlhf_gym.pipeline.config import RunConfig
from rlhf_gym.pipeline.evaluate import evaluate_line
from rlhf_gym.pipeline.figures import Histories, goodhart_chart, goodhart_facts, training_chart
from rlhf_gym.pipeline.folder import CONFIG_FILE, RunFolder, StageName, read_json
from rlhf_gym.pipeline.ppo import ppo_line
from rlhf_gym.pipeline.report_reward import reward_section
from rlhf_gym.pipeline.report_samples import PROXY, samples_section, signed, typeset
from rlhf_gym.pipeline.reward import reward_line
from rlhf_gym.pipeline.supervised import pretrain_line, sft_line
from rlhf_gym.pipeline.terminal import agent_label, duration, is_bound, row_label

HERE = Path(__file__).parent
LINES = {
    "pretrain": pretrain_line, "sft": sft_line, "collect": collect_line, "reward": reward_line, "ppo": ppo_line,
    "unleashed": ppo_line, "evaluate": evaluate_line,
}  # fmt: skip
DASH = "–"


def write_report(folder: RunFolder) -> Path:
    """Write the report of a run that has been evaluated.

    Raises:
        ValueError: it has not been.
    """
    config, metrics = folder.config(), folder.metrics("evaluate")
    if config is None or metrics is None:
        raise ValueError(f"expected an evaluated run in {folder.root}, got one without: run `rlhf-gym evaluate` first")
    seeds = [config.seed + i for i in range(config.seeds)]
    histories = Histories.read(folder, seeds, metrics["rounds"])
    sections = [
        _head(folder, config, metrics),
        _table_section(metrics),
        _goodhart_section(histories, metrics),
        reward_section(folder, metrics["rounds"]),
        _training_section(histories, metrics),
        samples_section(folder, metrics),
        _making_section(folder, config),
    ]
    page = Template((HERE / "report.html").read_text()).substitute(
        title=f"rlhf_gym: {escape(folder.root.name)}",
        css=(HERE / "report.css").read_text(),
        js=(HERE / "report.js").read_text(),
        body="\n".join(sections),
    )
    partial = folder.report.with_name(folder.report.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, folder.report)
    return folder.report


# -- the head and the table --------------------------------------------------------------------------------------------


def _head(folder: RunFolder, config: RunConfig, metrics: dict[str, Any]) -> str:
    ppo = [row for row in metrics["summary"] if row["kind"] == "ppo"][-1]
    agent, at_most = escape(agent_label(metrics)), "at most " if is_bound(ppo) else ""
    agent = agent[0].upper() + agent[1:]
    gold = metrics["judge"] == "gold"
    wins, judge = ppo["wins_sft"], "the gold reward" if gold else f"the reward model {PROXY}"
    verdict = "beat" if wins[1] > 0.5 else "lose to" if wins[2] < 0.5 else "tie with"
    seeds = f" The median of {ppo['seeds']} seeds." if ppo["seeds"] > 1 else ""
    warning = "" if gold else (
        " There is no gold reward in this run: the judge is what was optimised against, and flatters."
    )  # fmt: skip
    # fmt: off
    return f"""
<p class="eyebrow">rlhf_gym · {escape(str(folder.root))}</p>
<h1>{agent}’s responses {verdict} the SFT policy’s on <span class="ink-ppo">{wins[0]:.0%}</span> of held-out
prompts, {at_most}{ppo["kl"][0]:.1f} nats away from it</h1>
<p class="lead">Judged by {judge} on {metrics["prompts"]} prompts that nothing was trained on; a tie counts half.
The 95 % interval is {wins[1]:.0%} to {wins[2]:.0%}.{seeds}{warning}</p>"""
    # fmt: on


def _table_section(metrics: dict[str, Any]) -> str:
    gold, n, many = metrics["judge"] == "gold", metrics["best_of"], metrics["rounds"] > 1
    headings = [
        ("", ""), ("wins against SFT", "95 % interval"), ("wins against", f"best of {n}"),
        *([("gold", "mean ± s.e."), ("its rise", "σ of SFT")] if gold else []),
        ("score r_φ", "SFT: 0 ± 1"), ("KL", "nats a response"),
        ("entropy", "nats a token"), ("length", "tokens"), ("distinct-2", ""),
    ]  # fmt: skip
    head = "".join(f"<th>{typeset(a)}<small>{typeset(b)}</small></th>" for a, b in headings)
    rows = []
    for row in metrics["summary"]:
        label = row_label(metrics, row)
        rows.append(f'<tr><td><i class="swatch fill-{row["kind"]}"></i>{escape(label)}</td>{_cells(row, gold)}</tr>')
    rounds = f" {PROXY} is the last round’s." if many else ""
    return f"""
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
<p class="caption">Wins are shares of the held-out prompts. KL is from the SFT policy, estimated from each policy’s own
responses; best of {n} takes, of {n} SFT responses, the one {PROXY} likes best, and its KL is at most log n − (n − 1)/n.
Distinct-2 is the share of neighbouring pairs of words that occur for the first time.{rounds}</p>"""


def _cells(row: dict[str, Any], gold: bool) -> str:
    best = row.get("wins_best_of")
    kl = DASH if row["kind"] == "sft" else f"{'≤ ' if is_bound(row) else ''}{row['kl'][0]:.2f}"
    cells = [
        f'<td class="bar">{_bar(row["wins_sft"], row["kind"]) if "wins_sft" in row else DASH}</td>',
        f"<td>{DASH if best is None else f'{best[0]:.1%}'}</td>",
        *(_gold_cells(row) if gold else []),
        f"<td>{signed(row['proxy'][0])}</td>",
        f"<td>{kl}</td>",
        f"<td>{row['entropy']:.2f}</td>",
        f"<td>{row['length']:.1f}</td>",
        f"<td>{row['distinct_2']:.3f}</td>",
    ]
    return "".join(cells)


def _gold_cells(row: dict[str, Any]) -> list[str]:
    rise = DASH if row["kind"] == "sft" else signed(row["gold_rise"])
    return [f"<td>{signed(row['gold'][0])} <small>± {row['gold'][1]:.2f}</small></td>", f"<td>{rise}</td>"]


def _bar(rate: list[float], kind: str) -> str:
    """A share with its interval, against a half."""
    middle, low, high = (4 + 96 * share for share in rate)
    return (
        '<svg viewBox="0 0 104 18" aria-hidden="true"><line class="track" x1="4" x2="100" y1="9" y2="9"/>'
        '<line class="half" x1="52" x2="52" y1="1" y2="17"/>'
        f'<line class="{kind}" stroke-width="3" stroke-linecap="round" x1="{low:.1f}" x2="{high:.1f}" y1="9" y2="9"/>'
        f'<circle class="{kind}" fill="currentColor" cx="{middle:.1f}" cy="9" r="4.5"/></svg><b>{rate[0]:.1%}</b> '
        f"<small>{100 * rate[1]:.0f}–{100 * rate[2]:.0f}</small>"
    )


# -- the pictures ------------------------------------------------------------------------------------------------------


def _goodhart_section(histories: Histories, metrics: dict[str, Any]) -> str:
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
    legend = _legend(histories, agent, [("dash", "r_φ"), ("dot", "gold, an iteration"), ("", "gold, fitted")])
    return f"""
<h2>What the reward model likes, and what is good</h2>
<p>{_goodhart_story(facts, start).replace("r_φ", PROXY)}</p>
{_legend(histories, agent)}
<div class="charts wide">{_figure(gold, f"No agent sees gold: it is read off the responses {agent} was learning from.")}
{_figure(proxy, f"What {agent} maximises, before the KL penalty.")}</div>
<div class="charts wide beside">{_figure(chart, "")}
<div class="aside">{legend}<p class="caption">{typeset(_fit_story(fits))}</p></div></div>"""


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


def _training_section(histories: Histories, metrics: dict[str, Any]) -> str:
    agent = agent_label(metrics)
    charts = [
        (training_chart(histories, "rlhf/kl", "KL to π_ref, nats a response", from_zero=True),
         "What the leash holds: Σ log π − log π_ref over the response."),
        (training_chart(histories, "rlhf/entropy", "entropy, nats a token", from_zero=True),
         "How undecided the policy is; near 0 it always writes the same."),
        (training_chart(histories, "rlhf/response_length", "response length, tokens"),
         "Much of what looks like progress can be mere length."),
        (training_chart(histories, "rlhf/stopped", "share of responses that end"),
         "The rest were cut at the longest length."),
        (training_chart(histories, "train/explained_variance", "explained variance of the critic"),
         "1 when the value head foresees every return, 0 when it knows the mean alone."),
        (training_chart(histories, "train/clip_fraction", "share of clipped ratios", from_zero=True),
         f"Tokens whose probability moved more than {agent}’s ε in one iteration."),
        (training_chart(histories, "train/accuracy", "share of pairs that the policy agrees with"),
         "Pairs whose chosen response has gained more in probability than the rejected one, as they are met."),
        (training_chart(histories, "train/margin", "margin, in units of reward"),
         "β times the chosen response’s log π − log π_ref, less the rejected one’s."),
    ]  # fmt: skip
    if any("rlhf/kl_coef" in record for record in histories.logs["ppo"][0]) and _moves(histories, "rlhf/kl_coef"):
        charts.insert(
            1, (training_chart(histories, "rlhf/kl_coef", "β"), "The price of a nat, as its controller set it.")
        )
    if metrics["judge"] != "gold":
        chart = training_chart(histories, "rlhf/score", "score of r_φ, in standard deviations of the SFT policy")
        charts.insert(0, (chart, f"What {agent} maximises, before the KL penalty."))
    logged = [(chart, caption) for chart, caption in charts if any(np.size(line.x) for line in chart.lines)]
    figures = "".join(_figure(chart, caption) for chart, caption in logged)
    if not figures:
        return ""
    return f"""
<h2>While {escape(agent)} learns</h2>
{_legend(histories, agent)}
<div class="charts">{figures}</div>"""


def _moves(histories: Histories, name: str) -> bool:
    _, values = histories.curve("ppo", name)
    return len(values) > 0 and float(values.max() - values.min()) > 0


def _gold_levels(metrics: dict[str, Any]) -> list[Level]:
    n = metrics["best_of"]
    found = [row for row in metrics["summary"] if row["kind"] in ("sft", "best_of")]
    labels = {"sft": "SFT", "best_of": f"SFT, best of {n}"}
    return [Level(row["gold"][0], row["kind"], labels[row["kind"]]) for row in found]


def _figure(chart: Chart, caption: str, *, legend: str = "") -> str:
    below = f"<figcaption>{typeset(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{typeset(chart.title)}</h3>{legend}{chart.svg()}{below}</figure>"


def _legend(histories: Histories, agent: str, forms: Iterable[tuple[str, str]] = ()) -> str:
    items = [
        f'<div><i class="{kind}"></i><span>{escape(agent)} {name}</span></div>'
        for kind, name in (("ppo", "with KL penalty"), ("unleashed", "without KL penalty"))
        if kind in histories.logs
    ]
    if any(len(logs) > 1 for logs in histories.logs.values()) and not forms:
        items.append('<div><i class="thin"></i><span>single seeds</span></div>')
    items += [f'<div><i class="{form}"></i><span>{typeset(name)}</span></div>' for form, name in forms]
    return f'<div class="legend">{"".join(items)}</div>'


# -- how it was made ---------------------------------------------------------------------------------------------------


def _making_section(folder: RunFolder, config: RunConfig) -> str:
    facts = []
    rounds: list[tuple[StageName, int]] = [("pretrain", 1), ("sft", 1)]
    for round in range(1, config.rounds + 1):
        rounds += [("collect", round), ("reward", round), ("ppo", round), ("unleashed", round)]
    for name, round in [*rounds, ("evaluate", 1)]:
        metrics = folder.metrics(name, round)
        if metrics is None:
            continue
        label = f"{name}, round {round}" if config.rounds > 1 and (name, round) in rounds[2:] else name
        facts.append(
            f"<div><dt>{label} <small>{duration(metrics['seconds'])}</small></dt>"
            f"<dd>{typeset(LINES[name](metrics))}</dd></div>"
        )
    settings = escape(json.dumps(read_json(folder.root / CONFIG_FILE)["config"], indent=2))
    return f"""
<h2>How it was made</h2>
<dl class="facts">{"".join(facts)}</dl>
<details><summary>All settings</summary><pre>{settings}</pre></details>"""
