"""Collecting preferences: candidates from the policy as it stands, and the pairs of them that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.lm.loading import load_causal_lm
from rlhf_gym.pipeline.annotate import annotate
from rlhf_gym.pipeline.preparation import Run
from rlhf_gym.pipeline.samples import draw, write_jsonl
from rlhf_gym.preferences import (
    Candidate,
    CandidatePair,
    Preference,
    choose_pairs,
    read_preferences,
    split_by_prompt,
    write_preferences,
)

PREFERENCES, HELDOUT, CANDIDATES = "preferences.jsonl", "heldout_preferences.jsonl", "candidates.jsonl"


def collect_stage(run: Run, round: int) -> dict[str, Any]:
    """This round's preferences, into its folder: the user's own, or fresh ones about the policy's responses.

    In the first round the SFT policy writes; later each seed's policy writes its share of every prompt's responses.
    """
    folder = run.folder.stage("collect", round)
    folder.mkdir(parents=True, exist_ok=True)
    candidates: list[Candidate] = []
    if run.preferences is not None:
        preferences: Sequence[Preference] = run.preferences
    else:
        candidates = draw_candidates(run, round)
        write_jsonl(folder / CANDIDATES, [asdict(candidate) for candidate in candidates])
        preferences = annotate(run, round, _choose(run, round, candidates))
    # The same hash decides in every round, so that a prompt once held out never comes back to be trained on.
    train, heldout = split_by_prompt(preferences, run.config.collect.heldout_fraction, seed=run.config.seed)
    write_preferences(folder / PREFERENCES, train)
    write_preferences(folder / HELDOUT, heldout)
    return {
        "pairs": len(train),
        "heldout_pairs": len(heldout),
        "prompts": len({p.prompt for p in preferences}),
        "mistaken": float(np.mean([not p.clean for p in preferences])),
        "candidates": len(candidates),
        "annotators": sorted({p.annotator for p in preferences} - {""}),
    }


def collect_line(metrics: dict[str, Any]) -> str:
    """The stage in one line."""
    total = metrics["pairs"] + metrics["heldout_pairs"]
    who = f", compared by: {', '.join(metrics['annotators'])}" if metrics["annotators"] else ""
    mistaken = f", {metrics['mistaken']:.0%} of them by mistake" if metrics["mistaken"] else ""
    return f"{total:,} pairs about {metrics['prompts']:,} prompts{who}{mistaken}; {metrics['heldout_pairs']:,} held out"


def draw_candidates(run: Run, round: int) -> list[Candidate]:
    """`samples_per_prompt` responses to each of this round's prompts, prompt by prompt."""
    config = run.config.collect
    prompts = _prompts(run, round)
    sources = _policies(run, round)
    k = config.samples_per_prompt
    found: dict[int, Candidate] = {}
    for part, (name, source) in enumerate(sources):
        model = load_causal_lm(source, device=run.device)
        for t, temperature in enumerate(config.temperatures):
            # (prompt, copy) pairs of this policy at this temperature: copies take policies and temperatures in turn
            kind = part * len(config.temperatures) + t
            kinds = len(sources) * len(config.temperatures)
            places = [i * k + j for i in range(len(prompts)) for j in range(k) if (i + j) % kinds == kind]
            samples = draw(
                model,
                run.task,
                [prompts[place // k] for place in places],
                seed=run.config.seed + 1000 * round + kind,
                temperature=temperature,
                progress=run.bar(f"responses of {name}"),
            )
            for place, prompt, response in zip(places, samples.prompts, samples.responses, strict=True):
                found[place] = Candidate(prompt, response, source=name, temperature=temperature)
    return [found[place] for place in sorted(found)]


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


def _choose(run: Run, round: int, candidates: Sequence[Candidate]) -> list[CandidatePair]:
    """The pairs to be compared, `num_labels` of them if there are more."""
    seed, budget = run.config.seed + 1000 * round, run.config.collect.num_labels
    pairs = choose_pairs(candidates, run.config.collect.pairing, seed=seed)
    if budget is not None and budget < len(pairs):
        kept = np.random.default_rng((seed, budget)).permutation(len(pairs))[:budget]
        pairs = [pairs[int(i)] for i in sorted(kept)]
    if len({pair.first.prompt for pair in pairs}) < 2:
        raise ValueError(
            f"expected different responses to at least 2 prompts, got {len(pairs)} pairs: the policy writes the same "
            "ones again and again; raise collect.temperatures or collect.samples_per_prompt"
        )
    return pairs


def _prompts(run: Run, round: int) -> list[str]:
    """This round's prompts: the task's, drawn without repetition."""
    prompts = run.task.prompts
    rng = np.random.default_rng((run.config.seed, round))
    chosen = rng.permutation(len(prompts))[: run.config.collect.num_prompts]
    return list(dict.fromkeys(prompts[int(i)] for i in chosen))


def _policies(run: Run, round: int) -> list[tuple[str, str | Path]]:
    """Who writes this round's candidates, by name: the SFT policy, later each seed's policy of the round before."""
    if round == 1:
        return [("the SFT policy", run.sft)]
    return [(f"policy {seed} of round {round - 1}", run.policy(round - 1, seed)) for seed in run.seeds]
