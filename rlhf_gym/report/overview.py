"""The report's head, its table of policies, and its last section: how the run was made."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from rlhf_gym.files import read_json
from rlhf_gym.progress import duration
from rlhf_gym.report.parts import DASH, PROXY, row, share_cell, signed, swatch, table, typeset
from rlhf_gym.report.run import KINDS, ReportRun
from rlhf_gym.runs.folder import CONFIG_FILE
from rlhf_gym.runs.summaries import (
    agent_label,
    collect_line,
    evaluate_line,
    is_bound,
    pretrain_line,
    reward_line,
    row_label,
    sft_line,
    train_line,
)
from rlhf_gym.settings import StageName

LINES = {
    "pretrain": pretrain_line,
    "sft": sft_line,
    "collect": collect_line,
    "reward": reward_line,
    "train": train_line,
    "without_kl": train_line,
    "evaluate": evaluate_line,
}
"""The function that makes one line of the metrics of each stage."""


def head_section(run: ReportRun) -> str:
    """The result in a sentence."""
    metrics = run.evaluation
    final = run.final_row()
    assert final is not None
    agent = escape(agent_label(metrics))
    agent = agent[0].upper() + agent[1:]
    share, low, high = final["wins_sft"]
    verdict = "beat" if low > 0.5 else "lose to" if high < 0.5 else "tie with"
    at_most = "at most " if is_bound(final) else ""
    seeds = f" The median of {final['seeds']} seeds." if final["seeds"] > 1 else ""
    judge = "the gold reward"
    warning = ""
    if metrics["judge"] != "gold":
        judge = f"the reward model {PROXY}"
        warning = " There is no gold reward in this run: the judge is what was optimised against, and overrates it."
    return f"""
<p class="eyebrow">rlhf_gym · {escape(str(run.folder.root))}</p>
<h1>{agent}’s responses {verdict} the SFT policy’s on <span class="ink-train">{share:.0%}</span> of held-out
prompts, {at_most}{final["kl"][0]:.1f} nats away from it</h1>
<p class="lead">Judged by {judge} on {metrics["prompts"]} prompts that nothing was trained on; a tie counts half.
The 95 % interval is {low:.0%} to {high:.0%}.{seeds}{warning}</p>"""


def table_section(run: ReportRun) -> str:
    """The table of policies, a row each."""
    metrics = run.evaluation
    gold = metrics["judge"] == "gold"
    n = metrics["best_of"]
    rows = [
        row([swatch(entry["kind"]) + escape(row_label(metrics, entry)), *policy_cells(entry, entry["kind"], gold)])
        for entry in metrics["summary"]
    ]
    rounds = f" {PROXY} is the last round’s." if metrics["rounds"] > 1 else ""
    return f"""
<div class="scroll">{table("policies", policy_head(gold, f"best of {n}"), rows)}</div>
<p class="caption">Wins are shares of the held-out prompts. KL is from the SFT policy, estimated from each policy’s own
responses; best of {n} takes, of {n} SFT responses, the one {PROXY} likes best, and its KL is at most log n − (n − 1)/n.
Distinct-2 is the share of neighbouring pairs of words that occur for the first time.{rounds}</p>"""


def policy_head(gold: bool, best_of: str) -> list[str]:
    """The head of a table of policies."""
    columns = [
        ("", ""),
        ("wins against SFT", "95 % interval"),
        ("wins against", best_of),
        ("gold", "mean ± s.e."),
        ("its rise", "σ of SFT"),
        ("score r_φ", "SFT: 0 ± 1"),
        ("KL", "nats a response"),
        ("entropy", "nats a token"),
        ("length", "tokens"),
        ("distinct-2", ""),
    ]
    shown = columns if gold else columns[:3] + columns[5:]
    return [f"{typeset(name)}<small>{typeset(unit)}</small>" for name, unit in shown]


def policy_cells(entry: dict[str, Any], kind: str, gold: bool) -> list[str]:
    """A policy's figures, without its name; `kind` is the CSS class that colours them."""
    base = entry["kind"] == "sft"
    wins = entry.get("wins_sft")
    best = entry.get("wins_best_of")
    cells = [
        DASH if wins is None else f"{share_cell(wins, kind, 1)} <small>{100 * wins[1]:.0f}–{100 * wins[2]:.0f}</small>",
        DASH if best is None else f"{best[0]:.1%}",
    ]
    if gold and "gold" in entry:
        cells.append(f"{signed(entry['gold'][0])} <small>± {entry['gold'][1]:.2f}</small>")
        cells.append(DASH if base else signed(entry["gold_rise"]))
    elif gold:
        cells += [DASH, DASH]
    kl = DASH if base else f"{'≤ ' if is_bound(entry) else ''}{entry['kl'][0]:.2f}"
    figures = [f"{entry['entropy']:.2f}", f"{entry['length']:.1f}", f"{entry['distinct_2']:.3f}"]
    return [*cells, signed(entry["proxy"][0]), kl, *figures]


def making_section(run: ReportRun) -> str:
    """Every stage in a line, and all settings."""
    saved = read_json(run.folder.root / CONFIG_FILE)
    settings = escape(json.dumps(saved["config"], indent=2))
    notes = "".join(f"<li>{escape(note)}</li>" for note in saved.get("notes", ()))
    files = f"<h3>Of your files</h3>\n<ul>{notes}</ul>" if notes else ""
    return f"""
<h2>How it was made</h2>
<dl class="facts">{stage_facts(run)}</dl>
{files}
<details><summary>All settings</summary><pre>{settings}</pre></details>"""


def stage_facts(run: ReportRun) -> str:
    """Every complete stage in a line."""
    in_rounds: list[StageName] = ["collect", "reward", *KINDS]
    rounds: list[tuple[StageName, int]] = [
        (name, round) for round in range(1, run.config.rounds + 1) for name in in_rounds
    ]
    stages: list[tuple[StageName, int]] = [("pretrain", 1), ("sft", 1), *rounds, ("evaluate", 1)]
    facts = []
    for name, round in stages:
        metrics = run.folder.metrics(name, round)
        if metrics is None:
            continue
        label = f"{name}, round {round}" if run.config.rounds > 1 and name in in_rounds else name
        facts.append(
            f"<div><dt>{label} <small>{duration(metrics['seconds'])}</small></dt>"
            f"<dd>{typeset(LINES[name](metrics))}</dd></div>"
        )
    return "".join(facts)
