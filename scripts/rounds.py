"""python scripts/rounds.py: are fresh labels about the policy's own responses worth more than as many about SFT's?

On the embedded task, from its shipped SFT policy. Both arms are told the same number of preferences by the same
simulated annotator, and their PPO sees the same number of tokens:

    one round    N labels about SFT responses, one reward model, one PPO run
    two rounds   N/2 labels about SFT responses, a reward model, PPO for half the tokens; N/2 labels about the responses
                 of the policy that came out, a reward model on all N, PPO from that policy for the other half

β is moved by a controller towards one KL from the SFT policy (`--kl`). The final policies are judged by gold on prompts
nothing was trained on, and what is left of a difference in KL is taken out by a common slope within the arms (analysis
of covariance). It also measures every reward model on pairs of every policy, labelled by gold without noise: how r_φ
goes stale, and recovers. Prints tables and draws docs/rounds.png; about three minutes on one core. It leaves out
people, more rounds than two, and any tuning of either arm.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from study import kept, mean_and_error, quiet_run, task_from_sft

from rlhf_gym.lm import load_causal_lm
from rlhf_gym.pipeline.comparison import EqualDifference, difference_at_equal
from rlhf_gym.pipeline.samples import draw, gold_scores, proxy_scores
from rlhf_gym.rewards import load_reward
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import CollectConfig, EvaluateConfig, PPOSettings, RewardConfig, RunConfig
from rlhf_gym.tasks import Task
from rlhf_gym.training import RewardModelingConfig

ARMS = {1: "one round", 2: "two rounds"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[800], help="preferences, all rounds together")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3], help="seeds for each of these numbers")
    parser.add_argument("--tokens", type=int, default=32_000, help="PPO tokens, all rounds together")
    parser.add_argument("--kl", type=float, default=10.0, help="nats towards which β is moved")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/rounds"), help="gone on with if it is there")
    parser.add_argument("--output", type=Path, default=Path("docs/rounds.png"), help="the picture")
    a = parser.parse_args()
    if len(a.labels) != len(a.seeds):
        parser.error(f"expected as many --seeds as --labels, got {a.seeds} and {a.labels}")
    found: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for labels, seeds in zip(a.labels, a.seeds, strict=True):
        found[labels] = {1: [], 2: []}
        for seed in range(seeds):
            for rounds in ARMS:
                found[labels][rounds].append(one_run(labels, seed, rounds, a))
                last = found[labels][rounds][-1]
                print(f"{labels} labels, seed {seed}, {ARMS[rounds]}: gold {last['gold']:+.2f}, KL {last['kl']:.1f}")
        say(labels, found[labels])
    picture(found, a.output)


# -- the runs ----------------------------------------------------------------------------------------------------------


def one_run(labels: int, seed: int, rounds: int, a: argparse.Namespace) -> dict[str, Any]:
    """The figures of a run, which is made unless it is there."""
    root = a.run_dir / f"labels-{labels}-seed-{seed}-rounds-{rounds}"
    return kept(root / "figures.json", lambda: figures(root, labels, seed, rounds, a))


def figures(root: Path, labels: int, seed: int, rounds: int, a: argparse.Namespace) -> dict[str, Any]:
    """The run, and what came out of it."""
    task = task_from_sft()
    config = RunConfig(
        run_dir=root, seed=seed, seeds=1, rounds=rounds, without_kl=False, device="cpu", threads=1,
        collect=CollectConfig(
            num_prompts=-(-labels // rounds // 3), samples_per_prompt=6, num_labels=labels // rounds,
            temperatures=(1.0,),
        ),
        reward=RewardConfig(
            training=RewardModelingConfig(epochs=3, learning_rate=1e-3, batch_size=32, evaluate_each_epoch=False),
            force=True,
        ),
        agent=PPOSettings(total_tokens=a.tokens // rounds, kl_control="constraint", kl_target=a.kl, kl_coef=0.03),
        evaluate=EvaluateConfig(shown=0),
    )  # fmt: skip
    folder = quiet_run(config, task)
    metrics = folder.metrics("evaluate")
    assert metrics is not None
    last = metrics["policies"][-1]
    result = {"gold": last["gold"][0], "kl": last["kl"][0], "wins": last["wins_sft"][0]}
    result["right"] = right_about(folder, task, seed, rounds)
    return result


def right_about(folder: RunFolder, task: Task, seed: int, rounds: int) -> list[list[float]]:
    """How often r_φ of each round orders two responses of each policy as gold does, (rounds, 1 + rounds).

    Fresh pairs on held-out prompts; pairs that gold finds equally good are left out.
    """
    assert task.gold is not None and task.sft is not None
    rewards = [load_reward(folder.stage("reward", i) / "model", "cpu") for i in range(1, rounds + 1)]
    policies = [task.sft, *(folder.seed("ppo", i, seed) / "model" for i in range(1, rounds + 1))]
    columns = []
    for policy in policies:
        prompts = [prompt for prompt in task.heldout_prompts for _ in range(2)]
        samples = draw(load_causal_lm(policy), task, prompts, seed=seed + 555)
        gold = np.diff(gold_scores(task.gold, samples).reshape(-1, 2))[:, 0]  # (pairs,)
        deltas = [np.diff(proxy_scores(reward, task.tokenizer, samples).reshape(-1, 2))[:, 0] for reward in rewards]
        columns.append([float((0.5 * (1 + np.sign(d * gold)))[gold != 0].mean()) for d in deltas])
    return np.array(columns).T.tolist()


# -- what came out -----------------------------------------------------------------------------------------------------


def say(labels: int, arms: dict[int, list[dict[str, Any]]]) -> None:
    """Tables."""
    print(f"\n{labels} labels, {len(arms[1])} seeds, mean ± standard error")
    print(f"{'':12}{'gold':>15}{'KL, nats':>15}{'wins vs SFT':>17}")
    for rounds, runs in arms.items():
        cells = [mean_and_error([r[name] for r in runs]) for name in ("gold", "kl", "wins")]
        texts = [f"{m:.2f} ± {e:.2f}" for m, e in cells[:2]] + [f"{cells[2][0]:.1%} ± {cells[2][1]:.1%}"]
        print(f"{ARMS[rounds]:12}{texts[0]:>15}{texts[1]:>15}{texts[2]:>17}")
    d = difference(arms)
    plain = plain_difference(arms)
    print(f"two rounds − one, in gold: {plain[0]:+.2f} ± {plain[1]:.2f}", end="; ")
    print(f"at equal KL {d.difference:+.2f} ± {d.se:.2f} (slope {d.slope:+.3f} a nat)\n")
    print("r_φ orders two responses as gold does, %      of SFT   of round 1   of round 2")
    for rounds, runs in arms.items():
        for i, row in enumerate(np.mean([r["right"] for r in runs], axis=0)):
            cells = "".join(f"{100 * value:13.1f}" for value in row)
            print(f"{ARMS[rounds]}, r_φ of round {i + 1:<10}{cells}")
    print(flush=True)


def plain_difference(arms: dict[int, list[dict[str, Any]]]) -> tuple[float, float]:
    """The same as the policies are, with its standard error."""
    (one, one_error), (two, two_error) = (mean_and_error([r["gold"] for r in runs]) for runs in arms.values())
    return two - one, math.hypot(one_error, two_error)


def difference(arms: dict[int, list[dict[str, Any]]]) -> EqualDifference:
    """Gold of two rounds less that of one, at equal KL."""
    one, two = ([[r[name] for r in runs] for name in ("kl", "gold")] for runs in arms.values())
    return difference_at_equal(*one, *two)


def picture(found: dict[int, dict[int, list[dict[str, Any]]]], path: Path) -> None:
    """Gold over KL for each number of labels, and how the reward models of two rounds fare at the smallest."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {1: "#7d828b", 2: "#1f56a5"}
    figure, axes = plt.subplots(1, len(found) + 1, figsize=(4.1 * len(found) + 4.1, 3.7), layout="constrained")
    golds = [r["gold"] for arms in found.values() for runs in arms.values() for r in runs]
    for axis, (labels, arms) in zip(axes, found.items(), strict=False):
        for rounds, runs in arms.items():
            kl, gold = [r["kl"] for r in runs], [r["gold"] for r in runs]
            axis.scatter(kl, gold, s=26, color=colours[rounds], alpha=0.55, linewidths=0, label=ARMS[rounds])
            axis.errorbar(
                np.mean(kl), np.mean(gold), xerr=mean_and_error(kl)[1], yerr=mean_and_error(gold)[1], fmt="o",
                color=colours[rounds], markersize=8, markeredgecolor="white", linewidth=1.6,
            )  # fmt: skip
        plain = plain_difference(arms)
        axis.set_title(f"{labels} labels: {plain[0]:+.2f} ± {plain[1]:.2f} in gold", fontsize=10)
        axis.set(xlabel="KL from the SFT policy, nats", ylabel="gold", ylim=(min(golds) - 0.1, max(golds) + 0.1))
        axis.legend(frameon=False, fontsize=9, loc="lower left")
        axis.spines[["top", "right"]].set_visible(False)
    table = 100 * np.mean([r["right"] for r in found[min(found)][2]], axis=0)  # (2, 3)
    axes[-1].imshow(table, cmap="Blues", vmin=50, vmax=90, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        axes[-1].text(j, i, f"{value:.0f} %", ha="center", va="center", color="white" if value > 75 else "black")
    axes[-1].set_xticks(range(3), ["SFT", "round 1", "round 2"])
    axes[-1].set_yticks(range(2), ["$r_\\varphi$ of\nround 1", "$r_\\varphi$ of\nround 2"])
    axes[-1].set_xlabel("pairs of this policy’s responses")
    axes[-1].set_title(rf"$r_\varphi$ orders pairs as gold does, {min(found)} labels", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
