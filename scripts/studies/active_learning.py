"""How many labels active selection saves, on the embedded reviews with a fifth of all labels wrong.

    python scripts/studies/active_learning.py       # tables; about five minutes on one core

The instrument is quick and fair: reward models that are linear in the SFT policy's own states (its embeddings and its
last layer, summed over the response), fitted anew to all labels after every batch. Each seed has prompts, responses,
noise and held-out prompts of its own. Accuracy is on held-out pairs as gold orders them, without noise. Which way of
choosing is best is settled on seeds 0-4, what it saves is told from five others.

Then full reward models, the trunk trained with the head, learn from the same number of labels chosen at random, chosen
by the linear ones, and chosen by an ensemble of their own as `rlhf-gym collect --collect.pairing active` does it: what
is informative depends on who is to learn from it.

Left out: annotators who doubt close calls (the labels that are wrong are so by chance), and PPO on what comes out.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import study
import torch

from rlhf_gym.functional import fit_preference_weights
from rlhf_gym.lm import load_causal_lm, quiet_transformers
from rlhf_gym.pipeline import draw, label_actively
from rlhf_gym.preferences import (
    Acquisition,
    BradleyTerryAnnotator,
    Candidate,
    CandidatePair,
    Preference,
    acquisition_scores,
    choose_batch,
    choose_pairs,
)
from rlhf_gym.settings import RunConfig
from rlhf_gym.tasks import Task, reviews_task
from rlhf_gym.training import evaluate_reward_model

MISTAKES = 0.2
PROMPTS = 300
HELDOUT_PROMPTS = 200
COPIES = 8
TEMPERATURES = (1.0, 1.3)
FIRST = 200
BATCH = 100
TOTAL = 1600
MEMBERS = 4
PRIOR = 100.0
DEVELOPMENT = range(5)
FRESH = range(100, 105)
FULL_SEEDS = 3  # of the fresh ones, for the full reward models


class Way(NamedTuple):
    """A way to choose pairs for labelling."""

    acquisition: Acquisition | None
    """The acquisition score that chooses; None chooses at random."""
    sharpness: float = 1.0
    """How greedily pairs are chosen: the exponent of the acquisition score."""

    def __str__(self) -> str:
        how = "greedily" if math.isinf(self.sharpness) else f"sharpness {self.sharpness:g}"
        return "random" if self.acquisition is None else f"{self.acquisition}, {how}"


RANDOM = Way(None)
WAYS = (
    RANDOM,
    Way("uncertainty"),
    Way("uncertainty", math.inf),
    Way("information"),
    Way("information", 4.0),
    Way("disagreement"),
)


@dataclass(frozen=True, eq=False)
class Pool:
    """What one seed chooses from and is measured on."""

    pairs: list[CandidatePair]
    """All pairs of responses to one prompt."""
    features: np.ndarray
    """The features of the first response less those of the second, (pairs, D)."""
    first_is_said: np.ndarray
    """The annotator's answer to each pair, (pairs,)."""
    heldout: list[Preference]
    """Pairs of other prompts, as gold orders them."""
    heldout_features: np.ndarray
    """Of the chosen less those of the rejected response, (held out, D)."""

    def preferences(self, indices: Sequence[int]) -> list[Preference]:
        """What the annotator says about these pairs."""
        sides = [self.pairs[i] if self.first_is_said[i] else self.pairs[i][::-1] for i in indices]
        return [Preference(chosen.prompt, chosen.response, rejected.response) for chosen, rejected in sides]


def make_pool(task: Task, seed: int) -> Pool:
    """Draw the prompts, responses and labels of a seed."""
    rng = np.random.default_rng(seed)
    prompts = [task.prompts[int(i)] for i in rng.permutation(len(task.prompts))[:PROMPTS]]
    others = [task.heldout_prompts[int(i)] for i in rng.permutation(len(task.heldout_prompts))[:HELDOUT_PROMPTS]]
    pairs, state = candidate_pairs(task, prompts, seed)
    other_pairs, other_state = candidate_pairs(task, others, seed + 10_000)
    scale = np.std(list(state.values()), axis=0)  # (D,)
    truth = BradleyTerryAnnotator(task.gold, temperature=0.0, mistake_rate=MISTAKES, seed=seed).label(pairs)
    gold = BradleyTerryAnnotator(task.gold, temperature=0.0)
    clear = [pair for pair, p in zip(other_pairs, gold.probabilities(other_pairs), strict=True) if p != 0.5]
    heldout = gold.label([clear[int(i)] for i in rng.permutation(len(clear))[:4000]])
    sides = [[Candidate(p.prompt, text) for text in (p.chosen, p.rejected)] for p in heldout]
    return Pool(
        pairs,
        np.stack([state[a] - state[b] for a, b in pairs]) / scale,
        np.array([p.chosen == pair.first.response for p, pair in zip(truth, pairs, strict=True)]),
        heldout,
        np.stack([other_state[chosen] - other_state[rejected] for chosen, rejected in sides]) / scale,
    )


@torch.no_grad()
def candidate_pairs(
    task: Task, prompts: Sequence[str], seed: int
) -> tuple[list[CandidatePair], dict[Candidate, np.ndarray]]:
    """All pairs of different responses to each prompt, and each response's features (2H,).

    The features are the embeddings and the last states, each summed over the response.
    """
    policy = load_causal_lm(task.sft, dtype=torch.float32)
    copies = [prompt for prompt in prompts for _ in range(COPIES // len(TEMPERATURES))]
    state: dict[Candidate, np.ndarray] = {}
    for i, temperature in enumerate(TEMPERATURES):
        samples = draw(policy, task, copies, seed=2 * seed + i, temperature=temperature)
        ids, action_mask, _ = samples.rows()  # (B, L), (B, L), (B,)
        for rows in torch.arange(len(ids)).split(256):
            embedded = policy.get_input_embeddings()(ids[rows])  # (b, L, H)
            out = policy.base_model(inputs_embeds=embedded, output_hidden_states=True).hidden_states
            sums = [(h * action_mask[rows][..., None]).sum(dim=1) for h in (out[0], out[-1])]  # (b, H) each
            for row, feature in zip(rows.tolist(), torch.cat(sums, dim=1).double().numpy(), strict=True):
                state.setdefault(Candidate(samples.prompts[row], samples.responses[row]), feature)
    return choose_pairs(list(state), "all", seed=seed), state


def fit_linear(differences: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """w (D,) of r = w·f with a Gaussian prior, PRIOR/2·‖w‖², from features of chosen less rejected, (n, D)."""
    return fit_preference_weights(differences, l2=PRIOR / weight.sum(), weight=weight)


def curve(pool: Pool, way: Way, seed: int) -> tuple[np.ndarray, list[int]]:
    """Held-out accuracy after each batch, and the pairs in the order in which they were labelled."""
    rng = np.random.default_rng((seed, 5))
    everything = rng.permutation(len(pool.pairs))
    asked = everything[:FIRST].tolist()
    found = []
    while True:
        told = pool.features[asked] * np.where(pool.first_is_said[asked], 1, -1)[:, None]  # (asked, D)
        w = fit_linear(told, np.ones(len(asked)))
        found.append(float((pool.heldout_features @ w > 0).mean()))
        if len(asked) >= TOTAL:
            return np.array(found), asked
        left = np.setdiff1d(everything, asked)
        if way.acquisition is None:
            asked += rng.choice(left, BATCH, replace=False).tolist()
            continue
        bootstraps = [rng.poisson(1.0, len(asked)).astype(float) for _ in range(MEMBERS)]
        deltas = np.stack([pool.features[left] @ fit_linear(told, b) for b in bootstraps])  # (members, left)
        scores = acquisition_scores(deltas, way.acquisition, mistake_rate=MISTAKES)
        prompts = [pool.pairs[i].first.prompt for i in left]
        chosen = choose_batch(scores, prompts, BATCH, rng=rng, sharpness=way.sharpness)
        asked += left[chosen].tolist()


def labels_needed(curves: np.ndarray, accuracy: float) -> float:
    """Labels at which the mean of (seeds, points) first reaches an accuracy, between the points by a straight line."""
    mean = curves.mean(axis=0)
    labels = FIRST + BATCH * np.arange(curves.shape[1])
    reached = np.flatnonzero(mean >= accuracy)
    if not len(reached) or reached[0] == 0:
        return math.nan if not len(reached) else FIRST
    i = int(reached[0])
    return float(np.interp(accuracy, mean[i - 1 : i + 1], labels[i - 1 : i + 1]))


def chosen_by_their_own(pool: Pool, count: int, way: Way, seed: int) -> list[Preference]:
    """`count` labels chosen by ensembles of full reward models, in 4 batches, as the collect stage does it."""
    place = {frozenset(pair): i for i, pair in enumerate(pool.pairs)}
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(run_dir=Path(folder), seed=seed)
        sharpness = None if math.isinf(way.sharpness) else way.sharpness
        collect = replace(config.collect, acquisition=way.acquisition, mistake_rate=MISTAKES, sharpness=sharpness)
        config = replace(config, collect=collect, reward=replace(config.reward, training=study.REWARD_TRAINING))
        return label_actively(
            study.quiet_prepare(config, study.task_from_sft()),
            1,
            list(dict.fromkeys(c for pair in pool.pairs for c in pair)),
            count,
            lambda pairs, part: pool.preferences([place[frozenset(pair)] for pair in pairs]),
            known=(),
            folder=Path(folder) / "ensemble",
        )


def print_curves(curves: dict[Way, np.ndarray]) -> None:
    """Print a line for each way to choose."""
    target = float(curves[RANDOM][:, -1].mean())
    shown = (FIRST + 2 * BATCH, FIRST + 6 * BATCH, TOTAL)
    rows = []
    for way, values in curves.items():
        needed = labels_needed(values, target)
        cells = [f"{values.mean(axis=0)[(n - FIRST) // BATCH]:.3f}" for n in shown]
        rows.append([str(way), *cells, f"{needed:.0f} ({needed / TOTAL:.0%})"])
    print(study.markdown_table(["chosen by", *(f"at {n}" for n in shown), f"labels to random's {target:.3f}"], rows))


def main() -> None:
    task = reviews_task()
    half = TOTAL // 2
    with quiet_transformers():
        for seeds in (DEVELOPMENT, FRESH):
            pools = {seed: make_pool(task, seed) for seed in seeds}
            runs = {way: [curve(pool, way, seed) for seed, pool in pools.items()] for way in WAYS}
            curves = {way: np.stack([accuracies for accuracies, _ in found]) for way, found in runs.items()}
            if seeds is DEVELOPMENT:
                best = max(WAYS[1:], key=lambda way: curves[way].mean())
            print(f"seeds {seeds[0]}-{seeds[-1]}; the best on average of {DEVELOPMENT[0]}-{DEVELOPMENT[-1]}: {best}")
            print_curves(curves)
        found: dict[str, list[float]] = {}
        for i, (seed, pool) in enumerate(list(pools.items())[:FULL_SEEDS]):
            at_random, linear = (runs[way][i][1] for way in (RANDOM, best))
            sets = {
                f"random, {TOTAL}": pool.preferences(at_random),
                f"random, {half}": pool.preferences(at_random[:half]),
                f"chosen by linear ones, {half}": pool.preferences(linear[:half]),
                f"chosen by their own, {half}": chosen_by_their_own(pool, half, best, seed),
            }
            for name, said in sets.items():
                reward = study.train_r_phi(load_causal_lm(task.sft), task, said, seed)
                found.setdefault(name, []).append(evaluate_reward_model(reward, pool.heldout).accuracy)
    print("\nfull reward models, held-out accuracy")
    rows = [[name, study.spread(v, ".3f"), " ".join(f"{x:.3f}" for x in v)] for name, v in found.items()]
    print(study.markdown_table(["labels", "mean", "each"], rows))


if __name__ == "__main__":
    study.run_script(main)
