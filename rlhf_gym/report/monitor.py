"""The report's section on what the monitor saw: alarms in words, the quantities they look at, the tokens of the KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np

from rlhf_gym.monitoring.alarms import RECORDS, KLToken, MonitorRecord, read_records
from rlhf_gym.report.alarms import read_alarms
from rlhf_gym.report.charts import Chart, Mark
from rlhf_gym.report.figures import NAMES, Histories, training_chart
from rlhf_gym.report.parts import DASH, figure, legend, typeset
from rlhf_gym.report.run import ReportRun
from rlhf_gym.runs.summaries import agent_label

SURPRISE = "monitor/ref_surprise"
"""log of `monitor/ref_perplexity`: what is drawn, since perplexities of a hacked reward leave the page."""
CHARTS = {
    SURPRISE: (
        "surprise of π_ref, nats a token",
        "How odd π_ref finds the responses: the log of its perplexity.",
        "drift",
    ),
    "monitor/held_out_perplexity": (
        "perplexity on held-out texts",
        "A capability anchor: what the policy still knows of texts that it is not rewarded for.",
        "held_out",
    ),
    "monitor/kl_per_token": (
        "KL to π_ref, nats a token",
        "The alarm compares it with the nats that π_ref leaves open at a token.",
        "kl_high",
    ),
    "monitor/disagreement": (
        "disagreement of the ensemble",
        "Standard deviation over the members, in the scores’ unit.",
        "disagreement",
    ),
    "monitor/repetition": ("repetition", "Share of a response’s pairs of tokens that were there before.", "repetition"),
    "monitor/score_length_correlation": (
        "correlation of score and length",
        "By ranks, within a rollout: is length itself paid for?",
        "",
    ),
    "monitor/distinct_2": ("distinct-2 of a rollout", "Distinct pairs of tokens over all pairs of all responses.", ""),
    "monitor/missing_eos": ("share of responses cut off", "They ran into the longest length.", "missing_eos"),
}
"""What is drawn where it was measured and moves: its title, its caption, and the alarm that looks at it."""


def monitor_section(run: ReportRun) -> str:
    """What the monitor saw in a run; empty where nothing was watched."""
    histories = with_surprise(run.histories)
    kinds = [kind for kind in histories.logs if any(SURPRISE in r or _held_out(r) for r in histories.logs[kind][0])]
    if not kinds:
        return ""
    agent, alarms = agent_label(run.evaluation), read_alarms(run)
    charts = [_chart(histories, name, alarms) for name in _names(histories)]
    drawn = "".join(figure(chart, caption) for chart, caption in charts if chart is not None)
    return f"""
<h2>What the monitor saw</h2>
<p>{_story(run, kinds, alarms)}</p>{_alarm_table(run, kinds, alarms)}
{legend(histories, agent)}
<div class="charts">{drawn}</div>
{_token_tables(run, kinds)}"""


def with_surprise(histories: Histories) -> Histories:
    """The same logs, and the log of π_ref's perplexity beside it."""

    def added(record: dict[str, Any]) -> dict[str, Any]:
        value = record.get("monitor/ref_perplexity")
        return record if value is None else record | {SURPRISE: math.log(value)}

    logs = {kind: [[added(record) for record in log] for log in logs] for kind, logs in histories.logs.items()}
    return replace(histories, logs=logs)


def _held_out(record: dict[str, Any]) -> bool:
    return "monitor/held_out_perplexity" in record


# -- alarms ------------------------------------------------------------------------------------------------------------


def _story(run: ReportRun, kinds: Sequence[str], alarms: Sequence[dict[str, Any]]) -> str:
    sentences = []
    for kind in kinds:
        seeds = {alarm["seed"] for alarm in alarms if alarm["kind"] == kind}
        who = f'<span class="ink-{kind}">{"With" if kind == "ppo" else "Without"} the KL penalty</span>'
        if not seeds:
            sentences.append(f"{who} no alarm sounded.")
            continue
        first = min((alarm for alarm in alarms if alarm["kind"] == kind), key=lambda alarm: alarm["tokens"])
        many = f" in {len(seeds)} of {len(run.seeds)} seeds" if len(run.seeds) > 1 else ""
        sentences.append(
            f"{who} alarms sounded{many}, the first ({escape(first['name'])}) after {first['tokens']:,} tokens."
        )
    return " ".join(sentences)


def _alarm_table(run: ReportRun, kinds: Sequence[str], alarms: Sequence[dict[str, Any]]) -> str:
    """An alarm a row: when it sounded in each kind of run, what was seen first, why it matters, what to try."""
    if not alarms:
        return ""
    names = dict.fromkeys(alarm["name"] for alarm in sorted(alarms, key=lambda alarm: alarm["tokens"]))
    rows = []
    for name in names:
        of_name = [alarm for alarm in alarms if alarm["name"] == name]
        first = min(of_name, key=lambda alarm: (alarm["kind"] != "ppo", alarm["tokens"]))
        cells = "".join(f"<td>{_when(run, [a for a in of_name if a['kind'] == kind])}</td>" for kind in kinds)
        said = f"{typeset(first['seen'])}. {typeset(first['why'])} <em>{typeset(first['cure'])}</em>"
        rows.append(f'<tr><td>{escape(name)}</td>{cells}<td class="said">{said}</td></tr>')
    head = "".join(f"<th>{escape(NAMES[kind])}<small>tokens</small></th>" for kind in kinds)
    return (
        f'<div class="scroll"><table class="monitor"><thead><tr><th>alarm</th>{head}<th>what was seen, first; why it '
        f"matters; <em>what to try</em></th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _when(run: ReportRun, alarms: Sequence[dict[str, Any]]) -> str:
    """The tokens at which an alarm first sounded, over seeds."""
    firsts: dict[int, int] = {}
    for alarm in alarms:
        firsts[alarm["seed"]] = min(alarm["tokens"], firsts.get(alarm["seed"], alarm["tokens"]))
    if not firsts:
        return DASH
    low, high = min(firsts.values()), max(firsts.values())
    text = f"{low / 1000:.1f}k" if low == high else f"{low / 1000:.1f}k–{high / 1000:.1f}k"
    many = f"<small>{len(firsts)} of {len(run.seeds)} seeds</small>" if len(run.seeds) > 1 else ""
    return f"{text} {many}"


# -- pictures ----------------------------------------------------------------------------------------------------------


def _names(histories: Histories) -> list[str]:
    """What is drawn: the quantities of the list that move, then patterns and the user's own evaluations."""
    logged = {name for logs in histories.logs.values() for log in logs for record in log for name in record}
    own = sorted(name for name in logged if name.startswith(("monitor/pattern/", "monitor/evaluation/")))
    return [*(name for name in CHARTS if name in logged), *own]


def _chart(histories: Histories, name: str, alarms: Sequence[dict[str, Any]]) -> tuple[Chart | None, str]:
    """A quantity over training, marked where its alarm first sounded; none where it never moves."""
    short = name.removeprefix("monitor/")
    title, caption, alarm = CHARTS.get(name, (short.replace("/", ": "), "", short))
    chart = training_chart(histories, name, title)
    values = np.concatenate([np.asarray(line.y, dtype=float) for line in chart.lines])
    if not len(values) or float(np.ptp(values)) == 0:
        return None, ""
    marks = []
    for kind in histories.logs:
        tokens, curve = histories.curve(kind, name)
        sounded = [a["tokens"] for a in alarms if (a["kind"], a["name"], a["round"]) == (kind, alarm, 1)]
        if sounded and len(tokens) and tokens[0] <= min(sounded) <= tokens[-1]:
            marks.append(Mark(min(sounded), float(np.interp(min(sounded), tokens, curve)), kind, "alarm"))
    return replace(chart, marks=marks), caption


# -- the tokens of the KL ----------------------------------------------------------------------------------------------


def _token_tables(run: ReportRun, kinds: Sequence[str]) -> str:
    """Which tokens carried the KL at the end, in the first seed of each kind."""
    tables = []
    for kind in kinds:
        record = last_record(run, kind)
        if record is not None and record.kl_tokens:
            tables.append(_token_table(kind, record))
    if not tables:
        return ""
    return f"""
<h3 class="later">which tokens carry the KL</h3>
<div class="charts">{"".join(tables)}</div>
<p class="caption">Σ log π − log π<sub>ref</sub> over all that was written in the last rollout of the first seed, by
token: its part of the whole, nats a response, and how often it was written. Parts may add up to more than 100 %, where
other tokens are written with less than π<sub>ref</sub>’s probability.</p>"""


def last_record(run: ReportRun, kind: str) -> MonitorRecord | None:
    """The end of the last round's first seed."""
    stage, round = ("unleashed", 1) if kind == "unleashed" else ("ppo", run.evaluation["rounds"])
    records = read_records(run.folder.seed(stage, round, run.seeds[0]) / RECORDS)  # type: ignore[arg-type]
    return records[-1] if records else None


def _token_table(kind: str, record: MonitorRecord) -> str:
    whole = record.figures["kl"]
    widest = max(abs(token.share) for token in record.kl_tokens)
    rows = "".join(_token_row(token, kind, widest) for token in record.kl_tokens if token.nats > 0)
    return (
        f'<div><h3>{escape(NAMES[kind])}, {whole:.1f} nats a response</h3><table class="parts tokens"><thead><tr>'
        "<th>token</th><th>part of the KL</th><th>nats</th><th>times</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _token_row(token: KLToken, kind: str, widest: float) -> str:
    width = 96 * max(0.0, token.share) / widest if math.isfinite(token.share) and widest > 0 else 0.0
    bar = (
        '<svg viewBox="0 0 100 10" aria-hidden="true">'
        f'<line class="{kind}" stroke-width="8" x1="0" x2="{width:.1f}" y1="5" y2="5"/></svg>'
    )
    return (
        f"<tr><td><code>{escape(token.text)}</code></td><td class='bar'>{bar}<span>{token.share:.0%}</span></td>"
        f"<td>{token.nats:.2f}</td><td>{token.count}</td></tr>"
    )
