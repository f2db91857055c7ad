"""python scripts/rounds.py: are fresh labels about the policy's own responses worth more than as many about SFT's?

On the embedded task, from its shipped SFT policy. Both arms are told the same number of preferences by the same
simulated annotator, and their PPO sees the same number of tokens:

    one round    N labels about SFT responses, one reward model, one PPO run
    two rounds   N/2 labels about SFT responses, a reward model, PPO for half the tokens; N/2 labels about the responses
                 of the policy that came out, a reward model on all N, PPO from that policy for the other half

β is moved by a controller towards one KL from the SFT policy (`--kl`). The final policies are judged by gold on prompts
nothing was trained on, and what is left of a difference in KL is taken out by a common slope within the arms (analysis
of covariance). It also measures every reward model on pairs of every policy, labelled by gold without noise: how r_φ
goes stale, and recovers. Prints tables and draws docs/images/rounds.png; about three minutes on one core. It leaves out
people, more rounds than two, and any tuning of either arm.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from study import (
    IMAGES,
    REWARD_TRAINING,
    evaluated,
    kept,
    mean_and_error,
    picture,
    quiet_run,
    spread,
    study_config,
    task_from_sft,
    text_table,
)

from rlhf_gym.lm import load_causal_lm
from rlhf_gym.pipeline import difference_at_equal, draw, gold_scores, proxy_scores
from rlhf_gym.rewards import load_reward
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import CollectConfig, PPOSettings, RewardConfig
from rlhf_gym.tasks import Task

Runs = dict[int, list[dict[str, Any]]]  # the figures of each seed, by the number of rounds
ARMS = {1: "one round", 2: "two rounds"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[800], help="preferences, all rounds together")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3], help="seeds for each of these numbers")
    parser.add_argument("--tokens", type=int, default=32_000, help="PPO tokens, all rounds together")
    parser.add_argument("--kl", type=float, default=10.0, help="nats towards which β is moved")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/rounds"), help="gone on with if it is there")
    parser.add_argument("--output", type=Path, default=IMAGES / "rounds.png", help="the picture")
    a = parser.parse_args()
    if len(a.labels) != len(a.seeds):
        parser.error(f"expected as many --seeds as --labels, got {a.seeds} and {a.labels}")
    found: dict[int, Runs] = {}
    for labels, seeds in zip(a.labels, a.seeds, strict=True):
        found[labels] = {1: [], 2: []}
        for seed in range(seeds):
            for rounds in ARMS:
                found[labels][rounds].append(one_run(labels, seed, rounds, a))
                last = found[labels][rounds][-1]
                print(f"{labels} labels, seed {seed}, {ARMS[rounds]}: gold {last['gold']:+.2f}, KL {last['kl']:.1f}")
        print_tables(labels, found[labels])
    draw_figure(found, a.output)


# -- the runs ----------------------------------------------------------------------------------------------------------


def one_run(labels: int, seed: int, rounds: int, a: argparse.Namespace) -> dict[str, Any]:
    """The figures of a run, which is made unless it is there."""
    root = a.run_dir / f"labels-{labels}-seed-{seed}-rounds-{rounds}"
    return kept(root / "figures.json", lambda: figures(root, labels, seed, rounds, a))


def figures(root: Path, labels: int, seed: int, rounds: int, a: argparse.Namespace) -> dict[str, Any]:
    """Do the run, and return its figures."""
    task = task_from_sft()
    collect = CollectConfig(
        num_prompts=-(-labels // rounds // 3),
        samples_per_prompt=6,
        num_labels=labels // rounds,
        temperatures=(1.0,),
    )
    config = study_config(
        root,
        seed,
        rounds=rounds,
        without_kl=False,
        collect=collect,
        reward=RewardConfig(training=REWARD_TRAINING, force=True),
        agent=PPOSettings(total_tokens=a.tokens // rounds, kl_control="constraint", kl_target=a.kl, kl_coef=0.03),
    )
    folder = quiet_run(config, task)
    last = evaluated(folder)["policies"][-1]
    result = {"gold": last["gold"][0], "kl": last["kl"][0], "wins": last["wins_sft"][0]}
    return result | {"right": right_about(folder, task, seed, rounds)}


def right_about(folder: RunFolder, task: Task, seed: int, rounds: int) -> list[list[float]]:
    """How often r_φ of each round orders two responses of each policy as gold does, (rounds, 1 + rounds).

    Fresh pairs on held-out prompts; pairs that gold finds equally good are left out.
    """
    rewards = [load_reward(folder.stage("reward", i) / "model", "cpu") for i in range(1, rounds + 1)]
    policies = [task.sft, *(folder.seed("train", i, seed) / "model" for i in range(1, rounds + 1))]
    columns = []
    for policy in policies:
        prompts = [prompt for prompt in task.heldout_prompts for _ in range(2)]
        samples = draw(load_causal_lm(policy), task, prompts, seed=seed + 555)
        gold = np.diff(gold_scores(task.gold, samples).reshape(-1, 2))[:, 0]  # (pairs,)
        deltas = [np.diff(proxy_scores(reward, task.tokenizer, samples).reshape(-1, 2))[:, 0] for reward in rewards]
        columns.append([float((0.5 * (1 + np.sign(d * gold)))[gold != 0].mean()) for d in deltas])
    return np.array(columns).T.tolist()


# -- what came out -----------------------------------------------------------------------------------------------------


def print_tables(labels: int, arms: Runs) -> None:
    """Print how the arms end, what is between them, and how far their reward models are right."""
    print(f"\n{labels} labels, {len(arms[1])} seeds, mean ± standard error")
    forms = {"gold": ".2f", "kl": ".2f", "wins": ".1%"}
    rows = [[ARMS[n], *(spread([r[name] for r in runs], f) for name, f in forms.items())] for n, runs in arms.items()]
    print(text_table(["", "gold", "KL, nats", "wins vs SFT"], rows))
    one, two = ([[r[name] for r in runs] for name in ("kl", "gold")] for runs in arms.values())
    equal = difference_at_equal(*one, *two)
    plain, error = plain_difference(arms)
    print(f"two rounds − one, in gold: {plain:+.2f} ± {error:.2f}", end="; ")
    print(f"at equal KL {equal.difference:+.2f} ± {equal.se:.2f} (slope {equal.slope:+.3f} a nat)\n")
    rows = [
        [f"{ARMS[rounds]}, r_φ of round {i + 1}", *(f"{100 * value:.1f}" for value in row), *[""] * (2 - rounds)]
        for rounds, runs in arms.items()
        for i, row in enumerate(np.mean([r["right"] for r in runs], axis=0))
    ]
    print(text_table(["r_φ orders two responses as gold does, %", "of SFT", "of round 1", "of round 2"], rows))
    print(flush=True)


def plain_difference(arms: Runs) -> tuple[float, float]:
    """Gold of two rounds less that of one as the policies are, with its standard error."""
    (one, one_error), (two, two_error) = (mean_and_error([r["gold"] for r in runs]) for runs in arms.values())
    return two - one, math.hypot(one_error, two_error)


def draw_figure(found: dict[int, Runs], path: Path) -> None:
    """Gold over KL for each number of labels, and how the reward models of two rounds fare at the smallest."""
    golds = [r["gold"] for arms in found.values() for runs in arms.values() for r in runs]
    with picture(path, 1, len(found) + 1, (4.1 * len(found) + 4.1, 3.7)) as axes:
        for axis, (labels, arms) in zip(axes[0], found.items(), strict=False):
            for colour, (rounds, runs) in zip(("#7d828b", "#1f56a5"), arms.items(), strict=True):
                kl = [r["kl"] for r in runs]
                gold = [r["gold"] for r in runs]
                axis.scatter(kl, gold, s=26, color=colour, alpha=0.55, linewidths=0, label=ARMS[rounds])
                (x, x_error) = mean_and_error(kl)
                (y, y_error) = mean_and_error(gold)
                axis.errorbar(x, y, y_error, x_error, fmt="o", color=colour, markersize=8, markeredgecolor="white")
            plain, error = plain_difference(arms)
            axis.set_title(f"{labels} labels: {plain:+.2f} ± {error:.2f} in gold")
            axis.set(xlabel="KL from the SFT policy, nats", ylabel="gold", ylim=(min(golds) - 0.1, max(golds) + 0.1))
            axis.legend(loc="lower left")
        axis = axes[0, -1]
        right = 100 * np.mean([r["right"] for r in found[min(found)][2]], axis=0)  # (2, 3)
        axis.grid(visible=False)
        axis.imshow(right, cmap="Blues", vmin=50, vmax=90, aspect="auto")
        for (i, j), value in np.ndenumerate(right):
            axis.text(j, i, f"{value:.0f} %", ha="center", va="center", color="white" if value > 75 else "black")
        axis.set_xticks(range(3), ["SFT", "round 1", "round 2"])
        axis.set_yticks(range(2), ["$r_\\varphi$ of\nround 1", "$r_\\varphi$ of\nround 2"])
        axis.set_xlabel("pairs of this policy’s responses")
        axis.set_title(rf"$r_\varphi$ orders pairs as gold does, {min(found)} labels")


if __name__ == "__main__":
    main()
