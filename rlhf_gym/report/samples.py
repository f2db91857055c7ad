"""The report's samples: responses before and after training, each token coloured by KL, value, return or advantage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from rlhf_gym.envs import EpisodeView
from rlhf_gym.envs.view import prompt_html, scales, signed
from rlhf_gym.files import read_jsonl
from rlhf_gym.lm.chat import Prompt, as_prompt
from rlhf_gym.report.parts import typeset
from rlhf_gym.report.run import ReportRun
from rlhf_gym.runs.records import JudgedView, SampleViews, read_views
from rlhf_gym.runs.summaries import agent_label, row_label


class Shade(NamedTuple):
    """A quantity that tokens can be coloured by."""

    what: str
    """A sentence that says what the quantity is."""
    less: str
    """What the lower end of the scale means."""
    more: str
    """What the upper end of the scale means."""


SHADES = {
    "KL": Shade("log π − log π_ref of each token: how training changed its probability", "less likely", "more likely"),
    "value": Shade("V(s), the critic’s estimate before the token", "low return expected", "high return expected"),
    "dense": Shade("what the token earned beside KL and score", "less than 0", "more than 0"),
    "return": Shade("the critic’s target; without a critic the rewards from this token on", "low", "high"),
    "advantage": Shade(
        "how much better the token was than the critic expected (GAE, not whitened)",
        "worse than expected",
        "better",
    ),
}


class Side(NamedTuple):
    """A response on the page."""

    label: str
    """The name of the policy that wrote it."""
    kind: str
    """CSS class that colours the label."""
    judged: JudgedView
    """The response, and its gold reward."""
    foreign: bool = False
    """Whether another policy wrote it than the one whose figures are shown."""


def samples_section(run: ReportRun) -> str:
    """The first held-out prompts, their responses side by side."""
    metrics = run.evaluation
    shown = [entry for entry in (run.final_row(), run.final_row("without_kl")) if entry is not None]
    policies = read_samples(run, [entry["name"] for entry in shown])
    if not policies:
        return ""
    cards = []
    for samples in zip(*policies, strict=True):
        sides = [Side("SFT", "sft", samples[0].before, foreign=True)]
        sides += [
            Side(row_label(metrics, entry), entry["kind"], sample.after)
            for entry, sample in zip(shown, samples, strict=True)
        ]
        cards.append((samples[0].prompt, sides))
    critic = any(side.judged.view.values is not None for _, sides in cards for side in sides)
    median = " of the median seed" if any(entry["seeds"] > 1 for entry in shown) else ""
    seen = "the policy and its critic now see" if critic else f"{agent_label(metrics)} now sees"
    reference = {
        "sft": "π_ref, the SFT policy",
        "pretrained": "π_ref, the pretrained model",
        "previous": "π_ref, the policy that the round began with",
    }.get(run.config.reference, "π_ref")
    against = f"The policy{median} against {typeset(reference)}."
    intro = f"{against} Under SFT, the SFT policy’s own words as {escape(seen)} them."
    return samples_page("Before and after", intro, cards)


def samples_page(title: str, intro: str, cards: Sequence[tuple[Prompt, Sequence[Side]]]) -> str:
    """Prompts and the responses to each, with the choice of what colours the tokens; `intro` is HTML."""
    views = [side.judged.view for _, sides in cards for side in sides]
    full = {name: amount for name, amount in scales(views).items() if name in SHADES}
    first = "The first held-out prompt." if len(cards) == 1 else f"The first {len(cards)} held-out prompts, not picked."
    return f"""
<section class="samples" id="samples">
<h2>{title}</h2>
<p>{first} {intro} Point at a token, tap it, or go through them with Tab and the arrow keys, for its figures.</p>
{_switch(full)}
{"".join(_card(prompt, sides, full) for prompt, sides in cards)}
</section>"""


def read_samples(run: ReportRun, names: Sequence[str]) -> list[list[SampleViews]]:
    """Each policy's samples for the first prompts, (policies, prompts); empty where nothing was kept.

    These are the agents' own views, where all of them left some of the same prompts; else what the evaluation wrote.
    """
    for read in (_views_of_agent, _tokens_of_evaluation):
        found = [read(run, name) for name in names]
        if found and all(found) and len({tuple(sample.prompt for sample in samples) for samples in found}) == 1:
            return found
    return []


def _views_of_agent(run: ReportRun, name: str) -> list[SampleViews]:
    kind, _, round, _, seed = name.split("-")
    stage: Any = kind
    return read_views(run.folder.seed(stage, int(round), int(seed)))


def _tokens_of_evaluation(run: ReportRun, name: str) -> list[SampleViews]:
    """Samples with log π and log π_SFT alone."""
    records = read_jsonl(run.folder.stage("evaluate") / "tokens" / f"{name}.jsonl")
    return [
        SampleViews(
            as_prompt(r["prompt"]), _from_tokens(r["prompt"], r["before"]), _from_tokens(r["prompt"], r["after"])
        )
        for r in records
    ]


def _from_tokens(prompt: Any, side: dict[str, Any]) -> JudgedView:
    arrays = {"log_probs": side["log_prob"], "ref_log_probs": side["ref_log_prob"]}
    said = {"tokens": side["tokens"], "others": side.get("others", ())}
    view = EpisodeView.from_dict({"prompt": prompt, "score": side["proxy"]} | said | arrays)
    return JudgedView(view, side["gold"])


def _switch(full: dict[str, float]) -> str:
    """The choice of what colours the tokens, with the scale of each; it works without a script."""
    buttons: list[str] = []
    scales: list[str] = []
    for name, (what, less, more) in SHADES.items():
        if name in full:
            checked = "" if buttons else " checked"
            buttons.append(f'<label><input type="radio" name="by" value="{name}"{checked}><span>{name}</span></label>')
            scales.append(
                f'<div class="shade" data-by="{name}"><span class="ends"><b>{signed(-full[name], 1)}</b> {less}</span>'
                f'<i class="scale"></i><span class="ends">{more} <b>{signed(full[name], 1)}</b></span>'
                f'<span class="what">{typeset(what)}</span></div>'
            )
    return (
        f'<div class="switch"><div class="by" role="radiogroup" aria-label="colour tokens by"><span>colour by</span>'
        f"{''.join(buttons)}</div>{''.join(scales)}</div>"
    )


def _card(prompt: Prompt, sides: Sequence[Side], full: dict[str, float]) -> str:
    """A prompt and the responses to it, side by side."""
    return (
        f'<div class="card"><div class="prompt">prompt: {prompt_html(prompt)}</div>'
        f'<div class="sides{" many" if len(sides) > 3 else ""}">{"".join(_side(side, full) for side in sides)}</div>'
        "</div>"
    )


def _side(side: Side, full: dict[str, float]) -> str:
    view, gold = side.judged
    facts = []
    if gold is not None:
        facts.append(f"gold {signed(gold)}")
    if view.score is not None:
        facts.append(f"score {signed(view.score)}")
    if view.log_ratios is not None and not side.foreign:
        facts.append(f"{signed(float(view.log_ratios.sum()))} nats")
    names = escape(json.dumps([column.name for column in view.columns], ensure_ascii=False), quote=True)
    return (
        f'<div class="side"><h3><span class="ink-{side.kind}">{escape(side.label)}</span>'
        f"<small>{' · '.join(facts)}</small></h3>"
        f'<div class="text" data-names="{names}" role="group" aria-label="{escape(side.label)}: tokens, arrow keys '
        f'move">{_tokens(view, full)}</div></div>'
    )


def _tokens(view: EpisodeView, full: dict[str, float]) -> str:
    parts = []
    for t, token in view.pieces:
        if t is None:  # what others said
            parts.append(f'<span class="said">{escape(token.strip())}</span>')
            continue
        amounts = {column.name: float(column.amounts[t]) for column in view.columns}
        shades = {name: _colour(amounts[name], full[name]) for name in amounts if name in full}
        colours = ";".join(f"--{name}:{colour}" for name, colour in shades.items() if colour)
        style = f' style="{colours}"' if colours else ""
        figures = ",".join(f"{amount:.4g}" for amount in amounts.values())
        bare = token.rstrip(" ") or token  # the space between words is not coloured
        special = " special" if token.strip().startswith("<") and token.strip().endswith(">") else ""
        parts.append(
            f'<span class="tok{special}" tabindex="{0 if t == 0 else -1}" data-f="{figures}"{style}>'
            f"{escape(bare)}</span>{' ' * (len(token) - len(bare))}"
        )
    return "".join(parts)


def _colour(amount: float, full: float) -> str:
    strength = min(abs(amount) / full, 1.0) * 0.62
    return f"rgba(var(--{'more' if amount > 0 else 'less'}),{strength:.2f})" if strength >= 0.01 else ""
