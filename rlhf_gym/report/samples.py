"""The report's samples: before and after, each token coloured by what the policy and its critic make of it."""

from __future__ import annotations

from html import escape

from rlhf_gym.report.parts import typeset
from rlhf_gym.report.run import ReportRun
from rlhf_gym.report.tokens import (
    Pair,
    Side,
    card,
    evaluated_tokens,
    kept_views,
    shared_scales,
    switch,
)
from rlhf_gym.runs.summaries import agent_label, row_label


def samples_section(run: ReportRun) -> str:
    """The first held-out prompts, their responses side by side."""
    metrics = run.evaluation
    shown = [row for row in metrics["summary"] if row["kind"] == "ppo"][-1:]
    shown += [row for row in metrics["summary"] if row["kind"] == "unleashed"]
    pairs = read_pairs(run, [row["name"] for row in shown])
    if not pairs:
        return ""
    cards = []
    for several in zip(*pairs, strict=True):
        sides = [Side("SFT", "sft", several[0].before[0], several[0].before[1], foreign=True)]
        sides += [
            Side(row_label(metrics, row), row["kind"], *pair.after) for row, pair in zip(shown, several, strict=True)
        ]
        cards.append((several[0].prompt, sides))
    full = shared_scales([side for _, sides in cards for side in sides])
    median = " of the median seed" if any(row["seeds"] > 1 for row in shown) else ""
    seen = "the policy and its critic now see" if "value" in full else f"{agent_label(metrics)} now sees"
    return f"""
<section class="samples" id="samples">
<h2>Before and after</h2>
<p>{prompts_said(len(cards))} The policy{median} against {reference_said(run)}. Under SFT, the SFT policy’s own words
as {escape(seen)} them. Point at a token, tap it, or go through them with Tab and the arrow keys, for its figures.</p>
{switch(full)}
{"".join(card(prompt, sides, full) for prompt, sides in cards)}
</section>"""


def read_pairs(run: ReportRun, names: list[str]) -> list[list[Pair]]:
    """Of each policy what was and is said to the first prompts, (policies, prompts); empty where nothing was kept.

    The agents' own views, where all of them left some to the same prompts; else what the evaluation wrote.
    """
    for read in (kept_views, evaluated_tokens):
        found = [read(run.folder, name) for name in names]
        if found and all(found) and len({tuple(pair.prompt for pair in pairs) for pairs in found}) == 1:
            return found
    return []


def prompts_said(count: int) -> str:
    """How the prompts were come by."""
    return "The first held-out prompt." if count == 1 else f"The first {count} held-out prompts, not picked."


def reference_said(run: ReportRun) -> str:
    """What the KL is measured from."""
    return {
        "sft": "π<sub>ref</sub>, the SFT policy",
        "pretrained": "π<sub>ref</sub>, the pretrained model",
        "previous": "π<sub>ref</sub>, the policy that the round began with",
    }.get(run.config.reference, typeset("π_ref"))
