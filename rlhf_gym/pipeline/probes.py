"""Probing the reward model of a run, before PPO: SFT responses to held-out prompts, edited; baselines beside r_φ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_gym.pipeline.context import Run
from rlhf_gym.pipeline.samples import draw
from rlhf_gym.preferences import Preference
from rlhf_gym.rewards import LearnedReward
from rlhf_gym.training import probe_reward_model

DRAW = 98
"""Keeps the seed of these responses apart from that of the reference samples."""


def reward_probes(
    run: Run, reward: LearnedReward, train: Sequence[Preference], heldout: Sequence[Preference]
) -> dict[str, Any]:
    """{"probes": what `probe_reward_model` finds}, for the stage's metrics; empty where `reward.probe_samples` is 0."""
    count = run.config.reward.probe_samples
    if not count:
        return {}
    prompts = run.task.heldout_prompts
    chosen = np.random.default_rng((run.config.seed, DRAW)).integers(len(prompts), size=count)
    samples = draw(
        run.load_policy(run.sft),
        run.task,
        [prompts[int(i)] for i in chosen],
        seed=run.config.seed + DRAW,
        progress=run.bar("responses to probe with"),
    )
    written = [i for i, response in enumerate(samples.responses) if response.strip()]
    samples = samples.take(written)
    if len(samples) < 2:
        return {}  # nothing to edit
    if len({p.prompt for p in train}) < 2:
        train = []  # too few for baselines: how strongly to hold their weights is tried on other prompts
    reward.lend_tokenizer(run.task.tokenizer)  # one without a tokenizer has the run's: `prepare` has seen to that
    found = probe_reward_model(
        reward,
        train,
        heldout=heldout,
        prompts=samples.prompts,
        responses=samples.responses,
        gold=run.task.gold,
        seed=run.config.seed,
    )
    return {"probes": found.to_dict()}
