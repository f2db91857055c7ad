"""The comparison as a Markdown table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from comparisons.agents import ENTRANTS
from comparisons.places import HELDOUT, NEAR, REVIEWS_BETA, PlaceName
from comparisons.results import Result, Results, Selection, median, median_needed, tokens_a_second, worst

TITLES: dict[PlaceName, str] = {"tabular": "table", "gpt2": "GPT-2", "reviews": "Reviews"}
CLOSE = "tokens to J* − " + f"{NEAR:g}".removeprefix("0")
COLUMNS: dict[PlaceName, tuple[str, ...]] = {
    "tabular": ("J* − J", "TV", CLOSE),
    "gpt2": ("J* − J", "TV", CLOSE),
    "reviews": ("wins against SFT", "KL, nats", "tokens/s"),
}


def markdown(selection: Selection, results: Results) -> str:
    """One row an agent, a few columns a place, and below what the figures are."""
    heads = [f"{TITLES[place]}: {column}" for place in selection.environments for column in COLUMNS[place]]
    lines = [f"| agent | goes to | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for agent in selection.agents:
        found = {place: selection.found(results, place, agent) for place in selection.environments}
        if any(found.values()):
            cells = [cell for place, runs in found.items() for cell in _cells(place, agent, runs)]
            lines.append(f"| `{agent}` | {ENTRANTS[agent].aim} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_notes(selection, results)]) + "\n"


def _cells(place: PlaceName, agent: str, runs: Sequence[Result]) -> list[str]:
    if not runs:
        return ["–"] * len(COLUMNS[place])
    if place == "reviews":
        rate = _number(tokens_a_second(runs), ",.0f") if any(run.tokens for run in runs) else "–"
        return [f"{median(runs, 'wins'):.1%}", _kl(agent, runs), rate]
    needed = _number(median_needed(runs), ",.0f") if any(run.tokens for run in runs) else "–"
    return [_with_worst(runs, "gap"), _with_worst(runs, "variation"), needed]


def _with_worst(runs: Sequence[Result], figure: str) -> str:
    """The median, and in brackets the worst of several."""
    middle = _short(median(runs, figure))
    return f"{middle} ({_short(worst(runs, figure))})" if len(runs) > 1 else middle


def _kl(agent: str, runs: Sequence[Result]) -> str:
    return f"{'≤ ' if agent.startswith('BestOf') else ''}{median(runs, 'kl'):.1f}"


def _short(value: float) -> str:
    """Four places below .1, two above."""
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 0.1 else f"{value:.2f}".replace("0.", ".", 1)


def _number(value: float, form: str) -> str:
    return "never" if math.isnan(value) else format(value, form)


def _notes(selection: Selection, results: Results) -> list[str]:
    """Seeds and budgets, and where π_ref and the mode of π* stand."""
    lines = []
    for place in selection.environments:
        runs = [run for agent in selection.agents for run in selection.found(results, place, agent)]
        if not runs:
            continue
        found = sorted({run.seed for run in runs})
        seeds = f"seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
        over = f"median over {seeds} (in brackets the worst)" if len(found) > 1 else seeds
        budget = f"{selection.budgets[place]:,} tokens each"
        if place == "reviews":
            lines.append(
                f"- {TITLES[place]}: `rlhf_gym/Reviews-v0`, β = {REVIEWS_BETA}, {HELDOUT} held-out prompts judged by "
                f"gold; {budget}, {seeds}; tokens per second of processor time, one thread, on a busy machine."
            )
        else:
            lines.append(
                f"- {TITLES[place]}: 4 tokens, 3 steps, β = .5; {over}, "
                f"{budget}. π_ref: J* − J = {_short(median(runs, 'gap_of_reference'))}; the mode of π*, alone: "
                f"{_short(median(runs, 'gap_of_mode'))}{_modes(selection, results, place)}."
            )
    return lines


def _modes(selection: Selection, results: Results, place: PlaceName) -> str:
    """How often the value-based agents found what they look for."""
    parts = []
    for agent in selection.agents:
        runs = selection.found(results, place, agent)
        if runs and ENTRANTS[agent].group == "value-based":
            found = sum(run.figures["finds_mode"] == 1 for run in runs)
            parts.append(f"{agent} says it on {found} of {len(runs)} seed{'s' if len(runs) > 1 else ''}")
    return f" ({', '.join(parts)})" if parts else ""
