"""Active selection of a round's pairs: label a batch, train an ensemble on it, choose the next by its uncertainty."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rlhf_gym.lm.chat import Prompt, Response
from rlhf_gym.lm.loading import load_causal_lm
from rlhf_gym.pipeline.context import Run
from rlhf_gym.preferences import Candidate, CandidatePair, Preference, choose_pairs
from rlhf_gym.preferences.active import acquisition_scores, choose_batch
from rlhf_gym.preferences.pairing import score_differences
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import RewardModel
from rlhf_gym.training import train_reward_model

Label = Callable[[Sequence[CandidatePair], int], list[Preference]]
"""(pairs, part) -> preferences; `part` counts the batches of the round from 0."""


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
    """Label `count` pairs of these candidates in `collect.batches` batches, each chosen by the labels so far.

    The first batch is chosen at random where nothing is `known` yet. Each later one is chosen by an ensemble of
    `collect.active_members` reward models that are trained, from new heads, on all labels so far.

    Args:
        run: the run.
        round: its round.
        candidates: candidates of any number of prompts.
        count: how many pairs are labelled; all of them where there are fewer.
        label: the annotator.
        known: preferences from earlier rounds.
        folder: a folder for the ensemble while it is trained; it is removed afterwards.
    """
    config = run.config.collect
    seed = run.config.seed + 1000 * round
    sharpness = math.inf if config.sharpness is None else config.sharpness
    pool = choose_pairs(candidates, "all", seed=seed)
    rng = np.random.default_rng((seed, 1))
    labelled: list[Preference] = []
    count = min(count, len(pool))
    parts = np.array_split(np.arange(count), min(config.batches, count)) if count else []
    for part, batch in enumerate(parts):
        learned = [*known, *labelled]
        scores = np.ones(len(pool))
        if learned:
            deltas = member_deltas(_ensemble(run, learned, folder, part), pool)  # (members, pool)
            scores = acquisition_scores(deltas, config.acquisition, mistake_rate=config.mistake_rate)
        prompts = [first.prompt for first, _ in pool]
        chosen = choose_batch(scores, prompts, len(batch), rng=rng, sharpness=sharpness)
        labelled += label([pool[i] for i in chosen], part)
        gone = set(chosen)
        pool = [pair for i, pair in enumerate(pool) if i not in gone]
    if ranks().leads:
        shutil.rmtree(folder, ignore_errors=True)
    return labelled


def member_deltas(members: Sequence[RewardModel], pairs: Sequence[CandidatePair]) -> np.ndarray:
    """r(x, y1) − r(x, y2) of each member without normalisation, (members, pairs).

    Of several ranks each scores a share of the responses.
    """

    def score_some(own: Sequence[tuple[Prompt, Response]]) -> list[np.ndarray]:
        prompts, responses = map(list, zip(*own, strict=True))
        return list(np.stack([member.score_texts(prompts, responses, normalise=False) for member in members], axis=1))

    def score(prompts: list[Prompt], responses: list[Response]) -> np.ndarray:
        texts = list(zip(prompts, responses, strict=True))
        return np.stack(ranks().spread(texts, score_some, "scores of the pool"), axis=1)  # (members, texts)

    return score_differences(score, pairs)


def _ensemble(run: Run, preferences: Sequence[Preference], folder: Path, part: int) -> list[RewardModel]:
    """Reward models with their own heads, orders of the data and bootstraps. Without bootstraps they hardly differ."""
    training = run.config.reward.training
    use_cpu = training.use_cpu or run.device == "cpu"
    policy = load_causal_lm(run.sft, dtype=torch.float32)
    members = []
    for i in range(run.config.collect.active_members):
        seed = run.config.seed + i
        rng = np.random.default_rng((seed, part, 2))
        drawn = [preferences[int(j)] for j in rng.integers(len(preferences), size=len(preferences))]
        reward = RewardModel.from_language_model(policy, run.task.tokenizer, seed=seed)
        config = replace(training, seed=seed, save_steps=0, evaluate_each_epoch=False, use_cpu=use_cpu)
        place = folder / f"part-{part}-member-{i}"
        if ranks().leads:
            shutil.rmtree(place, ignore_errors=True)
        train_reward_model(reward, drawn, heldout=preferences[:1], config=config, output_dir=place)
        members.append(reward.to(run.device))
    return members
