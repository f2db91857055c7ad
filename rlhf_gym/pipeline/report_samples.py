"""The report's samples: before and after, each token coloured by how far the policy has moved on it."""

from __future__ import annotations

from html import escape
from typing import Any

from rlhf_gym.pipeline.folder import RunFolder
from rlhf_gym.pipeline.report_parts import PROXY, signed
from rlhf_gym.pipeline.report_run import ReportRun
from rlhf_gym.pipeline.samples import read_jsonl
from rlhf_gym.pipeline.terminal import agent_label, row_label

FULL = 3.0
"""Nats at which the colour is full."""


def samples_section(run: ReportRun) -> str:
    """The first held-out prompts, their responses side by side."""
    folder, metrics = run.folder, run.evaluation
    shown = [row for row in metrics["summary"] if row["kind"] == "ppo"][-1:]
    shown += [row for row in metrics["summary"] if row["kind"] == "unleashed"]
    records = {row["kind"]: _records(folder, row["name"]) for row in shown}
    if not records["ppo"]:
        return ""
    cards = []
    for place, record in enumerate(records["ppo"]):
        sides = [_side("SFT", "sft", record["before"])]
        for row in shown:
            sides.append(_side(row_label(metrics, row), row["kind"], records[row["kind"]][place]["after"]))
        cards.append(
            f'<div class="card"><div class="prompt">prompt: <b>{escape(record["prompt"])}</b></div>'
            f'<div class="sides">{"".join(sides)}</div></div>'
        )
    median = " of the median seed" if any(row["seeds"] > 1 for row in shown) else ""
    return f"""
<h2>Before and after</h2>
<p>The first {len(cards)} held-out prompts, not picked. Colour is log π − log π<sub>SFT</sub> of each token, the
policy{median} against the SFT policy: what it has come to prefer, what it avoids. Under SFT, the SFT policy’s own words
as {escape(agent_label(metrics))} now sees them. Point at a token, or tap it, for its figures.</p>
<p class="caption">less likely than before<span class="scale"></span>more likely ({FULL:g} nats: full colour)</p>
{"".join(cards)}"""


def _records(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    path = folder.stage("evaluate") / "tokens" / f"{name}.jsonl"
    return list(read_jsonl(path)) if path.is_file() else []


def _side(label: str, kind: str, side: dict[str, Any]) -> str:
    gold = "" if side["gold"] is None else f"gold {signed(side['gold'])} · "
    total = sum(side["log_prob"]) - sum(side["ref_log_prob"])
    moved = "" if kind == "sft" else f" · {signed(total)} nats"
    rows = zip(side["tokens"], side["log_prob"], side["ref_log_prob"], strict=True)
    text = "".join(_token(token, ours, theirs) for token, ours, theirs in rows)
    return (
        f'<div class="side"><h3><span class="ink-{kind}">{escape(label)}</span>'
        f"<small>{gold}{PROXY} {signed(side['proxy'])}{moved}</small></h3>"
        f'<div class="text">{text}</div></div>'
    )


def _token(token: str, ours: float, theirs: float) -> str:
    difference = ours - theirs
    strength = min(abs(difference) / FULL, 1.0) * 0.62
    tint = "more" if difference > 0 else "less"
    special = ' class="special"' if token.strip().startswith("<") and token.strip().endswith(">") else ""
    style = f' style="background:rgba(var(--{tint}),{strength:.2f})"' if strength >= 0.01 else ""
    return f'<span{special} data-p="{ours:g}" data-r="{theirs:g}"{style}>{escape(token)}</span>'
