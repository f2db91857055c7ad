"""What the sampling temperature does to preference data, on the embedded reviews.

    python scripts/sampling_study.py            # a table, and docs/images/sampling.png; a few minutes on one core
    python scripts/sampling_study.py --seeds 1  # quicker, without error bars

At each temperature the SFT policy writes 4 responses to each of 400 prompts, which are paired at random. Two simulated
annotators, who doubt and err, compare every pair; a reward model is trained on what the first of them says. It is
measured on pairs of prompts it has not seen, as gold orders them: pairs drawn at the same temperature, and pairs drawn
at all of them, which are the same for every row.

Left out: other policies than the SFT policy, top-p, and PPO on these reward models.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import cohen_kappa_score
from study import COLOURS, IMAGES, REWARD_TRAINING, picture, text_table
from transformers import PreTrainedModel

from rlhf_gym.functional import distinct_n
from rlhf_gym.lm import load_causal_lm, quiet_transformers
from rlhf_gym.pipeline import draw
from rlhf_gym.preferences import (
    BradleyTerryAnnotator,
    Candidate,
    CandidatePair,
    Preference,
    choose_pairs,
)
from rlhf_gym.rewards import RewardModel
from rlhf_gym.tasks import Task, reviews_task
from rlhf_gym.training import evaluate_reward_model, train_reward_model

TEMPERATURES = (0.3, 0.7, 1.0, 1.3, 1.6)
COPIES = 4
DOUBT = 0.5  # the annotators' temperature, in gold's unit, and the share of their answers turned round
MISTAKES = 0.05  # the annotators' temperature, in gold's unit, and the share of their answers turned round


class Row(NamedTuple):
    """What one temperature gives with one seed."""

    identical: float
    """Share of pairs of responses to one prompt that are the same text."""
    distinct: float
    """Distinct pairs of neighbouring words over all pairs, among all responses."""
    difference: float
    """1 − the share of words that two responses of a pair have in common, in order."""
    gap: float
    """Mean of |gold(y1) − gold(y2)|."""
    agreement: float
    """Share of pairs on which both annotators agree."""
    kappa: float
    """Cohen's κ of the two."""
    accuracy: float
    """Held-out accuracy of r_φ, pairs of the same temperature."""
    accuracy_all: float
    """The same on pairs of all temperatures."""


def study(task: Task, seed: int, num_prompts: int) -> list[Row]:
    """A row for each temperature."""
    policy = load_causal_lm(task.sft, dtype=torch.float32)
    rng = np.random.default_rng(seed)
    prompts = [task.prompts[int(i)] for i in rng.permutation(len(task.prompts))[:num_prompts]]
    others = [task.heldout_prompts[int(i)] for i in rng.permutation(len(task.heldout_prompts))[: num_prompts // 2]]
    judge = BradleyTerryAnnotator(task.gold, temperature=0, seed=seed)
    drawn = [candidates(policy, task, prompts, t, seed) for t in TEMPERATURES]
    unseen = [choose_pairs(candidates(policy, task, others, t, seed + 1)) for t in TEMPERATURES]
    heldout = [judge.label(decided(task, pairs)) for pairs in unseen]
    every = [p for part in heldout for p in part]
    rows = []
    for found, own in zip(drawn, heldout, strict=True):
        pairs = choose_pairs(found, "random", seed=seed)
        said = [BradleyTerryAnnotator(task.gold, DOUBT, MISTAKES, (seed, i)).label(pairs) for i in (0, 1)]
        sides = [[p.chosen == pair.first.response for p, pair in zip(labels, pairs, strict=True)] for labels in said]
        reward = learn(policy, task, said[0], seed)
        rows.append(
            Row(
                identical(found),
                distinct_n([c.response.split() for c in found], 2),
                float(np.mean([difference(pair) for pair in pairs])),
                float(np.mean(np.abs(gaps(task, pairs)))),
                float(np.mean([a == b for a, b in zip(*sides, strict=True)])),
                float(cohen_kappa_score(*sides)),
                evaluate_reward_model(reward, own).accuracy,
                evaluate_reward_model(reward, every).accuracy,
            )
        )
    return rows


def candidates(
    policy: PreTrainedModel, task: Task, prompts: Sequence[str], temperature: float, seed: int
) -> list[Candidate]:
    """Responses, `COPIES` to each prompt."""
    copies = [prompt for prompt in prompts for _ in range(COPIES)]
    samples = draw(policy, task, copies, seed=seed, temperature=temperature)
    return [Candidate(*pair, temperature=temperature) for pair in zip(copies, samples.responses, strict=True)]


def identical(found: Sequence[Candidate]) -> float:
    """Share of the pairs of responses to one prompt that are the same text."""
    texts = np.array([c.response for c in found]).reshape(-1, COPIES)  # (prompts, copies)
    same = (texts[:, :, None] == texts[:, None]).sum(axis=(1, 2)) - COPIES  # (prompts,)
    return float(same.mean() / (COPIES * (COPIES - 1)))


def difference(pair: CandidatePair) -> float:
    """1 − 2·(words in common, in order)/(words of both): 0 for twice the same, 1 where nothing is shared."""
    return 1 - SequenceMatcher(None, pair.first.response.split(), pair.second.response.split(), autojunk=False).ratio()


def gaps(task: Task, pairs: Sequence[CandidatePair]) -> np.ndarray:
    """gold(y1) − gold(y2), (pairs,)."""
    sides = [[pair[i] for pair in pairs] for i in (0, 1)]
    first, second = (np.asarray(task.gold([c.prompt for c in side], [c.response for c in side])) for side in sides)
    return first - second


def decided(task: Task, pairs: list[CandidatePair]) -> list[CandidatePair]:
    """The pairs that gold tells apart."""
    return [pair for pair, gap in zip(pairs, gaps(task, pairs), strict=True) if gap != 0]


def learn(policy: PreTrainedModel, task: Task, preferences: Sequence[Preference], seed: int) -> RewardModel:
    """Train a reward model on these pairs."""
    reward = RewardModel.from_language_model(policy, task.tokenizer, seed=seed)
    config = replace(REWARD_TRAINING, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        train_reward_model(reward, preferences, heldout=preferences[:1], config=config, output_dir=folder)
    return reward


def mean_and_errors(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over the first axis, the seeds; the error of a single seed is 0."""
    return rows.mean(axis=0), rows.std(axis=0, ddof=1 if len(rows) > 1 else 0) / np.sqrt(len(rows))


def table(rows: np.ndarray) -> str:
    """Mean ± standard error over the seeds of (seeds, temperatures, columns)."""
    header = ("T", "identical", "distinct-2", "difference", "|gold gap|", "agreement", "κ", "r_φ, own T", "r_φ, all T")
    lines = []
    for temperature, values, errors in zip(TEMPERATURES, *mean_and_errors(rows), strict=True):
        lines.append([str(temperature), *(f"{v:.3f} ± {e:.3f}" for v, e in zip(values, errors, strict=True))])
    return text_table(header, lines)


def draw_figure(rows: np.ndarray, path: Path) -> None:
    """Three panels over temperature: how different the pairs are, how far annotators agree, how right r_φ is."""
    panels = {
        "pairs: how different": {
            "distinct": "distinct-2",
            "difference": "words that differ",
            "identical": "identical pairs",
        },
        "two annotators who doubt": {"agreement": "agree", "kappa": "Cohen's κ"},
        "r_φ, held-out accuracy": {
            "accuracy": "on pairs of its own temperature",
            "accuracy_all": "on pairs of all temperatures",
        },
    }
    with picture(path, 1, 3, (11, 3.4)) as axes:
        for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
            for colour, (name, label) in zip(COLOURS, curves.items(), strict=False):
                mean, error = mean_and_errors(rows[:, :, Row._fields.index(name)])  # (temperatures,) each
                axis.errorbar(TEMPERATURES, mean, error, color=colour, label=label, marker="o", markersize=4, capsize=2)
            axis.set(title=title, xlabel="sampling temperature", xticks=TEMPERATURES)
            axis.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--picture", type=Path, default=IMAGES / "sampling.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = reviews_task()
    with quiet_transformers():
        rows = np.array([study(task, seed, options.prompts) for seed in range(options.seeds)])  # (seeds, T, columns)
    print(table(rows))
    draw_figure(rows, options.picture)


if __name__ == "__main__":
    main()
