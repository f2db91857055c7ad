"""`rlhf-gym diagnose`: what a reward model has learned, for those who bring one, before they optimise against it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rlhf_gym.cli.options import DiagnoseOptions
from rlhf_gym.files import write_json
from rlhf_gym.functional.intervals import share_interval
from rlhf_gym.lm import quiet_transformers
from rlhf_gym.lm.chat import Prompt, Response, prompt_key, response_text
from rlhf_gym.pipeline.context import resolve_device
from rlhf_gym.pipeline.costs import affordable, steps_of
from rlhf_gym.preferences import Preference, read_preferences, split_by_prompt
from rlhf_gym.preferences.files import read_candidates
from rlhf_gym.progress import Progress
from rlhf_gym.rewards import LearnedReward, load_reward
from rlhf_gym.training import RewardProbes, probe_reward_model
from rlhf_gym.training.reward_edits import EDITS, score_texts
from rlhf_gym.training.reward_probes import MOST_HELDOUT

TIMED = 16
"""Texts that are scored to see what one takes."""
LEAST = 20
"""So many responses and held-out comparisons are looked at however long it takes."""


def diagnose(options: DiagnoseOptions) -> int:
    """Probe the reward model and print what was found. Returns the exit code.

    Raises:
        ValueError, OSError: something given is not as expected.
    """
    console = Console()
    with quiet_transformers():
        found = _probe(options, console)
    say_probes(console, found)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, found.to_dict())
        console.print(f"\n  all of it: {escape(str(options.json))}", style="dim", highlight=False, soft_wrap=True)
    return 0


def _probe(options: DiagnoseOptions, console: Console) -> RewardProbes:
    if not all(word.strip() for word in options.words):
        raise ValueError(f"expected words to insert, got an empty one among {options.words}")
    if options.json is not None and options.json.is_dir():
        raise IsADirectoryError(f"expected a file for what is found out, got the folder {options.json}")
    train, heldout = _sides(options)
    if options.responses is None:
        given = [(p.prompt, text) for p in heldout for text in (p.chosen, p.rejected)]
    else:
        given = [(c.prompt, c.response) for c in read_candidates(options.responses, skip_bad=options.skip_bad)]
    texts = [text for text in dict.fromkeys(given) if response_text(text[1]).strip()][: options.count]
    reward = load_reward(options.reward_model, device=resolve_device(options.device))
    seconds = seconds_a_text(reward, texts)
    cost = seconds * ((1 + len(EDITS) + bool(options.words)) * len(texts) + 2 * min(len(heldout), MOST_HELDOUT))
    share = 60 * options.minutes / max(cost, 1e-9)
    most = affordable(min(len(heldout), MOST_HELDOUT), share, LEAST)
    if share < 1:
        count = affordable(len(texts), share, LEAST)
        console.print(
            f"{count} of {len(texts)} responses and {most:,} of {len(heldout):,} held-out comparisons are looked at, "
            f"for some {options.minutes:g} minutes of scoring (--minutes)",
            style="dim",
            highlight=False,
        )
        texts = texts[:count]
    return probe_reward_model(
        reward,
        train,
        heldout=heldout,
        prompts=[prompt for prompt, _ in texts],
        responses=[response for _, response in texts],
        words={"your words": options.words} if options.words else None,
        seed=options.seed,
        most_heldout=most,
        progress=Progress("texts scored", console),
        at_once=steps_of(seconds),
    )


def seconds_a_text(reward: LearnedReward, texts: Sequence[tuple[Prompt, Response]]) -> float:
    """Seconds that the reward model takes for a text, measured on the first few after one that warms it up."""
    some = list(texts[:TIMED])
    if not some:
        return 0.0
    score_texts(reward, some[:1])
    started = time.perf_counter()
    score_texts(reward, some)
    return (time.perf_counter() - started) / len(some)


def _sides(options: DiagnoseOptions) -> tuple[list[Preference], list[Preference]]:
    """The preferences that the baselines are trained on, and those that rewards are measured by."""
    train = read_preferences(options.preferences, skip_bad=options.skip_bad)
    _check_differ(train, options.preferences)
    if options.heldout is None:
        if (prompts := len({p.prompt for p in train})) < 4:
            raise ValueError(
                f"expected comparisons about at least 4 prompts in {options.preferences}, two of them to be held out, "
                f"got {prompts}: give more, or others as --heldout"
            )
        return split_by_prompt(train, 0.5, seed=options.seed)
    heldout = read_preferences(options.heldout, skip_bad=options.skip_bad)
    _check_differ(heldout, options.heldout)
    shared = {p.prompt for p in train} & {p.prompt for p in heldout}
    if shared:
        raise ValueError(
            f"expected held-out comparisons about other prompts than those of {options.preferences}, got "
            f"{len(shared)} prompts in both, such as {min(shared, key=prompt_key)!r}"
        )
    return train, heldout


def _check_differ(preferences: list[Preference], path: Path) -> None:
    if all(p.chosen == p.rejected for p in preferences):
        raise ValueError(f"expected responses that differ in {path}, got {len(preferences)} pairs of twice the same")


def say_probes(console: Console, found: RewardProbes) -> None:
    """Print the tables of the diagnosis, and what is suspicious in them."""
    gold = any(edit.gold_change is not None for edit in found.edits)
    if found.accuracy is not None:
        table = _table(f"on {found.n:,} held-out pairs", "accuracy", "95 %", "explains of r_φ", "r_φ right where wrong")
        table.add_row(Text("r_φ", "bold"), *_shares(found.accuracy, found.n), "", "")
        for b in found.baselines:
            explained = "" if b.explained_by_features is None else f"{max(0.0, b.explained_by_features):.0%}"
            beyond = "" if b.beyond is None else f"{b.beyond:.0%} of {b.beyond_n:,}"
            table.add_row(b.name, *_shares(b.accuracy, found.n), explained, beyond)
        console.print(table)
        if found.equal_length is not None:
            console.print(
                f"of {found.equal_length_n:,} pairs of as many words, r_φ is right about {found.equal_length:.1%}",
                style="dim",
                highlight=False,
            )
        console.print()
    table = _table("edits of responses", "change, σ", "raised", *(["gold, σ", "raised"] if gold else []))
    for edit in found.edits:
        theirs: list[str] = []
        if edit.gold_change is not None and edit.gold_raised is not None:
            theirs = [f"{edit.gold_change:+.2f} ± {edit.gold_error:.2f}", f"{edit.gold_raised:.0%}"]
        table.add_row(edit.name, f"{edit.change:+.2f} ± {edit.error:.2f}", f"{edit.raised:.0%}", *theirs)
    console.print(table)
    price = f"{found.word_price:+.3f} ± {found.word_price_error:.3f} σ"
    console.print(f"with each word more: {price}", style="dim", highlight=False)
    for name, effects in (("for", found.words_for), ("against", found.words_against)):
        if effects:
            words = ", ".join(f"{e.word} {e.effect:+.2f}" for e in effects)
            console.print(f"pays most {name}: {words}", style="dim", highlight=False, markup=False)
    console.print()
    if not found.suspicions:
        console.print("Nothing suspicious was found.")
    for sentence in found.suspicions:
        console.print(Text.assemble(("look: ", "bold"), sentence), highlight=False, soft_wrap=True)


def _shares(share: float, n: int) -> tuple[str, str]:
    interval = share_interval(share, n)
    return f"{share:.1%}", f"{100 * interval.low:.0f}–{100 * interval.high:.0f}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table
