"""Choosing the pairs of a round actively: label a batch, train an ensemble on it, ask what it does not know."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rlhf_gym.lm.loading import load_causal_lm
from rlhf_gym.pipeline.preparation import Run
from rlhf_gym.preferences import Candidate, CandidatePair, Preference, choose_pairs
from rlhf_gym.preferences.active import acquisition_scores, choose_batch
from rlhf_gym.rewards import RewardModel
from rlhf_gym.training import train_reward_model

Label = Callable[[Sequence[CandidatePair], int], list[Preference]]
"""(pairs, part) -> preferences: part counts the batches of the round from 0."""


def label_actively(
    run: Run,
    round: int,
    candidates: Sequence[Candidate],
    count: int,
    label: Label,
    *,
    known: Sequence[Preference],
    folder: Path,
) -> list[Preference]:
    """`count` pairs of these candidates, labelled in `collect.batches` batches, each chosen by what was said before.

    The first batch is chosen at random where nothing is `known` yet. Each later one is chosen by an ensemble of
    `collect.active_members` reward models that are trained, from new heads, on all labels so far.

    Args:
        run: the run.
        round: its round.
        candidates: of any number of prompts.
        count: pairs to be labelled; all of them, where there are not so many.
        label: who says what is preferred.
        known: preferences from before.
        folder: for the ensemble while it is trained; removed afterwards.
    """
    config, seed = run.config.collect, run.config.seed + 1000 * round
    pool = choose_pairs(candidates, "all", seed=seed)
    rng = np.random.default_rng((seed, 1))
    said: list[Preference] = []
    count = min(count, len(pool))
    sizes = [len(part) for part in np.array_split(np.arange(count), min(config.batches, count))] if count else []
    for part, size in enumerate(sizes):
        learned = [*known, *said]
        if learned:
            deltas = member_deltas(_ensemble(run, learned, folder, part), pool)  # (members, pool)
            scores = acquisition_scores(deltas, config.acquisition, mistake_rate=config.mistake_rate)
        else:
            scores = np.ones(len(pool))
        items = [((a.prompt, a.response), (b.prompt, b.response)) for a, b in pool]
        sharpness = math.inf if config.sharpness is None else config.sharpness
        chosen = choose_batch(scores, items, [a.prompt for a, _ in pool], size, rng=rng, sharpness=sharpness)
        said += label([pool[i] for i in chosen], part)
        gone = set(chosen)
        pool = [pair for i, pair in enumerate(pool) if i not in gone]
    shutil.rmtree(folder, ignore_errors=True)
    return said


def member_deltas(members: Sequence[RewardModel], pairs: Sequence[CandidatePair]) -> np.ndarray:
    """r(x, y1) − r(x, y2) of each member, as it was trained and not normalised, (members, pairs). Scores texts once."""
    texts = list(dict.fromkeys((c.prompt, c.response) for pair in pairs for c in pair))
    place = {text: i for i, text in enumerate(texts)}
    prompts, responses = [prompt for prompt, _ in texts], [response for _, response in texts]
    scores = np.stack([m.score_texts(prompts, responses, normalise=False) for m in members])  # (members, texts)
    first = [place[a.prompt, a.response] for a, _ in pairs]
    second = [place[b.prompt, b.response] for _, b in pairs]
    return scores[:, first] - scores[:, second]


def _ensemble(run: Run, preferences: Sequence[Preference], folder: Path, part: int) -> list[RewardModel]:
    """Reward models that differ in their heads, in the order of the data and in the data: each has its own bootstrap.

    Without the bootstrap members that share a trunk hardly differ.
    """
    config = run.config.reward.training
    policy = load_causal_lm(run.sft, dtype=torch.float32)
    members = []
    for i in range(run.config.collect.active_members):
        seed = run.config.seed + i
        rng = np.random.default_rng((seed, part, 2))
        drawn = [preferences[int(j)] for j in rng.integers(len(preferences), size=len(preferences))]
        reward = RewardModel.from_language_model(policy, run.task.tokenizer, seed=seed)
        settings = replace(config, seed=seed, save_steps=0, evaluate_each_epoch=False)
        settings = replace(settings, use_cpu=config.use_cpu or run.device == "cpu")
        place = folder / f"part-{part}-member-{i}"
        shutil.rmtree(place, ignore_errors=True)
        train_reward_model(reward, drawn, heldout=preferences[:1], config=settings, output_dir=place)
        members.append(reward.to(run.device))
    return members
