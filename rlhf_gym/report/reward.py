"""The report's section on the reward model: its accuracy, its calibration, and what probing it has found."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from rlhf_gym.functional.intervals import share_interval
from rlhf_gym.report.charts import Chart, IntervalChart, Line
from rlhf_gym.report.parts import DASH, PROXY, row, share_cell, signed, table, typeset
from rlhf_gym.report.run import ReportRun
from rlhf_gym.runs.summaries import steps_sentence
from rlhf_gym.training.reward_edits import EDITS


def reward_section(run: ReportRun) -> str:
    """The last round's reward model on held-out pairs; empty where none was trained, measured or probed."""
    metrics = run.folder.metrics("reward", run.evaluation["rounds"])
    if metrics is None:
        return ""
    probes = probes_part(metrics.get("probes"))
    if "log_loss" in metrics:
        complaints = "".join(f'<p class="warning">{typeset(c)}.</p>' for c in metrics["complaints"])
        return f"<h2>The reward model</h2><p>{escape(steps_sentence(metrics))}.</p>{complaints}{probes}"
    if "reliability" not in metrics:
        return f"<h2>The reward model</h2>{probes}" if probes else ""
    chart = reliability_chart(metrics["reliability"])
    parts = [
        _parts("who labelled", metrics["by_annotator"]),
        _parts("who wrote", metrics["by_source"]),
        _parts("chosen longer by, words", metrics["by_length"]),
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
    x = [b["confidence"] for b in bins]
    y = [b["accuracy"] for b in bins]
    lines = [
        Line([0.5, 1.0], [0.5, 1.0], "sft", style="dashed"),
        Line(x, y, "train", "accuracy", style="thin"),
        Line(x, y, "train", style="points", weight=[b["n"] for b in bins]),
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


def _parts(title: str, shares: Sequence[dict[str, Any]]) -> str:
    rows = []
    for share in shares:
        name = share["name"].replace("-", "−") if title.startswith("chosen longer") else share["name"]
        accuracy = share_cell(share_interval(share["accuracy"], share["n"]), "train")
        rows.append(row([typeset(name), accuracy, f"{share['n']:,}"]))
    return table("parts", [title, "accuracy", "pairs"], rows)


def staleness_table(found: dict[str, Any] | None) -> str:
    """The accuracy of each round's reward model about each round's policy; empty for a single round."""
    if not found:
        return ""
    names = ["the SFT policy", *(f"round {i}’s policy" for i in range(1, len(found["pairs"])))]
    head = ["", *(f"{name}<small>{n:,} pairs</small>" for name, n in zip(names, found["pairs"], strict=True))]
    rows = [
        f"<tr><td>{PROXY} of round {i}</td>{''.join(_heat(value) for value in accuracies)}</tr>"
        for i, accuracies in enumerate(found["accuracy"], start=1)
    ]
    if found["gold"] is not None:
        rows.append(row(["gold itself", *(f"{value:.1%}" for value in found["gold"])]))
    last = "; gold’s row is what a perfect one would reach, since annotators err" if found["gold"] is not None else ""
    return f"""
<h3 class="later">accuracy about responses of</h3>
<div class="scroll">{table("parts heat", head, rows)}</div>
<p class="caption">Along a row, a reward model’s accuracy falls as the policy leaves the responses it was trained on;
down a column, retraining on fresh labels raises it again{last}. Pairs about prompts that no round trained on.</p>"""


def _heat(value: float) -> str:
    depth = max(0.0, min(1.0, (value - 0.5) / 0.4)) * 0.55
    return f'<td style="background:rgba(var(--heat), {depth:.2f})">{value:.1%}</td>'


# -- probes ------------------------------------------------------------------------------------------------------------


def probes_part(found: dict[str, Any] | None) -> str:
    """What was found by probing r_φ before PPO; empty where it was not probed."""
    if not found or not found["edits"]:
        return ""
    gold = found["edits"][0]["gold_change"] is not None
    key = f'<span class="legend"><span class="ink-train">● {PROXY}</span><span class="ink-best_of">● gold</span></span>'
    judged = f" Beside them, what gold makes of the same edits, in its own.{key}" if gold else ""
    return f"""
<h3 class="later">what {PROXY} rewards, probed before any policy was optimised against it</h3>
{_suspicions(found["suspicions"])}
<div class="charts wide">
<figure>{edits_chart(found["edits"])}<figcaption>SFT responses to held-out prompts, edited: the mean change of {PROXY}
with two standard errors, in standard deviations over the unedited ones. No edit makes an answer better.{judged}
</figcaption></figure>
<div>{_edits_table(found["edits"], gold)}{_examples(found["edits"], gold)}</div>
</div>{_baselines(found)}{_words(found)}"""


def edits_chart(edits: Sequence[dict[str, Any]]) -> str:
    """A row an edit: the change of r_φ, and under it that of gold."""
    rows = []
    for edit in edits:
        estimates = [(edit["change"], edit["error"], "train")]
        if edit["gold_change"] is not None:
            estimates.append((edit["gold_change"], edit["gold_error"], "best_of"))
        rows.append((edit["name"], estimates))
    return IntervalChart("what edits do to the score", "mean change of the score, standard deviations", rows).svg()


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
        cells = [
            f"{escape(edit['name'])} <small>{escape(what)}</small>",
            signed(edit["change"]),
            f"{edit['raised']:.0%}",
        ]
        rows.append(row([*cells, f"{edit['gold_raised']:.0%}"] if gold else cells))
    head = ["edit", "change", f"raised by {PROXY}"]
    return table("parts", [*head, "raised by gold"] if gold else head, rows)


def _examples(edits: Sequence[dict[str, Any]], gold: bool) -> str:
    """The edit that gained most, of those that a policy could exploit."""
    worst = [edit for edit in edits if edit["suspicious"]]
    if not worst:
        return ""
    edit = max(worst, key=lambda e: e["example"]["change"] - (e["example"]["gold_change"] or 0))
    example = edit["example"]
    theirs = f", gold by {signed(example['gold_change'])}" if gold else ""
    before = escape(example["before"].strip())
    after = escape(example["after"].strip())
    return (
        f'<p class="caption">The largest gain of all: {escape(edit["name"])} turns “{before}” into “{after}” and '
        f"moves {PROXY} by {signed(example['change'])}{theirs}.</p>"
    )


def _baselines(found: dict[str, Any]) -> str:
    """Accuracy of r_φ and of rewards that see little, and how much of r_φ these explain."""
    if not found["baselines"]:
        return ""
    rows = [row([PROXY, _accuracy(found["accuracy"], found["n"], "train"), "", ""])]
    for b in found["baselines"]:
        explained = DASH if b["explained_by_features"] is None else f"{max(0.0, b['explained_by_features']):.0%}"
        beyond = "" if b["beyond"] is None else f"{b['beyond']:.0%}"
        rows.append(row([escape(b["name"]), _accuracy(b["accuracy"], found["n"], "sft"), explained, beyond]))
    head = ["trained on the same preferences", "accuracy on held-out pairs", f"explains of {PROXY}"]
    head.append(f"where it is wrong,<br>{PROXY} is right in")
    equal = ""
    if found["equal_length_n"]:
        n = found["equal_length_n"]
        share = found["equal_length"]
        equal = f" Of {n:,} pairs of two responses of as many words, {PROXY} is right about {share:.0%}."
    text = f"{found['word_price']:+.3f}".replace("-", "−")
    return f"""
<h3 class="later">{PROXY} beside rewards that see little</h3>
<div class="scroll">{table("parts narrow", head, rows)}</div>
<p class="caption">Explained: R² of the best linear function of these features, fitted to {PROXY} on other prompts
(slightly optimistic: the best of four ridge penalties is chosen by the same R²).
{equal} With each word more, a response’s score changes by {text} σ.</p>"""


def _accuracy(accuracy: float, n: int, kind: str) -> str:
    return share_cell(share_interval(accuracy, n), kind, 1)


def _words(found: dict[str, Any]) -> str:
    """The words that raise and lower r_φ most."""
    sides = (("for", found["words_for"]), ("against", found["words_against"]))
    lines = [
        f"<p><b>Words that count most {name} a response:</b> "
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
