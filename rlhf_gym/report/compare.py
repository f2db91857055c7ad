"""Several runs side by side: their summaries, the settings in which they differ, and their curves over one another."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from rlhf_gym.report.charts import Chart, Line, smooth
from rlhf_gym.report.overview import policy_cells, policy_head, stage_facts
from rlhf_gym.report.parts import DASH, PROXY, figure, legend, row, seed_legend, swatch, table, typeset
from rlhf_gym.report.run import ReportRun, column
from rlhf_gym.report.samples import Side, read_samples, samples_page
from rlhf_gym.report.training import GOLD, LOGGED, SCORE, TOKENS, Quantity, moving_figures
from rlhf_gym.runs.folder import FREE, flatten, to_json
from rlhf_gym.runs.summaries import agent_label

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
        roots = ", ".join(str(run.folder.root) for run in runs)
        raise ValueError(f"expected a run that has been trained or evaluated, got none among {roots}")


def _task_said(run: ReportRun) -> str:
    task = run.config.task
    if task.corpus is not None:
        return f"the texts of {task.corpus}"
    return f"the embedded {task.embedded}" if task.model is None else f"the prompts of {task.prompts}"


def kind_of(place: int) -> str:
    """The class that colours a run."""
    return f"run-{place + 1}"


def anchor(place: int) -> str:
    """The id of a run's own part of the page."""
    return f"about-{place + 1}"


# -- the head and the tables -------------------------------------------------------------------------------------------


def compare_head(runs: Sequence[ReportRun]) -> str:
    """The winner in a sentence, and links to each run."""
    judged = [(final, run, i) for i, run in enumerate(runs) if (final := run.final_row()) is not None]
    title = f"{len(runs)} runs side by side"
    lead = "None of them has been evaluated yet: these are their curves so far."
    if judged:
        final, run, place = max(judged, key=lambda found: found[0]["wins_sft"][0])
        gold = all(run.evaluation["judge"] == "gold" for _, run, _ in judged)
        title += (
            f': <span class="ink-{kind_of(place)}">{escape(run.name)}</span> wins most against the SFT policy, '
            f"{final['wins_sft'][0]:.0%}"
        )
        judge = "the gold reward" if gold else f"each run’s judge, gold or, where there is none, its own {PROXY}"
        lead = (
            f"Judged by {judge} on held-out prompts; a tie counts half. The 95 % interval is "
            f"{final['wins_sft'][1]:.0%} to {final['wins_sft'][2]:.0%}, {_apart(judged, run)}."
        )
    links = "".join(f'<a href="#{anchor(i)}">{swatch(kind_of(i))}{escape(run.name)}</a>' for i, run in enumerate(runs))
    return f"""
<p class="eyebrow">rlhf_gym · {len(runs)} runs</p>
<h1>{title}</h1>
<p class="lead">{lead}</p>
<nav class="runs" aria-label="runs">{links}</nav>"""


def _apart(judged: Sequence[tuple[dict[str, Any], ReportRun, int]], best: ReportRun) -> str:
    """Which others the best run's interval overlaps with."""
    low = next(final["wins_sft"][1] for final, run, _ in judged if run is best)
    near = [escape(run.name) for final, run, _ in judged if run is not best and final["wins_sft"][2] >= low]
    if not near:
        return "apart from those of all others" if len(judged) > 1 else "and no other has been evaluated"
    named = " and ".join([", ".join(near[:-1]), near[-1]] if near[1:] else near)
    return f"which overlaps with {'that' if len(near) == 1 else 'those'} of {named}"


def compare_table(runs: Sequence[ReportRun]) -> str:
    """Every run's policy, a row; where one ran without KL penalty too, that below it; the SFT policy on top."""
    gold = any(run.metrics is not None and run.metrics["judge"] == "gold" for run in runs)
    head = policy_head(gold, "best of n")
    rows = _sft_rows(runs, gold)
    for i, run in enumerate(runs):
        rows += _run_rows(run, i, gold, len(head))
    return f"""
<div class="scroll">{table("runs", head, rows)}</div>
<p class="caption">The last round’s policy of each run, the median of its seeds. Wins are shares of the held-out
prompts. KL is from the run’s own SFT policy. Each run’s score is by the {PROXY} it was trained on: compare gold and
wins rather than scores.</p>"""


def _sft_rows(runs: Sequence[ReportRun], gold: bool) -> list[str]:
    """The SFT policies that the runs began from: one, where the figures are the same."""
    found: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        if run.metrics is not None:
            found.setdefault(tuple(policy_cells(run.metrics["summary"][0], "sft", gold)), []).append(run.name)
    names = [f" <small>of {escape(', '.join(several))}</small>" if len(found) > 1 else "" for several in found.values()]
    return [row([f"{swatch('sft')}SFT{of}", *cells], "quiet") for of, cells in zip(names, found, strict=True)]


def _run_rows(run: ReportRun, place: int, gold: bool, width: int) -> list[str]:
    kind = kind_of(place)
    link = f'{swatch(kind)}<a href="#{anchor(place)}">{escape(run.name)}</a>'
    final = run.final_row()
    if run.metrics is None or final is None:
        return [f'<tr><td>{link}</td><td colspan="{width - 1}" class="none">not evaluated yet</td></tr>']
    seeds = f", {final['seeds']} seeds" if final["seeds"] > 1 else ""
    agent = f"<small>{escape(agent_label(run.metrics))}{seeds}</small>"
    rows = [row([f"{link} {agent}", *policy_cells(final, kind, gold)])]
    without = run.final_row("without_kl")
    if without is not None:
        rows.append(row(["without KL penalty", *policy_cells(without, kind, gold)], "sub"))
    return rows


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
    head = ["", *(swatch(kind_of(i)) + escape(run.name) for i, run in enumerate(runs))]
    rows = [row([f"<code>{escape(name)}</code>", *(_setting(s.get(name)) for s in flat)]) for name in differing]
    return f"""
<h2>What differs</h2>
<p>{len(differing)} of {len(names)} settings; all others are the same in every run.</p>
<div class="scroll">{table("settings", head, rows)}</div>"""


def _setting(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return escape(", ".join(map(str, value)) if isinstance(value, list) else str(value))


# -- the curves --------------------------------------------------------------------------------------------------------


def curves_section(runs: Sequence[ReportRun]) -> str:
    """What was logged, one colour a run."""
    figures = moving_figures((overlay(runs, quantity), quantity.caption) for quantity in (GOLD, SCORE, *LOGGED))
    if not figures:
        return ""
    return f"""
<h2>While they learn</h2>
{legend([*run_legend(runs), *seed_legend([run.histories for run in runs])])}
<div class="charts">{figures}</div>"""


def overlay(runs: Sequence[ReportRun], quantity: Quantity) -> Chart:
    """A quantity over training: every run's mean over its seeds, the seeds thin."""
    lines: list[Line] = []
    for i, run in enumerate(runs):
        logs = run.histories.logs["train"]
        if len(logs) > 1:
            lines += [Line(*column(log, quantity.name), kind=kind_of(i), style="thin") for log in logs]
    for i, run in enumerate(runs):
        x, y = run.histories.curve("train", quantity.name)
        if len(x):
            lines.append(Line(x, y, kind=kind_of(i), name=run.name))
    return Chart(quantity.title, TOKENS, lines, from_zero=quantity.from_zero)


def frontier_section(runs: Sequence[ReportRun]) -> str:
    """Gold and score over the distance from π_ref."""
    charts = [
        (_frontier(runs, GOLD.name, "gold reward over the distance"), "Higher at the same distance is better."),
        (
            _frontier(runs, SCORE.name, "score of r_φ over the distance"),
            "Where this goes on rising and gold does not, the reward model is being exploited.",
        ),
    ]
    charts = [(chart, caption) for chart, caption in charts if chart.lines]
    if not charts:
        return ""
    return f"""
<h2>Gold and score over the distance from π<sub>ref</sub></h2>
<p>Gold and score against the distance from π<sub>ref</sub>, √KL, as each run moved away: means over the seeds,
smoothed. Dashed: the same agent without KL penalty, where it ran.</p>
{legend(run_legend(runs))}
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
            style, what = ("line", run.name) if kind == "train" else ("dashed", f"{run.name}, without KL")
            lines.append(Line(far, smooth(amounts, window), kind_of(i), what, style))
    return Chart(title, "distance from π_ref, √KL (√nats)", lines, from_zero=False)


def run_legend(runs: Sequence[ReportRun]) -> list[tuple[str, str]]:
    """The items of a legend for the runs."""
    return [(kind_of(i), run.name) for i, run in enumerate(runs)]


# -- samples and single runs -------------------------------------------------------------------------------------------


def compare_samples(runs: Sequence[ReportRun]) -> str:
    """The runs' responses to the prompts that they share."""
    found = []
    for i, run in enumerate(runs):
        final = run.final_row()
        policies = read_samples(run, [final["name"]]) if final is not None else []
        if policies:
            found.append((i, run, {sample.prompt: sample for sample in policies[0]}))
    shared = [prompt for prompt in (found[0][2] if found else {}) if all(prompt in said for _, _, said in found)]
    if len(found) < 2 or not shared:
        return ""
    cards = []
    for prompt in shared:
        sft: dict[tuple[str, ...], Side] = {}
        for _, run, said in found:
            before = said[prompt].before
            label = f"SFT, as {run.name} sees it"
            sft.setdefault(before.view.tokens, Side(label, "sft", before, foreign=True))
        own = [Side(run.name, kind_of(i), said[prompt].after) for i, run, said in found]
        cards.append((prompt, [*sft.values(), *own]))
    left = [run.name for run in runs if run not in [run for _, run, _ in found]]
    without = f" Nothing was kept of {escape(', '.join(left))}." if left else ""
    intro = "Each token as its own policy, critic and π<sub>ref</sub> see it, on one scale for all runs."
    return samples_page("What they write", intro + without, cards)


def about_section(runs: Sequence[ReportRun], page: Path) -> str:
    """Each run by itself: its alarms, its stages in a line each, and its own report."""
    return "<h2>Run by run</h2>" + "".join(_about(run, i, page) for i, run in enumerate(runs))


def _about(run: ReportRun, place: int, page: Path) -> str:
    return f"""
<section class="about" id="{anchor(place)}">
<h3>{swatch(kind_of(place))}{escape(run.name)} <small>{escape(str(run.folder.root))}</small></h3>
{_notes(run)}{_alarms(run)}{_link(run, page)}
<details><summary>how it was made</summary><dl class="facts">{stage_facts(run)}</dl></details>
</section>"""


def _notes(run: ReportRun) -> str:
    if run.metrics is None:
        trained = "trained, not evaluated" if run.logged else "not trained yet"
        note = f"{trained}: <code>rlhf-gym run --run-dir {escape(str(run.folder.root))}</code> goes on"
    elif run.metrics["judge"] != "gold":
        note = f"no gold reward: {PROXY} itself is the judge, and overrates what was optimised against it"
    else:
        return ""
    return f'<p class="warning">{note}.</p>'


def _alarms(run: ReportRun) -> str:
    alarms = run.alarms()
    counts = Counter((alarm["kind"], alarm["name"]) for alarm in alarms)
    items = []
    for (kind, name), count in counts.items():
        first = min((a for a in alarms if (a["kind"], a["name"]) == (kind, name)), key=lambda alarm: alarm["tokens"])
        where = ", without KL penalty" if kind == "without_kl" else ""
        times = f" · {count} times" if count > 1 else ""
        items.append(
            f"<li><b>{escape(name)}</b>{where}, first after {first['tokens']:,} tokens{times}: "
            f"{typeset(first['seen'])}.</li>"
        )
    return f'<ul class="alarms" aria-label="alarms">{"".join(items)}</ul>' if items else ""


def _link(run: ReportRun, page: Path) -> str:
    if not run.folder.report.is_file():
        return ""
    try:
        way = Path(os.path.relpath(run.folder.report.resolve(), page.resolve().parent)).as_posix()
    except ValueError:  # another drive
        return ""
    return f'<p><a href="{escape(quote(way), quote=True)}">its own report</a></p>'


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
