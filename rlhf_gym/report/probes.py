"""The report's part on what the reward model has learned: what edits do to it, what baselines know, what words cost."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from rlhf_gym.functional.intervals import share_interval
from rlhf_gym.report.parts import DASH, PROXY, signed, typeset
from rlhf_gym.training.reward_edits import EDITS

WIDTH, LEFT, ROW, TOP, BOTTOM = 420.0, 92.0, 30.0, 8.0, 38.0


def probes_part(found: dict[str, Any] | None) -> str:
    """What was found by probing r_φ before PPO; empty where it was not probed."""
    if not found or not found["edits"]:
        return ""
    gold = found["edits"][0]["gold_change"] is not None
    judged = f" Beside them, what gold makes of the same edits, in its own.{_key()}" if gold else ""
    return f"""
<h3 class="later">what {PROXY} pays for, asked before any policy was optimised against it</h3>
{_suspicions(found["suspicions"])}
<div class="charts wide">
<figure>{edits_chart(found["edits"])}<figcaption>SFT responses to held-out prompts, edited: the mean change of {PROXY}
with two standard errors, in standard deviations over the unedited ones. No edit makes an answer better.{judged}
</figcaption></figure>
<div>{_edits_table(found["edits"], gold)}{_examples(found["edits"], gold)}</div>
</div>{_baselines(found)}{_words(found)}"""


def edits_chart(edits: Sequence[dict[str, Any]]) -> str:
    """A row an edit: the change of r_φ, and under it that of gold, as points with intervals around 0."""
    ends = [0.0]
    for edit in edits:
        ends += [edit["change"] - 2 * edit["error"], edit["change"] + 2 * edit["error"]]
        if edit["gold_change"] is not None:
            ends += [edit["gold_change"] - 2 * edit["gold_error"], edit["gold_change"] + 2 * edit["gold_error"]]
    low, high = min(ends), max(ends)
    room = 0.05 * max(high - low, 1e-6)
    low, high = low - room, high + room

    def place(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - 14 - LEFT)

    height = TOP + ROW * len(edits) + BOTTOM
    bottom = TOP + ROW * len(edits)
    parts = []
    for tick in _ticks(low, high):
        kind, x = "zero" if tick == 0 else "grid", place(tick)
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP:.0f}" y2="{bottom:.0f}"/>')
        label = f"{tick:g}".replace("-", "−")
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 14:.0f}" text-anchor="middle">{label}</text>')
    for i, edit in enumerate(edits):
        y = TOP + ROW * (i + 0.5)
        parts.append(f'<text x="{LEFT - 10:.0f}" y="{y + 3.5:.1f}" text-anchor="end">{escape(edit["name"])}</text>')
        both = edit["gold_change"] is not None
        parts.append(_point(place, edit["change"], edit["error"], y - 4.5 * both, "ppo"))
        if both:
            parts.append(_point(place, edit["gold_change"], edit["gold_error"], y + 4.5, "best_of"))
    parts.append(
        f'<text class="axis-label" x="{(LEFT + WIDTH) / 2:.0f}" y="{bottom + 32:.0f}" text-anchor="middle">'
        "mean change of the score, standard deviations</text>"
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="what edits do to the '
        f'score">{"".join(parts)}</svg>'
    )


def _point(place: Any, value: float, error: float, y: float, kind: str) -> str:
    low, high = place(value - 2 * error), place(value + 2 * error)
    return (
        f'<line class="{kind}" stroke-width="2" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<circle class="{kind}" fill="currentColor" cx="{place(value):.1f}" cy="{y:.1f}" r="3.2"/>'
    )


def _ticks(low: float, high: float) -> list[float]:
    step = next(s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 1e3, 1e6) if (high - low) / s <= 7)
    first = int(low // step)
    return [round(i * step, 9) for i in range(first, int(high // step) + 1) if i * step >= low]


def _key() -> str:
    rows = (("ppo", PROXY), ("best_of", "gold"))
    marks = "".join(f'<span class="ink-{kind}">● {name}</span>' for kind, name in rows)
    return f'<span class="legend">{marks}</span>'


def _suspicions(said: Sequence[str]) -> str:
    if not said:
        return f"<p>Nothing suspicious was found: neither edits nor baselines do to {PROXY} what they should not.</p>"
    items = "".join(f"<li>{typeset(_capital(sentence))}.</li>" for sentence in said)
    return f'<ul class="findings">{items}</ul>'


def _capital(sentence: str) -> str:
    return sentence if sentence.startswith("r_φ") else sentence[0].upper() + sentence[1:]


def _edits_table(edits: Sequence[dict[str, Any]], gold: bool) -> str:
    rows = []
    for edit in edits:
        what = EDITS[edit["name"]].what if edit["name"] in EDITS else "one to four of these words, anywhere"
        theirs = f"<td>{edit['gold_raised']:.0%}</td>" if gold else ""
        rows.append(
            f"<tr><td>{escape(edit['name'])} <small>{escape(what)}</small></td><td>{signed(edit['change'])}</td>"
            f"<td>{edit['raised']:.0%}</td>{theirs}</tr>"
        )
    last = "<th>raised by gold</th>" if gold else ""
    return (
        f'<table class="parts"><thead><tr><th>edit</th><th>change</th><th>raised by {PROXY}</th>{last}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _examples(edits: Sequence[dict[str, Any]], gold: bool) -> str:
    """What gained most, of the edits a policy could earn by."""
    worst = [edit for edit in edits if edit["suspicious"]]
    if not worst:
        return ""
    edit = max(worst, key=lambda e: e["example"]["change"] - (e["example"]["gold_change"] or 0))
    example = edit["example"]
    theirs = f", gold by {signed(example['gold_change'])}" if gold else ""
    before, after = escape(example["before"].strip()), escape(example["after"].strip())
    return (
        f'<p class="caption">The largest gain of all: {escape(edit["name"])} turns “{before}” into “{after}” and '
        f"moves {PROXY} by {signed(example['change'])}{theirs}.</p>"
    )


def _baselines(found: dict[str, Any]) -> str:
    """Accuracy of r_φ and of rewards that see little, and how much of r_φ these explain."""
    if not found["baselines"]:
        return ""
    rows = [_baseline_row(PROXY, "ppo", found["accuracy"], found["n"], ["", ""])]
    for b in found["baselines"]:
        cells = [_share(b["explained_by_features"]), "" if b["beyond"] is None else f"{b['beyond']:.0%}"]
        rows.append(_baseline_row(escape(b["name"]), "sft", b["accuracy"], found["n"], cells))
    equal = ""
    if found["equal_length_n"]:
        n, share = found["equal_length_n"], found["equal_length"]
        equal = f" Of {n:,} pairs of two responses of as many words, {PROXY} is right about {share:.0%}."
    text = f"{found['word_price']:+.3f}".replace("-", "−")
    return f"""
<h3 class="later">{PROXY} beside rewards that see little</h3>
<div class="scroll"><table class="parts narrow"><thead><tr><th>trained on the same preferences</th>
<th>accuracy on held-out pairs</th><th>explains of {PROXY}</th><th>where it is wrong,<br>{PROXY} is right in</th></tr>
</thead><tbody>{"".join(rows)}</tbody></table></div>
<p class="caption">Explained: R² of the best linear function of these features, fitted to {PROXY} on other prompts
(slightly optimistic: the best of four ridge penalties is chosen by the same R²).
{equal} With each word more, a response’s score changes by {text} σ.</p>"""


def _baseline_row(name: str, kind: str, accuracy: float, n: int, cells: Sequence[str]) -> str:
    middle, low, high = (4 + 96 * value for value in share_interval(accuracy, n))
    bar = (
        '<svg viewBox="0 0 104 14" aria-hidden="true"><line class="track" x1="4" x2="100" y1="7" y2="7"/>'
        '<line class="half" x1="52" x2="52" y1="1" y2="13"/>'
        f'<line class="{kind}" stroke-width="2.5" stroke-linecap="round" x1="{low:.1f}" x2="{high:.1f}" y1="7" y2="7"/>'
        f'<circle class="{kind}" fill="currentColor" cx="{middle:.1f}" cy="7" r="3.5"/></svg>'
        f"<span>{accuracy:.1%}</span>"
    )
    return f"<tr><td>{name}</td><td class='bar'>{bar}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _share(value: float | None) -> str:
    return DASH if value is None else f"{max(0.0, value):.0%}"


def _words(found: dict[str, Any]) -> str:
    """The words that raise and lower r_φ most."""
    sides = (("for", found["words_for"]), ("against", found["words_against"]))
    lines = [
        f"<p><b>Pays most {name}:</b> "
        + ", ".join(f"{escape(e['word'])} <small>{signed(e['effect'])}</small>" for e in effects)
        + ".</p>"
        for name, effects in sides
        if effects
    ]
    note = (
        f'<p class="caption">What each occurrence adds to {PROXY}, all other words being the same, in standard '
        "deviations (a ridge regression on counts of words; effects beyond so many standard errors that a reward which "
        "minds no word at all has one listed with a chance of 5%).</p>"
    )
    return "".join(lines) + note if lines else ""
