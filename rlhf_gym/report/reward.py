"""The report's section on the reward model: is it right, as often as it is sure, and about the policy of today."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from rlhf_gym.functional.intervals import share_interval
from rlhf_gym.report.charts import Chart, Line
from rlhf_gym.report.parts import PROXY, typeset
from rlhf_gym.report.probes import probes_part
from rlhf_gym.report.run import ReportRun


def reward_section(run: ReportRun) -> str:
    """The last round's reward model on held-out pairs; empty where none was trained, measured or probed."""
    metrics = run.folder.metrics("reward", run.evaluation["rounds"])
    if metrics is None:
        return ""
    probes = probes_part(metrics.get("probes"))
    if "reliability" not in metrics:
        return f"<h2>The reward model</h2>{probes}" if probes else ""
    chart = reliability_chart(metrics["reliability"])
    parts = [
        _parts("who labelled", metrics["by_annotator"]),
        _parts("who wrote", metrics["by_source"]),
        _parts("chosen longer by, words", metrics["by_length"], signed=True),
    ]
    warnings = "".join(f'<p class="warning">{typeset(c)}.</p>' for c in metrics.get("complaints", []))
    return f"""
<h2>The reward model</h2>
<p>{_story(metrics)}</p>{warnings}
<div class="charts wide">
<figure><h3>{chart.title}</h3>{chart.svg()}<figcaption>Each circle is a bin of confidence, its area the number of
pairs; on the dashed line {PROXY} is as often right as it is sure. Expected calibration error {metrics["ece"]:.3f}.
</figcaption></figure>
<div><h3>accuracy by parts of the held-out pairs</h3>{"".join(parts)}</div>
</div>{staleness_table(metrics.get("staleness"))}{probes}"""


def reliability_chart(bins: Sequence[dict[str, Any]]) -> Chart:
    """Accuracy over confidence, a circle a bin, and the line on which the two are one."""
    x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    lines = [
        Line([0.5, 1.0], [0.5, 1.0], "sft", style="dashed"),
        Line(x, y, "ppo", "accuracy", style="thin"),
        Line(x, y, "ppo", style="points", weight=[b["n"] for b in bins]),
    ]
    return Chart("accuracy where it is so sure", "confidence, σ(|Δ|)", lines)


def _story(metrics: dict[str, Any]) -> str:
    sentences = [
        f"On {metrics['n']:,} pairs about prompts it was not trained on, {PROXY} prefers the response that the "
        f"annotators chose in {metrics['accuracy']:.1%}"
    ]
    if 0 < metrics["clean_accuracy"] != metrics["accuracy"]:
        sentences[0] += f" ({metrics['clean_accuracy']:.1%} where they are known to have made no mistake)"
    if metrics["length_controlled"] is not None and metrics["longer_chosen"] is not None:
        sentences.append(
            f"Weighted so that length tells nothing, in {metrics['length_controlled']:.1%} of "
            f"{metrics['length_controlled_pairs']:,}; the annotators chose the longer of two in "
            f"{metrics['longer_chosen']:.0%}"
        )
    sentences.append(f"A coin would be right as often {_odds(metrics['chance'])}")
    return ". ".join(sentences) + "."


def _odds(chance: float) -> str:
    if chance < 1e-6:
        return "less than once in a million tries"
    return f"once in {float(f'{1 / chance:.2g}'):,.0f} tries" if chance < 0.01 else f"with probability {chance:.2g}"


def _parts(title: str, shares: Sequence[dict[str, Any]], *, signed: bool = False) -> str:
    rows = []
    for share in shares:
        name = share["name"].replace("-", "−") if signed else share["name"]
        rows.append(f"<tr><td>{typeset(name)}</td><td class='bar'>{_bar(share)}</td><td>{share['n']:,}</td></tr>")
    return (
        f'<table class="parts"><thead><tr><th>{escape(title)}</th><th>accuracy</th><th>pairs</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _bar(share: dict[str, Any]) -> str:
    """A share with its 95 % interval, against a half."""
    rate = share_interval(share["accuracy"], share["n"])
    middle, low, high = (4 + 96 * value for value in rate)
    return (
        '<svg viewBox="0 0 104 14" aria-hidden="true"><line class="track" x1="4" x2="100" y1="7" y2="7"/>'
        '<line class="half" x1="52" x2="52" y1="1" y2="13"/>'
        f'<line class="ppo" stroke-width="2.5" stroke-linecap="round" x1="{low:.1f}" x2="{high:.1f}" y1="7" y2="7"/>'
        f'<circle class="ppo" fill="currentColor" cx="{middle:.1f}" cy="7" r="3.5"/></svg>'
        f"<span>{share['accuracy']:.0%}</span>"
    )


def staleness_table(found: dict[str, Any] | None) -> str:
    """Whose reward model is right about whose policy, as a heat map; empty for a single round."""
    if not found:
        return ""
    names = ["the SFT policy", *(f"round {i}’s policy" for i in range(1, len(found["pairs"])))]
    head = "".join(f"<th>{name}<small>{n:,} pairs</small></th>" for name, n in zip(names, found["pairs"], strict=True))
    rows = [(f"{PROXY} of round {i}", row, True) for i, row in enumerate(found["accuracy"], start=1)]
    if found["gold"] is not None:
        rows.append(("gold itself", found["gold"], False))
    body = "".join(
        f"<tr><td>{name}</td>{''.join(_heat(value, shaded) for value in row)}</tr>" for name, row, shaded in rows
    )
    last = "; gold’s row is what a perfect one would reach, since annotators err" if found["gold"] is not None else ""
    return f"""
<h3 class="later">accuracy about responses of</h3>
<div class="scroll"><table class="parts heat"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p class="caption">Along a row, a reward model goes stale as the policy leaves the responses it was trained on; down a
column, retraining on fresh labels brings it back{last}. Pairs about prompts that no round trained on.</p>"""


def _heat(value: float, shaded: bool) -> str:
    depth = max(0.0, min(1.0, (value - 0.5) / 0.4)) * 0.55
    colour = f' style="background:rgba(var(--heat), {depth:.2f})"' if shaded else ""
    return f"<td{colour}>{value:.1%}</td>"
