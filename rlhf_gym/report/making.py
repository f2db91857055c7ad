"""The report's last section: how it was made."""

from __future__ import annotations

import json
from html import escape

from rlhf_gym.files import read_json
from rlhf_gym.report.parts import typeset
from rlhf_gym.report.run import ReportRun
from rlhf_gym.runs.folder import CONFIG_FILE
from rlhf_gym.runs.summaries import (
    collect_line,
    duration,
    evaluate_line,
    ppo_line,
    pretrain_line,
    reward_line,
    sft_line,
)
from rlhf_gym.settings import StageName

LINES = {
    "pretrain": pretrain_line, "sft": sft_line, "collect": collect_line, "reward": reward_line, "ppo": ppo_line,
    "unleashed": ppo_line, "evaluate": evaluate_line,
}  # fmt: skip


def making_section(run: ReportRun) -> str:
    """Every stage in a line, and all settings."""
    settings = escape(json.dumps(read_json(run.folder.root / CONFIG_FILE)["config"], indent=2))
    return f"""
<h2>How it was made</h2>
<dl class="facts">{stage_facts(run)}</dl>
<details><summary>All settings</summary><pre>{settings}</pre></details>"""


def stage_facts(run: ReportRun) -> str:
    """Every complete stage in a line."""
    folder, config, facts = run.folder, run.config, []
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
    return "".join(facts)
