"""How many labels active selection saves, on the embedded reviews with a fifth of all labels wrong.

    python scripts/active_learning.py                  # docs/images/active.png, then full reward models: minutes
    python scripts/active_learning.py --full-seeds 0   # without the full reward models

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

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit
from study import COLOURS, IMAGES, INK, REWARD_TRAINING, SOFT, picture, quiet_prepare, spread, task_from_sft

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
from rlhf_gym.rewards import RewardModel
from rlhf_gym.settings import RunConfig
from rlhf_gym.tasks import Task, reviews_task
from rlhf_gym.training import evaluate_reward_model, train_reward_model

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
    return Pool(
        pairs,
        np.stack([state[a] - state[b] for a, b in pairs]) / scale,
        np.array([p.chosen == pair.first.response for p, pair in zip(truth, pairs, strict=True)]),
        heldout,
        np.stack([other_state[by_text(p, p.chosen)] - other_state[by_text(p, p.rejected)] for p in heldout]) / scale,
    )


def by_text(preference: Preference, response: str) -> Candidate:
    """The key of a response."""
    return Candidate(preference.prompt, response)


def candidate_pairs(
    task: Task, prompts: Sequence[str], seed: int
) -> tuple[list[CandidatePair], dict[Candidate, np.ndarray]]:
    """All pairs of different responses to each prompt, and each response's features (D,)."""
    policy = load_causal_lm(task.sft, dtype=torch.float32)
    copies = [prompt for prompt in prompts for _ in range(COPIES // len(TEMPERATURES))]
    state: dict[Candidate, np.ndarray] = {}
    for i, temperature in enumerate(TEMPERATURES):
        samples = draw(policy, task, copies, seed=2 * seed + i, temperature=temperature)
        ids, action_mask, _ = samples.rows()  # (B, L), (B, L), (B,)
        for rows in torch.arange(len(ids)).split(256):
            features = summed_states(policy, ids[rows], action_mask[rows])  # (b, D)
            for row, feature in zip(rows.tolist(), features, strict=True):
                state.setdefault(Candidate(samples.prompts[row], samples.responses[row]), feature)
    return choose_pairs(list(state), "all", seed=seed), state


@torch.no_grad()
def summed_states(policy: torch.nn.Module, ids: torch.Tensor, action_mask: torch.Tensor) -> np.ndarray:
    """Embeddings and last states, each summed over the response: (b, L), (b, L) → (b, 2H)."""
    trunk = policy.base_model
    out = trunk(inputs_embeds=policy.get_input_embeddings()(ids), output_hidden_states=True).hidden_states
    return torch.cat([(h * action_mask[..., None]).sum(dim=1) for h in (out[0], out[-1])], dim=1).double().numpy()


def fit_linear(features: np.ndarray, wins: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """w (D,) of r = w·f: Bradley–Terry with a Gaussian prior, PRIOR/2·‖w‖², by Newton's method.

    Shapes: features of first less second (n, D); whether the first one won (n,); weight of each comparison (n,).
    """
    w = np.zeros(features.shape[1])
    for _ in range(12):
        p = expit(features @ w)  # (n,)
        gradient = features.T @ (weight * (p - wins)) + PRIOR * w
        hessian = (features * (weight * p * (1 - p))[:, None]).T @ features + PRIOR * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        w = w - step
        if np.abs(step).max() < 1e-5:
            break
    return w


def curve(pool: Pool, way: Way, seed: int) -> tuple[np.ndarray, list[int]]:
    """Held-out accuracy after each batch, and the pairs in the order in which they were labelled."""
    rng = np.random.default_rng((seed, 5))
    everything = rng.permutation(len(pool.pairs))
    asked = everything[:FIRST].tolist()
    found = []
    prompts = [pair.first.prompt for pair in pool.pairs]
    while True:
        x = pool.features[asked]
        wins = pool.first_is_said[asked]
        w = fit_linear(x, wins, np.ones(len(asked)))
        found.append(float((pool.heldout_features @ w > 0).mean()))
        if len(asked) >= TOTAL:
            return np.array(found), asked
        left = np.setdiff1d(everything, asked)
        if way.acquisition is None:
            asked += rng.choice(left, BATCH, replace=False).tolist()
            continue
        bootstraps = [rng.poisson(1.0, len(asked)).astype(float) for _ in range(MEMBERS)]
        deltas = np.stack([pool.features[left] @ fit_linear(x, wins, b) for b in bootstraps])  # (members, left)
        scores = acquisition_scores(deltas, way.acquisition, mistake_rate=MISTAKES)
        chosen = choose_batch(scores, [prompts[i] for i in left], BATCH, rng=rng, sharpness=way.sharpness)
        asked += left[chosen].tolist()


def labels_needed(curves: np.ndarray, accuracy: float) -> float:
    """Labels at which the mean of (seeds, points) first reaches an accuracy, between the points by a straight line."""
    mean = curves.mean(axis=0)
    labels = FIRST + BATCH * np.arange(curves.shape[1])
    reached = np.flatnonzero(mean >= accuracy)
    if not len(reached) or reached[0] == 0:
        return float("nan") if not len(reached) else FIRST
    i = int(reached[0])
    return float(np.interp(accuracy, mean[i - 1 : i + 1], labels[i - 1 : i + 1]))


def preferences_of(pool: Pool, indices: Sequence[int]) -> list[Preference]:
    """What the annotator says about these pairs."""
    found = []
    for i in indices:
        chosen, rejected = pool.pairs[i] if pool.first_is_said[i] else pool.pairs[i][::-1]
        found.append(Preference(chosen.prompt, chosen.response, rejected.response))
    return found


def full_accuracy(task: Task, preferences: Sequence[Preference], heldout: Sequence[Preference], seed: int) -> float:
    """Held-out accuracy of a reward model whose trunk is trained too."""
    policy = load_causal_lm(task.sft, dtype=torch.float32)
    reward = RewardModel.from_language_model(policy, task.tokenizer, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(REWARD_TRAINING, seed=seed)
        train_reward_model(reward, preferences, heldout=preferences[:1], config=config, output_dir=folder)
    return evaluate_reward_model(reward, heldout).accuracy


def chosen_by_their_own(task: Task, pool: Pool, count: int, way: Way, seed: int) -> list[Preference]:
    """`count` labels chosen by ensembles of full reward models, in 4 batches, as the collect stage does it."""
    place = {frozenset(pair): i for i, pair in enumerate(pool.pairs)}
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(run_dir=Path(folder), seed=seed)
        collect = replace(config.collect, acquisition=way.acquisition or "uncertainty", mistake_rate=MISTAKES)
        collect = replace(collect, sharpness=None if math.isinf(way.sharpness) else way.sharpness)
        config = replace(config, collect=collect, reward=replace(config.reward, training=REWARD_TRAINING))
        run = quiet_prepare(config, task_from_sft())
        candidates = list(dict.fromkeys(c for pair in pool.pairs for c in pair))
        return label_actively(
            run,
            1,
            candidates,
            count,
            lambda pairs, part: preferences_of(pool, [place[frozenset(pair)] for pair in pairs]),
            known=(),
            folder=Path(folder) / "ensemble",
        )


def draw_figure(curves: dict[Way, np.ndarray], best: Way, path: Path) -> None:
    """Accuracy against labels, means of the fresh seeds with their standard errors."""
    target = float(curves[RANDOM][:, -1].mean())
    needed = labels_needed(curves[best], target)
    labels = FIRST + BATCH * np.arange(curves[RANDOM].shape[1])
    with picture(path, 1, 1, (7.2, 4.2)) as axes:
        axis = axes[0, 0]
        for (way, values), colour in zip(curves.items(), (SOFT, *COLOURS), strict=False):
            mean = values.mean(axis=0)  # (points,)
            axis.plot(labels, mean, color=colour, label=str(way), lw=2 if way in (RANDOM, best) else 1)
            if way in (RANDOM, best):
                error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
                axis.fill_between(labels, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
        axis.axhline(target, color=SOFT, lw=1, ls=":")
        if np.isfinite(needed):
            axis.plot([needed], [target], "o", color=INK, ms=5)
            place = (needed - 15, target + 0.003)
            axis.annotate(f"{needed:.0f} labels", (needed, target), place, color=INK, fontsize=9, ha="right")
        axis.set(xlabel="labels, a fifth of them wrong", ylabel="held-out accuracy")
        axis.set_title(f"choosing what to label: means of {len(curves[RANDOM])} seeds, bands ± a standard error")
        axis.legend(loc="lower right")


def print_curves(curves: dict[Way, np.ndarray]) -> None:
    """Print a line for each way to choose."""
    target = float(curves[RANDOM][:, -1].mean())
    print(f"{'chosen by':32s}{'at 400':>9}{'at 800':>9}{f'at {TOTAL}':>9}   labels to random's {target:.3f}")
    for way, values in curves.items():
        mean = values.mean(axis=0)
        needed = labels_needed(values, target)
        cells = "".join(f"{mean[(n - FIRST) // BATCH]:9.3f}" for n in (400, 800, TOTAL))
        print(f"{way!s:32s}{cells}   {needed:.0f} ({needed / TOTAL:.0%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-seeds", type=int, default=3, help="seeds of the full reward models")
    parser.add_argument("--picture", type=Path, default=IMAGES / "active.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = reviews_task()
    started = time.perf_counter()
    with quiet_transformers():
        trials = [make_pool(task, seed) for seed in DEVELOPMENT]
        curves = {
            way: np.stack([curve(pool, way, seed)[0] for seed, pool in zip(DEVELOPMENT, trials, strict=True)])
            for way in WAYS
        }
        print(f"which way to choose (seeds {DEVELOPMENT[0]}-{DEVELOPMENT[-1]})")
        print_curves(curves)
        best = max(WAYS[1:], key=lambda way: curves[way].mean())
        print(f"\nbest on average: {best}. What it saves (seeds {FRESH[0]}-{FRESH[-1]})")
        pools = [make_pool(task, seed) for seed in FRESH]
        runs = {way: [curve(pool, way, seed) for seed, pool in zip(FRESH, pools, strict=True)] for way in WAYS}
        curves = {way: np.stack([accuracies for accuracies, _ in found]) for way, found in runs.items()}
        print_curves(curves)
        draw_figure(curves, best, options.picture)
        print(f"{time.perf_counter() - started:.0f} s so far")
        rows = []
        for i, (seed, pool) in enumerate(zip(FRESH, pools, strict=True)):
            if i >= options.full_seeds:
                break
            half = TOTAL // 2
            at_random = runs[RANDOM][i][1]
            linear = runs[best][i][1]
            sets = (
                preferences_of(pool, at_random),
                preferences_of(pool, at_random[:half]),
                preferences_of(pool, linear[:half]),
                chosen_by_their_own(task, pool, half, best, seed),
            )
            rows.append([full_accuracy(task, said, pool.heldout, seed) for said in sets])
        if rows:
            half = TOTAL // 2
            names = (
                f"random, {TOTAL}",
                f"random, {half}",
                f"chosen by linear ones, {half}",
                f"chosen by their own, {half}",
            )
            print(f"\nfull reward models, held-out accuracy, {len(rows)} seeds")
            for name, values in zip(names, np.array(rows).T, strict=True):
                print(f"{name:32s}{spread(values, '.3f')}   {' '.join(f'{v:.3f}' for v in values)}")
        print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
