"""Several runs' alarms, and the way to each run's own report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rlhf_gym.files import read_jsonl
from rlhf_gym.monitoring.alarms import ALARMS
from rlhf_gym.report.compare import anchor, kind_of
from rlhf_gym.report.making import stage_facts
from rlhf_gym.report.parts import typeset
from rlhf_gym.report.run import ReportRun


def read_alarms(run: ReportRun) -> list[dict[str, Any]]:
    """What the monitor raised over all the run's seeds and rounds, with the kind of agent; empty without a monitor."""
    found = []
    for round in range(1, run.config.rounds + 1):
        for kind in ("ppo", "unleashed"):
            for seed in run.seeds:
                path = run.folder.seed("unleashed" if kind == "unleashed" else "ppo", round, seed) / ALARMS
                found += [alarm | {"kind": kind, "seed": seed, "round": round} for alarm in read_jsonl(path)]
    return found


def about_section(runs: Sequence[ReportRun], page: Path) -> str:
    """Each run by itself: its alarms, its stages in a line each, and its own report."""
    return "<h2>Run by run</h2>" + "".join(_about(run, i, page) for i, run in enumerate(runs))


def _about(run: ReportRun, place: int, page: Path) -> str:
    return f"""
<section class="about" id="{anchor(place)}">
<h3><i class="swatch fill-{kind_of(place)}"></i>{escape(run.name)} <small>{escape(str(run.folder.root))}</small></h3>
{_notes(run)}{_alarms(run)}{_link(run, page)}
<details><summary>how it was made</summary><dl class="facts">{stage_facts(run)}</dl></details>
</section>"""


def _notes(run: ReportRun) -> str:
    notes = []
    if run.metrics is None:
        trained = "trained, not evaluated" if run.logged else "not trained yet"
        notes.append(f"{trained}: <code>rlhf-gym run --run-dir {escape(str(run.folder.root))}</code> goes on")
    elif run.metrics["judge"] != "gold":
        notes.append("no gold reward: r_φ itself is the judge, and flatters")
    return "".join(f'<p class="warning">{typeset_html(note)}.</p>' for note in notes)


def typeset_html(text: str) -> str:
    """Subscripts in what is HTML already."""
    return text.replace("r_φ", "r<sub>φ</sub>")


def _alarms(run: ReportRun) -> str:
    alarms = read_alarms(run)
    if not alarms:
        return ""
    counts = Counter((alarm["kind"], alarm["name"]) for alarm in alarms)
    items = []
    for (kind, name), count in counts.items():
        first = min((a for a in alarms if (a["kind"], a["name"]) == (kind, name)), key=lambda alarm: alarm["tokens"])
        where = ", without KL penalty" if kind == "unleashed" else ""
        times = f" · {count} times" if count > 1 else ""
        items.append(
            f"<li><b>{escape(name)}</b>{where}, first after {first['tokens']:,} tokens{times}: "
            f"{typeset(first['seen'])}.</li>"
        )
    return f'<ul class="alarms" aria-label="alarms">{"".join(items)}</ul>'


def _link(run: ReportRun, page: Path) -> str:
    if not run.folder.report.is_file():
        return ""
    try:
        way = Path(os.path.relpath(run.folder.report.resolve(), page.resolve().parent)).as_posix()
    except ValueError:  # another drive
        return ""
    return f'<p><a href="{escape(quote(way), quote=True)}">its own report</a></p>'
