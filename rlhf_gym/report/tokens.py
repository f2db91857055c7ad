"""Tokens on the report: coloured by KL, value, return or advantage, their figures at the pointer or the focus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from rlhf_gym.envs import EpisodeView
from rlhf_gym.envs.view import scales, signed
from rlhf_gym.files import read_jsonl
from rlhf_gym.report.parts import typeset
from rlhf_gym.runs.folder import RunFolder
from rlhf_gym.runs.records import read_views

SHADES = {
    "KL": ("log π − log π_ref of each token: what the policy has come to prefer, what it avoids", "less likely",
           "more likely"),
    "value": ("V(s), what the critic foresees before it says the token", "bad end foreseen", "good end foreseen"),
    "return": ("what came of it from here on: the critic’s target, without a critic the rewards to come", "low",
               "high"),
    "advantage": ("how much better the token was than the critic foresaw (GAE, not whitened)", "worse than foreseen",
                  "better"),
}  # fmt: skip
"""What tokens can be coloured by: what it is, and what the two ends of the scale mean."""


class Side(NamedTuple):
    """A response on the page."""

    label: str
    """Who wrote it."""
    kind: str
    """The class that colours the label."""
    view: EpisodeView
    """The response."""
    gold: float | None
    """Its gold reward, where there is one."""
    foreign: bool = False
    """Whether another policy than the one that sees it has written it."""


class Pair(NamedTuple):
    """What was and is said to a prompt."""

    prompt: str
    """The prompt."""
    before: tuple[EpisodeView, float | None]
    """The SFT policy's response as the trained one sees it, and its gold."""
    after: tuple[EpisodeView, float | None]
    """The trained policy's own, and its gold."""


def kept_views(folder: RunFolder, name: str) -> list[Pair]:
    """The views that a seed's agent left, by the name its evaluation goes by; empty where it left none."""
    kind, _, round, _, seed = name.split("-")
    path = folder.seed("unleashed" if kind == "unleashed" else "ppo", int(round), int(seed))
    return [Pair(prompt, *sides) for prompt, *sides in read_views(path)]


def evaluated_tokens(folder: RunFolder, name: str) -> list[Pair]:
    """What the evaluation wrote of the same: log π and log π_SFT alone."""
    path = folder.stage("evaluate") / "tokens" / f"{name}.jsonl"
    return [
        Pair(
            record["prompt"], _from_tokens(record["prompt"], record["before"]),
            _from_tokens(record["prompt"], record["after"]),
        )
        for record in read_jsonl(path)
    ]  # fmt: skip


def _from_tokens(prompt: str, side: dict) -> tuple[EpisodeView, float | None]:
    arrays = {"log_probs": side["log_prob"], "ref_log_probs": side["ref_log_prob"]}
    data = {"prompt": prompt, "tokens": side["tokens"], "score": side["proxy"]} | arrays
    return EpisodeView.from_dict(data), side["gold"]


def switch(full: dict[str, float]) -> str:
    """What to colour by, with the scale of each; the choice is the page's, and is made without a script."""
    shades = [name for name in SHADES if name in full]
    buttons = "".join(
        f'<label><input type="radio" name="by" value="{name}"{" checked" * (i == 0)}><span>{name}</span></label>'
        for i, name in enumerate(shades)
    )
    legends = "".join(
        f'<div class="shade" data-by="{name}"><span class="ends"><b>{signed(-full[name], 1)}</b> {less}</span>'
        f'<i class="scale"></i><span class="ends">{more} <b>{signed(full[name], 1)}</b></span>'
        f'<span class="what">{typeset(what)}</span></div>'
        for name in shades
        for what, less, more in [SHADES[name]]
    )
    return (
        f'<div class="switch"><div class="by" role="radiogroup" aria-label="colour tokens by"><span>colour by</span>'
        f"{buttons}</div>{legends}</div>"
    )


def card(prompt: str, sides: Sequence[Side], full: dict[str, float]) -> str:
    """A prompt and the responses to it, side by side."""
    return (
        f'<div class="card"><div class="prompt">prompt: <b>{escape(prompt)}</b></div>'
        f'<div class="sides{" many" if len(sides) > 3 else ""}">{"".join(_side(side, full) for side in sides)}</div>'
        "</div>"
    )


def shared_scales(sides: Sequence[Side]) -> dict[str, float]:
    """One scale for all the responses of a page, by quantity."""
    return {name: amount for name, amount in scales([side.view for side in sides]).items() if name in SHADES}


def _side(side: Side, full: dict[str, float]) -> str:
    view, facts = side.view, []
    if side.gold is not None:
        facts.append(f"gold {signed(side.gold)}")
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
    columns = view.columns
    shaded = [column for column in columns if column.name in full]
    parts = []
    for t, token in enumerate(view.tokens):
        figures = ",".join(f"{float(column.amounts[t]):.4g}" for column in columns)
        colours = ";".join(
            f"--{c.name}:{colour}" for c in shaded if (colour := _colour(float(c.amounts[t]), full[c.name]))
        )
        bare = token.rstrip(" ") or token  # the space between words is nobody's
        special = " special" if token.strip().startswith("<") and token.strip().endswith(">") else ""
        style = f' style="{colours}"' if colours else ""
        parts.append(
            f'<span class="tok{special}" tabindex="{0 if t == 0 else -1}" data-f="{figures}"{style}>'
            f"{escape(bare)}</span>{' ' * (len(token) - len(bare))}"
        )
    return "".join(parts)


def _colour(amount: float, full: float) -> str:
    strength = min(abs(amount) / full, 1.0) * 0.62
    return f"rgba(var(--{'more' if amount > 0 else 'less'}),{strength:.2f})" if strength >= 0.01 else ""
