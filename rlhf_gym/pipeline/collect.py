"""Collecting preferences: candidates from the policy as it stands, and the pairs of them that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlhf_gym.files import write_jsonl
from rlhf_gym.pipeline.annotate import annotate
from rlhf_gym.pipeline.candidates import draw_candidates
from rlhf_gym.pipeline.context import Run
from rlhf_gym.pipeline.selection import label_actively
from rlhf_gym.preferences import (
    Candidate,
    CandidatePair,
    Preference,
    choose_pairs,
    read_preferences,
    split_by_prompt,
    write_preferences,
)
from rlhf_gym.ranks import ranks

Record = TypeVar("Record", Candidate, Preference)

PREFERENCES = "preferences.jsonl"
HELDOUT = "heldout_preferences.jsonl"
CANDIDATES = "candidates.jsonl"


def collect_stage(run: Run, round: int) -> dict[str, Any]:
    """This round's preferences, into its folder: the user's own, or fresh ones about the policy's responses.

    By default the SFT policy writes in the first round; later each seed's policy writes its share of every prompt's
    responses.
    """
    folder = run.folder.stage("collect", round)
    writes = ranks().leads
    folder.mkdir(parents=True, exist_ok=True)
    candidates: list[Candidate] = []
    if run.preferences is not None:
        train, heldout = _split_given(run, run.preferences)
    else:
        candidates = draw_candidates(run, round)
        if writes:
            write_jsonl(folder / CANDIDATES, [asdict(candidate) for candidate in candidates])
        train, heldout = _label(run, round, candidates)
    if writes:
        write_preferences(folder / PREFERENCES, train)
        write_preferences(folder / HELDOUT, heldout)
    preferences = train + heldout
    return {
        "pairs": len(train),
        "heldout_pairs": len(heldout),
        "prompts": len({p.prompt for p in preferences}),
        "mistaken": float(np.mean([not p.clean for p in preferences])),
        "candidates": len(candidates),
        "repeated": len(candidates) - len({(c.prompt, c.response) for c in candidates}),
        "annotators": sorted({p.annotator for p in preferences} - {""}),
    }


def all_preferences(run: Run, round: int) -> tuple[list[Preference], list[Preference]]:
    """(train, held out) of this round and all before it."""
    train: list[Preference] = []
    heldout: list[Preference] = []
    for earlier in range(1, round + 1):
        folder = run.folder.stage("collect", earlier)
        train += _read(folder / PREFERENCES)
        heldout += _read(folder / HELDOUT)
    unseen = {p.prompt for p in heldout}  # a split hardly moves as prompts are added, but it may
    return [p for p in train if p.prompt not in unseen], heldout


def _read(path: Path) -> list[Preference]:
    return read_preferences(path)


def _label(run: Run, round: int, candidates: Sequence[Candidate]) -> tuple[list[Preference], list[Preference]]:
    """(train, held out): pairs are chosen and compared.

    Where they are chosen actively, those of held-out prompts are drawn at random all the same: what measures the reward
    model is not to be what it finds hard.
    """
    config = run.config.collect
    seed = run.config.seed + 1000 * round
    if config.pairing != "active":
        pairs = some(choose_pairs(candidates, config.pairing, seed=seed), config.num_labels, seed)
        _check_pairs(pairs)
        return _split(run, annotate(run, round, pairs))
    plain = choose_pairs(candidates, "random", seed=seed)
    _check_pairs(plain)
    count = len(plain) if config.num_labels is None else config.num_labels
    train, heldout = _split(run, candidates)
    aside = some(choose_pairs(heldout, "random", seed=seed), max(1, int(config.heldout_fraction * count + 0.5)), seed)
    measured = annotate(run, round, aside, part=0)
    known = [p for earlier in range(1, round) for p in _read(run.folder.stage("collect", earlier) / PREFERENCES)]
    learned = label_actively(
        run,
        round,
        train,
        count - len(aside),
        lambda batch, part: annotate(run, round, batch, part=part + 1),
        known=known,
        folder=run.folder.stage("collect", round) / "ensemble",
    )
    return learned, measured


def some(pairs: list[CandidatePair], count: int | None, seed: int) -> list[CandidatePair]:
    """`count` of these pairs, drawn at random, in their order; all of them for None or where there are no more."""
    if count is None or count >= len(pairs):
        return pairs
    kept = np.random.default_rng((seed, count)).permutation(len(pairs))[:count]
    return [pairs[int(i)] for i in sorted(kept)]


def _split(run: Run, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """(train, held out). The same hash decides in every round: a prompt once held out is hardly ever trained on."""
    return split_by_prompt(records, run.config.collect.heldout_fraction, seed=run.config.seed)


def _split_given(run: Run, given: Sequence[Preference]) -> tuple[list[Preference], list[Preference]]:
    """(train, held out) of preferences that are there already; those of a task may come apart."""
    if run.config.task.preferences is None and run.task.heldout_preferences:
        return list(given), list(run.task.heldout_preferences)
    return _split(run, given)


def _check_pairs(pairs: Sequence[CandidatePair]) -> None:
    if len({pair.first.prompt for pair in pairs}) < 2:
        raise ValueError(
            f"expected different responses to at least 2 prompts, got {len(pairs)} pairs: the policy writes the same "
            "ones again and again; raise collect.temperatures or collect.samples_per_prompt"
        )
