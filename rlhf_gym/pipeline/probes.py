"""Probing the reward model of a run, before PPO: SFT responses to held-out prompts, edited; baselines beside r_φ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_gym.lm.chat import response_text
from rlhf_gym.pipeline.context import Run
from rlhf_gym.pipeline.costs import Timing, affordable, allowed, steps_of
from rlhf_gym.pipeline.samples import draw
from rlhf_gym.preferences import Preference
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import LearnedReward
from rlhf_gym.training import probe_reward_model
from rlhf_gym.training.reward_edits import EDITS
from rlhf_gym.training.reward_probes import MOST_HELDOUT

DRAW = 98
"""Keeps the seed of these responses apart from that of the reference samples."""
SLOWER = 1.5
"""A response takes so much longer in a small batch than in that of the reference responses."""
LEAST_RESPONSES = 8
LEAST_PAIRS = 20
"""So many are looked at however long it takes."""


def reward_probes(
    run: Run, reward: LearnedReward, train: Sequence[Preference], heldout: Sequence[Preference], timing: Timing
) -> dict[str, Any]:
    """{"probes": what `probe_reward_model` finds}, for the stage's metrics; empty where `reward.probe_samples` is 0.

    As many responses and held-out pairs are used as a fifth of the stage's time allows.
    """
    if not run.config.reward.probe_samples:
        return {}
    count, pairs = ranks().broadcast(how_many(run, len(heldout), timing), "how much is probed")
    prompts = run.task.heldout_prompts
    chosen = np.random.default_rng((run.config.seed, DRAW)).integers(len(prompts), size=count)
    samples = draw(
        run.load_policy(run.sft),
        run.task,
        [prompts[int(i)] for i in chosen],
        seed=run.config.seed + DRAW,
        progress=run.progress("responses to probe r_φ with"),
    )
    written = [i for i, response in enumerate(samples.responses) if response_text(response).strip()]
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
        most_heldout=pairs,
        progress=run.progress("probes of r_φ, texts scored"),
        at_once=steps_of(timing.get("text")),
    )
    return {"probes": found.to_dict()}


def how_many(run: Run, heldout: int, timing: Timing) -> tuple[int, int]:
    """(responses that are edited, held-out pairs that are looked at). What was decided once holds for the folder.

    Args:
        run: the run.
        heldout: held-out pairs that there are.
        timing: of the stage, which has written and scored the reference responses.
    """
    wanted = run.config.reward.probe_samples
    if "probed_responses" not in timing:
        text = timing.get("text")
        cost = wanted * (timing.get("response") + (1 + len(EDITS)) * text) + 2 * min(heldout, MOST_HELDOUT) * text
        share = (allowed(timing.get("training")) - timing.get("examination")) / max(SLOWER * cost, 1e-9)
        timing.keep("probed_responses", affordable(wanted, share, LEAST_RESPONSES))
        timing.keep("probed_pairs", affordable(min(heldout, MOST_HELDOUT), share, LEAST_PAIRS))
    count = int(timing.get("probed_responses"))
    pairs = int(timing.get("probed_pairs"))
    if count < wanted:
        run.console.print(
            f"  probes of r_φ: {count} of {wanted} responses and {pairs:,} of {heldout:,} held-out pairs, for a "
            "fifth of the time of its training",
            style="dim",
            highlight=False,
        )
    return count, pairs
