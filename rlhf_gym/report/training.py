"""The report's sections on training: what was logged, what the monitor measured, and its alarms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from typing import Any, NamedTuple

import numpy as np

from rlhf_gym.monitoring.alarms import RECORDS, KLToken, MonitorRecord, read_records
from rlhf_gym.report.charts import Chart, Level, Line, Mark, length_bar
from rlhf_gym.report.parts import DASH, figure, kind_legend, legend, row, seed_legend, table, typeset
from rlhf_gym.report.run import KINDS, SURPRISE, Histories, ReportRun, column
from rlhf_gym.runs.summaries import agent_label
from rlhf_gym.settings import StageName

TOKENS = "response tokens in training"


class Quantity(NamedTuple):
    """A logged quantity that is drawn."""

    name: str
    """The quantity's name in the log."""
    title: str
    """The chart's title, with the unit."""
    caption: str = ""
    """A sentence on how to read the chart."""
    from_zero: bool = False
    """Whether the y axis must show 0."""
    alarm: str = ""
    """The alarm that compares it with a threshold."""


GOLD = Quantity("rlhf/gold", "gold reward", "No agent sees gold: it is read off the responses it was learning from.")
SCORE = Quantity("rlhf/score", "score of r_φ", "What is maximised, before the KL penalty, in SFT standard deviations.")
LOGGED = (
    Quantity("rlhf/dense_reward", "rewards at tokens, their sum a response", "What is maximised beside the score."),
    Quantity("rlhf/kl", "KL to π_ref, nats a response", "Σ log π − log π_ref over the response.", from_zero=True),
    Quantity("rlhf/kl_coef", "β of the KL penalty", "The price of a nat, as its controller set it."),
    Quantity("rlhf/entropy", "entropy, nats a token", "Near 0 the policy always writes the same.", from_zero=True),
    Quantity("rlhf/response_length", "response length, tokens", "What looks like progress can be mere length."),
    Quantity("rlhf/stopped", "share of responses that end", "The rest were cut at the longest length."),
    Quantity("train/explained_variance", "explained variance of the critic", "1 when it foresees every return."),
    Quantity("train/clip_fraction", "share of clipped ratios", "Tokens that moved more than ε.", from_zero=True),
    Quantity("train/accuracy", "share of pairs that the policy agrees with", "Before they are learned from."),
    Quantity("train/margin", "margin of chosen over rejected", "The difference of β(log π − log π_ref)."),
)
"""The curves of training, each drawn where it was logged and moves."""
MONITORED = (
    Quantity(SURPRISE, "surprise of π_ref, nats a token", "The log of its perplexity of the responses.", alarm="drift"),
    Quantity(
        "monitor/held_out_perplexity",
        "perplexity on held-out texts",
        "What the policy still knows of texts that it is not rewarded for.",
        alarm="held_out",
    ),
    Quantity(
        "monitor/kl_per_token",
        "KL to π_ref, nats a token",
        "The alarm compares it with π_ref’s entropy a token.",
        alarm="kl_high",
    ),
    Quantity(
        "monitor/disagreement",
        "disagreement of the ensemble",
        "Standard deviation over the members, in the scores’ unit.",
        alarm="disagreement",
    ),
    Quantity(
        "monitor/repetition",
        "repetition",
        "Share of a response’s pairs of tokens that were there before.",
        alarm="repetition",
    ),
    Quantity("monitor/score_length_correlation", "correlation of score and length", "By ranks, within a rollout."),
)
"""The curves of the monitor, each drawn where it was measured and moves."""


def training_section(run: ReportRun) -> str:
    """What was logged of training, a picture a quantity; empty where nothing was."""
    agent = agent_label(run.evaluation)
    quantities = LOGGED if run.evaluation["judge"] == "gold" else (SCORE, *LOGGED)
    figures = moving_figures((training_chart(run.histories, quantity), quantity.caption) for quantity in quantities)
    if not figures:
        return ""
    return f"""
<h2>While {escape(agent)} learns</h2>
{legend([*kind_legend(run.histories, agent), *seed_legend([run.histories])])}
<div class="charts">{figures}</div>"""


def moving_figures(charts: Iterable[tuple[Chart, str]]) -> str:
    """The charts whose curves move, over their captions."""
    return "".join(figure(chart, caption) for chart, caption in charts if chart.moves)


def training_chart(histories: Histories, quantity: Quantity, *, levels: Sequence[Level] = ()) -> Chart:
    """A quantity over training: each seed thin, their mean on top, with the KL penalty and without."""
    lines: list[Line] = []
    for kind, logs in histories.logs.items():
        if len(logs) > 1:
            lines += [Line(*column(log, quantity.name), kind=kind, style="thin") for log in logs]
    for kind in histories.logs:
        lines.append(Line(*histories.curve(kind, quantity.name), kind=kind, name=KINDS[kind]))
    return Chart(quantity.title, TOKENS, lines, levels, breaks=histories.breaks, from_zero=quantity.from_zero)


# -- the monitor -------------------------------------------------------------------------------------------------------


def monitor_section(run: ReportRun) -> str:
    """What the monitor measured in a run; empty without a monitor."""
    histories = run.histories
    watched = [kind for kind, logs in histories.logs.items() if any("monitor/" in name for r in logs[0] for name in r)]
    if not watched:
        return ""
    agent = agent_label(run.evaluation)
    alarms = run.alarms()
    shorts = [name.removeprefix("monitor/") for name in sorted(histories.names)]
    own = [s for s in shorts if s.startswith(("pattern/", "evaluation/"))]
    quantities = [*MONITORED, *(Quantity(f"monitor/{s}", s.replace("/", ": "), alarm=s) for s in own)]
    figures = moving_figures((_marked_chart(histories, q, alarms), q.caption) for q in quantities)
    return f"""
<h2>What the monitor measured</h2>
<p>{_alarm_story(run, watched, alarms)}</p>{_alarm_table(run, watched, alarms)}
{legend([*kind_legend(histories, agent), *seed_legend([histories])])}
<div class="charts">{figures}</div>
{_token_tables(run, watched)}"""


def _alarm_story(run: ReportRun, kinds: Sequence[StageName], alarms: Sequence[dict[str, Any]]) -> str:
    sentences = []
    for kind in kinds:
        own = [alarm for alarm in alarms if alarm["kind"] == kind]
        who = f'<span class="ink-{kind}">{"With" if kind == "train" else "Without"} the KL penalty</span>'
        if not own:
            sentences.append(f"{who} no alarm fired.")
            continue
        first = min(own, key=lambda alarm: alarm["tokens"])
        many = f" in {_seeds_said(run, own)}" if len(run.seeds) > 1 else ""
        sentences.append(
            f"{who} alarms fired{many}, the first ({escape(first['name'])}) after {first['tokens']:,} tokens."
        )
    return " ".join(sentences)


def _alarm_table(run: ReportRun, kinds: Sequence[StageName], alarms: Sequence[dict[str, Any]]) -> str:
    """An alarm a row: when it first fired in each kind of training, what was measured, why it matters, what to try."""
    if not alarms:
        return ""
    rows = []
    for name in dict.fromkeys(alarm["name"] for alarm in sorted(alarms, key=lambda alarm: alarm["tokens"])):
        of_name = [alarm for alarm in alarms if alarm["name"] == name]
        first = min(of_name, key=lambda alarm: (alarm["kind"] != "train", alarm["tokens"]))
        said = f"{typeset(first['seen'])}. {typeset(first['why'])} <em>{typeset(first['cure'])}</em>"
        rows.append(
            row([escape(name), *(_when(run, [a for a in of_name if a["kind"] == kind]) for kind in kinds), said])
        )
    head = ["alarm", *(f"{KINDS[kind]}<small>tokens</small>" for kind in kinds)]
    head.append("what was measured, first; why it matters; <em>what to try</em>")
    return f'<div class="scroll">{table("monitor", head, rows)}</div>'


def _when(run: ReportRun, alarms: Sequence[dict[str, Any]]) -> str:
    """The tokens after which an alarm first fired, over seeds."""
    firsts = [min(a["tokens"] for a in alarms if a["seed"] == seed) for seed in {a["seed"] for a in alarms}]
    if not firsts:
        return DASH
    ends = dict.fromkeys(f"{tokens / 1000:.1f}k" for tokens in (min(firsts), max(firsts)))
    many = f"<small>{_seeds_said(run, alarms)}</small>" if len(run.seeds) > 1 else ""
    return f"{'–'.join(ends)} {many}"


def _seeds_said(run: ReportRun, alarms: Sequence[dict[str, Any]]) -> str:
    return f"{len({alarm['seed'] for alarm in alarms})} of {len(run.seeds)} seeds"


def _marked_chart(histories: Histories, quantity: Quantity, alarms: Sequence[dict[str, Any]]) -> Chart:
    """A quantity over training, marked where its alarm first fired."""
    marks = []
    for kind in histories.logs:
        tokens, curve = histories.curve(kind, quantity.name)
        fired = [a["tokens"] for a in alarms if (a["kind"], a["name"], a["round"]) == (kind, quantity.alarm, 1)]
        if fired and len(tokens) and tokens[0] <= min(fired) <= tokens[-1]:
            marks.append(Mark(min(fired), float(np.interp(min(fired), tokens, curve)), kind, "alarm"))
    return replace(training_chart(histories, quantity), marks=marks)


def _token_tables(run: ReportRun, kinds: Sequence[StageName]) -> str:
    """The tokens that carried the KL at the end, in the first seed of each kind of training."""
    found = [(kind, _last_record(run, kind)) for kind in kinds]
    tables = [_token_table(kind, record) for kind, record in found if record is not None and record.kl_tokens]
    if not tables:
        return ""
    return f"""
<h3 class="later">which tokens carry the KL</h3>
<div class="charts">{"".join(tables)}</div>
<p class="caption">Σ log π − log π<sub>ref</sub> over all that was written in the last rollout of the first seed, by
token: its part of the whole, nats a response, and how often it was written. Parts may add up to more than 100 %, where
other tokens are written with less than π<sub>ref</sub>’s probability.</p>"""


def _last_record(run: ReportRun, kind: StageName) -> MonitorRecord | None:
    """The last record of the last round's first seed."""
    stage, round = ("without_kl", 1) if kind == "without_kl" else ("train", run.evaluation["rounds"])
    records = read_records(run.folder.seed(stage, round, run.seeds[0]) / RECORDS)  # type: ignore[arg-type]
    return records[-1] if records else None


def _token_table(kind: StageName, record: MonitorRecord) -> str:
    widest = max(abs(token.share) for token in record.kl_tokens)
    rows = (_token_row(token, kind, widest) for token in record.kl_tokens if token.nats > 0)
    return (
        f"<div><h3>{KINDS[kind]}, {record.figures['kl']:.1f} nats a response</h3>"
        f"{table('parts tokens', ['token', 'part of the KL', 'nats', 'times'], rows)}</div>"
    )


def _token_row(token: KLToken, kind: str, widest: float) -> str:
    share = max(0.0, token.share) / widest if math.isfinite(token.share) and widest > 0 else 0.0
    bar = f'<span class="bar">{length_bar(share, kind)}<span>{token.share:.0%}</span></span>'
    return row([f"<code>{escape(token.text)}</code>", bar, f"{token.nats:.2f}", str(token.count)])
