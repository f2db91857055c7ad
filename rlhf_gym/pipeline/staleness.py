"""Which round's reward model is right about which round's policy: how r_φ goes stale, and recovers."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_gym.functional import rightness
from rlhf_gym.pipeline.collect import HELDOUT, PREFERENCES
from rlhf_gym.pipeline.context import Run
from rlhf_gym.preferences import Preference, read_preferences
from rlhf_gym.rewards import function_scores
from rlhf_gym.training import score_pairs


def staleness(run: Run, round: int) -> dict[str, Any]:
    """The accuracy of r_φ of rounds i = 1 … round on the held-out pairs of rounds j = 1 … round.

    The pairs of round j are about responses of the policies of round j − 1, the SFT policy where j = 1. Read down a
    column: what retraining did. Read along a row: how a reward model fares as the policy moves away from the responses
    that it was trained on. Only pairs about prompts that no round trained on are counted.

    Returns:
        {"staleness": {"pairs": (round,) counts, "accuracy": (round, round), "gold": (round,)}}: gold is how often the
        task's gold reward agrees with the same labels, what a perfect reward model would score; None without one.
        Empty in the first round, and where there are no pairs that nothing was trained on.
    """
    columns = heldout_by_round(run, round)
    if round == 1 or not all(columns):
        return {}
    table = []
    for i in range(1, round + 1):
        reward = run.load_reward(i)
        table.append([float(score_pairs(reward, column).right.mean()) for column in columns])
    gold = None if run.task.gold is None else [_gold_accuracy(run, column) for column in columns]
    return {"staleness": {"pairs": [len(column) for column in columns], "accuracy": table, "gold": gold}}


def heldout_by_round(run: Run, round: int) -> list[list[Preference]]:
    """The held-out pairs of each round, without those about a prompt that any round trained on."""
    folders = [run.folder.stage("collect", earlier) for earlier in range(1, round + 1)]
    trained = {p.prompt for folder in folders for p in read_preferences(folder / PREFERENCES)}
    return [[p for p in read_preferences(folder / HELDOUT) if p.prompt not in trained] for folder in folders]


def _gold_accuracy(run: Run, preferences: list[Preference]) -> float:
    assert run.task.gold is not None
    prompts = [p.prompt for p in preferences]
    sides = [[p.chosen for p in preferences], [p.rejected for p in preferences]]
    scores = [function_scores(run.task.gold, prompts, side, source="the gold reward") for side in sides]
    return float(np.mean(rightness(scores[0].astype(np.float64) - scores[1])))
