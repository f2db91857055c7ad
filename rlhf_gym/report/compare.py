"""Several runs side by side: their summaries, the settings in which they differ, and their curves over one another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.report.charts import Chart, Line, smooth
from rlhf_gym.report.figures import TOKENS, column
from rlhf_gym.report.parts import DASH, PROXY, figure, share_bar, signed, typeset
from rlhf_gym.report.run import ReportRun
from rlhf_gym.report.samples import prompts_said, read_pairs
from rlhf_gym.report.tokens import Side, card, shared_scales, switch
from rlhf_gym.runs.folder import FREE, flatten, to_json
from rlhf_gym.runs.summaries import agent_label, is_bound

AT_MOST = 8
"""Runs on one page: as many as there are colours to tell apart."""


def check_runs(runs: Sequence[ReportRun]) -> None:
    """The runs can stand on one page.

    Raises:
        ValueError: they are too many, or of different tasks, or nothing has been trained or evaluated in any.
    """
    if not 2 <= len(runs) <= AT_MOST:
        raise ValueError(f"expected at most {AT_MOST} runs on one page, got {len(runs)}")
    tasks: dict[str, str] = {}
    for run in runs:
        tasks.setdefault(_task_said(run), run.name)
    if len(tasks) > 1:
        said = "; ".join(f"{name} is about {task}" for task, name in tasks.items())
        raise ValueError(f"expected runs of one task to compare, got several: {said}")
    if not any(run.metrics is not None or run.logged for run in runs):
        raise ValueError("expected a run that has been trained or evaluated, got none among " + ", ".join(
            str(run.folder.root) for run in runs))  # fmt: skip


def _task_said(run: ReportRun) -> str:
    task = run.config.task
    if task.corpus is not None:
        return f"the texts of {task.corpus}"
    return "the embedded reviews" if task.model is None else f"the prompts of {task.prompts}"


def kind_of(place: int) -> str:
    """The class that colours a run."""
    return f"run-{place + 1}"


def anchor(place: int) -> str:
    """Where a run's own part of the page is."""
    return f"about-{place + 1}"


# -- the head and the tables -------------------------------------------------------------------------------------------


def compare_head(runs: Sequence[ReportRun]) -> str:
    """Who wins, in a sentence, and the way to each run."""
    judged = [(row, run, i) for i, run in enumerate(runs) if (row := final_row(run)) is not None]
    title = f"{len(runs)} runs side by side"
    lead = "None of them has been evaluated yet: these are their curves so far."
    if judged:
        row, run, place = max(judged, key=lambda found: found[0]["wins_sft"][0])
        gold = all(run.evaluation["judge"] == "gold" for _, run, _ in judged)
        title += (
            f': <span class="ink-{kind_of(place)}">{escape(run.name)}</span> wins most against the SFT policy, '
            f"{row['wins_sft'][0]:.0%}"
        )
        judge = "the gold reward" if gold else f"each run’s judge, gold or, where there is none, its own {PROXY}"
        lead = (
            f"Judged by {judge} on held-out prompts; a tie counts half. The 95 % interval is {row['wins_sft'][1]:.0%} "
            f"to {row['wins_sft'][2]:.0%}, {_apart(judged, run)}."
        )
    links = "".join(
        f'<a href="#{anchor(i)}"><i class="swatch fill-{kind_of(i)}"></i>{escape(run.name)}</a>'
        for i, run in enumerate(runs)
    )
    return f"""
<p class="eyebrow">rlhf_gym · {len(runs)} runs</p>
<h1>{title}</h1>
<p class="lead">{lead}</p>
<nav class="runs" aria-label="runs">{links}</nav>"""


def _apart(judged: Sequence[tuple[dict[str, Any], ReportRun, int]], best: ReportRun) -> str:
    """Which others the best run's interval overlaps with."""
    low = next(row["wins_sft"][1] for row, run, _ in judged if run is best)
    near = [escape(run.name) for row, run, _ in judged if run is not best and row["wins_sft"][2] >= low]
    if not near:
        return "apart from those of all others" if len(judged) > 1 else "and no other has been evaluated"
    named = " and ".join([", ".join(near[:-1]), near[-1]] if near[1:] else near)
    return f"which overlaps with {'that' if len(near) == 1 else 'those'} of {named}"


def final_row(run: ReportRun) -> dict[str, Any] | None:
    """The last round's summary of the run's own agent; None where it was not evaluated."""
    rows = [row for row in run.metrics["summary"] if row["kind"] == "ppo"] if run.metrics is not None else []
    return rows[-1] if rows else None


def compare_table(runs: Sequence[ReportRun]) -> str:
    """Every run's policy, a row; where one ran without KL penalty too, that below it; the SFT policy on top."""
    gold = any(run.metrics is not None and run.metrics["judge"] == "gold" for run in runs)
    headings = [
        ("", ""), ("wins against SFT", "95 % interval"), ("wins against", "best of n"),
        *([("gold", "mean ± s.e."), ("its rise", "σ of SFT")] if gold else []),
        ("score r_φ", "SFT: 0 ± 1"), ("KL", "nats a response"),
        ("entropy", "nats a token"), ("length", "tokens"), ("distinct-2", ""),
    ]  # fmt: skip
    head = "".join(f"<th>{typeset(a)}<small>{typeset(b)}</small></th>" for a, b in headings)
    body = "".join(_sft_rows(runs, gold)) + "".join(_run_rows(run, i, gold) for i, run in enumerate(runs))
    return f"""
<div class="scroll"><table class="runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p class="caption">The last round’s policy of each run, the median of its seeds. Wins are shares of the held-out
prompts. KL is from the run’s own SFT policy. Each run’s score is by the {PROXY} it was trained on: compare gold and
wins rather than scores.</p>"""


def _sft_rows(runs: Sequence[ReportRun], gold: bool) -> list[str]:
    """The SFT policies that the runs began from: one, where the figures are the same."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.metrics is not None:
            found.setdefault(_cells(run.metrics["summary"][0], "sft", gold), []).append(run.name)
    several = len(found) > 1
    return [
        f'<tr class="quiet"><td><i class="swatch fill-sft"></i>SFT{_of(names) if several else ""}</td>{cells}</tr>'
        for cells, names in found.items()
    ]


def _of(names: Sequence[str]) -> str:
    return f" <small>of {escape(', '.join(names))}</small>"


def _run_rows(run: ReportRun, place: int, gold: bool) -> str:
    kind = kind_of(place)
    dot = f'<i class="swatch fill-{kind}"></i><a href="#{anchor(place)}">{escape(run.name)}</a>'
    row = final_row(run)
    if run.metrics is None or row is None:
        width = 9 if gold else 7
        return f'<tr><td>{dot}</td><td colspan="{width}" class="none">not evaluated yet</td></tr>'
    seeds = f", {row['seeds']} seeds" if row["seeds"] > 1 else ""
    rows = f"<tr><td>{dot} <small>{escape(agent_label(run.metrics))}{seeds}</small></td>{_cells(row, kind, gold)}</tr>"
    for free in (row for row in run.metrics["summary"] if row["kind"] == "unleashed"):
        rows += f'<tr class="sub"><td>without KL penalty</td>{_cells(free, kind, gold)}</tr>'
    return rows


def _cells(row: dict[str, Any], kind: str, gold: bool) -> str:
    best, base = row.get("wins_best_of"), row["kind"] == "sft"
    cells = [
        f'<td class="bar">{share_bar(row["wins_sft"], kind) if "wins_sft" in row else DASH}</td>',
        f"<td>{DASH if best is None else f'{best[0]:.1%}'}</td>",
    ]
    if gold and "gold" in row:
        cells.append(f"<td>{signed(row['gold'][0])} <small>± {row['gold'][1]:.2f}</small></td>")
        cells.append(f"<td>{DASH if base else signed(row['gold_rise'])}</td>")
    elif gold:
        cells += [f"<td>{DASH}</td>"] * 2
    kl = DASH if base else f"{'≤ ' if is_bound(row) else ''}{row['kl'][0]:.2f}"
    cells += [f"<td>{signed(row['proxy'][0])}</td>", f"<td>{kl}</td>", f"<td>{row['entropy']:.2f}</td>"]
    cells += [f"<td>{row['length']:.1f}</td>", f"<td>{row['distinct_2']:.3f}</td>"]
    return "".join(cells)


def settings_section(runs: Sequence[ReportRun]) -> str:
    """The settings in which the runs differ."""
    flat = [flatten(to_json(run.config)) for run in runs]
    names = sorted({name for settings in flat for name in settings})
    differing = [
        name
        for name in names
        if name.split(".")[0] not in FREE and name not in FREE and len({str(s.get(name)) for s in flat}) > 1
    ]
    if not differing:
        return "<h2>Settings</h2><p>The runs were made with the same settings.</p>"
    head = "".join(f'<th><i class="swatch fill-{kind_of(i)}"></i>{escape(run.name)}</th>' for i, run in enumerate(runs))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td>{''.join(f'<td>{_setting(s.get(name))}</td>' for s in flat)}</tr>"
        for name in differing
    )
    return f"""
<h2>What differs</h2>
<p>{len(differing)} of {len(names)} settings; all others are the same in every run.</p>
<div class="scroll"><table class="settings"><thead><tr><th></th>{head}</tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _setting(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float)
                  else str(value))  # fmt: skip


# -- the curves --------------------------------------------------------------------------------------------------------

CURVES = (
    ("rlhf/gold", "gold reward", False, "No agent sees gold: it is read off the responses it was learning from."),
    ("rlhf/score", "score of r_φ", False, "What each maximises, before the KL penalty, by its own reward model."),
    ("rlhf/kl", "KL to π_ref, nats a response", True, "Σ log π − log π_ref over the response."),
    ("rlhf/entropy", "entropy, nats a token", True, "Near 0 the policy always writes the same."),
    ("rlhf/response_length", "response length, tokens", False, "Much of what looks like progress can be mere length."),
    ("rlhf/stopped", "share of responses that end", False, "The rest were cut at the longest length."),
    ("train/explained_variance", "explained variance of the critic", False, "1 when it foresees every return."),
    ("train/clip_fraction", "share of clipped ratios", True, "Tokens that moved more than ε in one iteration."),
)


def curves_section(runs: Sequence[ReportRun]) -> str:
    """What was logged, one colour a run."""
    charts = [(overlay(runs, name, title, from_zero=zero), caption) for name, title, zero, caption in CURVES]
    figures = "".join(figure(chart, text) for chart, text in charts if _says_something(chart))
    if not figures:
        return ""
    seeds = any(len(run.histories.logs["ppo"]) > 1 for run in runs)
    return f"""
<h2>While they learn</h2>
{run_legend(runs, [("thin", "single seeds")] if seeds else [])}
<div class="charts">{figures}</div>"""


def _says_something(chart: Chart) -> bool:
    """Whether anything was logged, and is not the same everywhere."""
    amounts = np.concatenate([np.zeros(0), *(np.asarray(line.y, dtype=float) for line in chart.lines)])
    return bool(np.unique(amounts[np.isfinite(amounts)]).size > 1)


def overlay(runs: Sequence[ReportRun], name: str, title: str, *, from_zero: bool) -> Chart:
    """A quantity over training: every run's mean over its seeds, the seeds thin."""
    lines: list[Line] = []
    for i, run in enumerate(runs):
        logs = run.histories.logs["ppo"]
        if len(logs) > 1:
            lines += [Line(*column(log, name), kind=kind_of(i), style="thin") for log in logs]
    for i, run in enumerate(runs):
        x, y = run.histories.curve("ppo", name)
        if len(x):
            lines.append(Line(x, y, kind=kind_of(i), name=run.name))
    return Chart(title, TOKENS, lines, from_zero=from_zero)


def frontier_section(runs: Sequence[ReportRun]) -> str:
    """Gold and score over the distance from π_ref: what each run makes of a nat."""
    gold = _frontier(runs, "rlhf/gold", "gold reward over the distance")
    proxy = _frontier(runs, "rlhf/score", "score of r_φ over the distance")
    charts = [
        (chart, caption)
        for chart, caption in (
            (gold, "Higher at the same distance is better: more is made of a nat."),
            (proxy, "Where this goes on rising and gold does not, the reward model is being fooled."),
        )
        if chart.lines
    ]
    if not charts:
        return ""
    return f"""
<h2>How far, and what for</h2>
<p>Gold and score against the distance from π<sub>ref</sub>, √KL, as each run moved away: means over the seeds,
smoothed. Dashed: the same agent without KL penalty, where it ran.</p>
{run_legend(runs)}
<div class="charts wide">{"".join(figure(chart, caption) for chart, caption in charts)}</div>"""


def _frontier(runs: Sequence[ReportRun], name: str, title: str) -> Chart:
    lines = []
    for i, run in enumerate(runs):
        for kind in run.histories.logs:
            tokens, amounts = run.histories.curve(kind, name)
            at, kl = run.histories.kl(kind)
            if len(tokens) < 3 or not len(at):
                continue
            window = max(3, len(tokens) // 8)
            far = smooth(np.sqrt(np.clip(np.interp(tokens, at, kl), 0, None)), window)  # (n,)
            style, what = ("line", run.name) if kind == "ppo" else ("dashed", f"{run.name}, without KL")
            lines.append(Line(far, smooth(amounts, window), kind_of(i), what, style))
    return Chart(title, "distance from π_ref, √KL (√nats)", lines, from_zero=False)


def run_legend(runs: Sequence[ReportRun], forms: Sequence[tuple[str, str]] = ()) -> str:
    """Which colour is which run."""
    items = [f'<div><i class="{kind_of(i)}"></i><span>{escape(run.name)}</span></div>' for i, run in enumerate(runs)]
    items += [f'<div><i class="{form}"></i><span>{escape(text)}</span></div>' for form, text in forms]
    return f'<div class="legend">{"".join(items)}</div>'


# -- samples -----------------------------------------------------------------------------------------------------------


def compare_samples(runs: Sequence[ReportRun]) -> str:
    """The runs' responses to the prompts that they share."""
    found = []
    for i, run in enumerate(runs):
        row = final_row(run)
        pairs = read_pairs(run, [row["name"]]) if row is not None else []
        if pairs:
            found.append((i, run, {pair.prompt: pair for pair in pairs[0]}))
    shared = [prompt for prompt in (found[0][2] if found else {}) if all(prompt in said for _, _, said in found)]
    if len(found) < 2 or not shared:
        return ""
    cards = []
    for prompt in shared:
        sides, seen = [], set()
        for _, run, said in found:
            view, gold = said[prompt].before
            if view.tokens not in seen:
                seen.add(view.tokens)
                sides.append(Side(f"SFT, as {run.name} sees it", "sft", view, gold, foreign=True))
        sides += [Side(run.name, kind_of(i), *said[prompt].after) for i, run, said in found]
        cards.append((prompt, sides))
    full = shared_scales([side for _, sides in cards for side in sides])
    left = [run.name for run in runs if run not in [run for _, run, _ in found]]
    without = f" Nothing was kept of {escape(', '.join(left))}." if left else ""
    return f"""
<section class="samples" id="samples">
<h2>What they write</h2>
<p>{prompts_said(len(cards))} Each token as its own policy, critic and π<sub>ref</sub> see it, on one scale for all
runs. Point at a token, tap it, or go through them with Tab and the arrow keys, for its figures.{without}</p>
{switch(full)}
{"".join(card(prompt, sides, full) for prompt, sides in cards)}
</section>"""


def unique_names(roots: Sequence[Path]) -> list[str]:
    """The folders' names, with as much of the path before them as tells them apart.

    Raises:
        ValueError: one folder comes twice.
    """
    paths = [root.resolve() for root in roots]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise ValueError(f"expected each run once, got {roots[i]} twice")
    depth = 1
    while len(set(names := [os.sep.join(path.parts[-depth:]) for path in paths])) < len(paths):
        depth += 1
    return names
