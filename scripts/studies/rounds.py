"""python scripts/studies/rounds.py: are fresh labels worth more than as many about SFT's responses?

On the embedded task, from its shipped SFT policy. Both arms are told the same number of preferences by the same
simulated annotator, and their PPO sees the same number of tokens:

    one round    N labels about SFT responses, one reward model, one PPO run
    two rounds   N/2 labels about SFT responses, a reward model, PPO for half the tokens; N/2 labels about the responses
                 of the policy that came out, a reward model on all N, PPO from that policy for the other half

β is moved by a controller towards one KL from the SFT policy. The final policies are judged by gold on prompts
nothing was trained on, and what is left of a difference in KL is taken out by a common slope within the arms (analysis
of covariance). It also measures every reward model on pairs of every policy, labelled by gold without noise: how r_φ
goes stale, and recovers. Prints tables; about three minutes on one core. It leaves out people, more rounds than two,
and any tuning of either arm.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import study

from rlhf_gym.lm import load_causal_lm
from rlhf_gym.pipeline import difference_at_equal, draw, gold_scores, proxy_scores
from rlhf_gym.rewards import load_reward
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import CollectConfig, PPOSettings, RewardConfig

Runs = dict[int, list[dict[str, Any]]]  # the figures of each seed, by the number of rounds
ARMS = {1: "one round", 2: "two rounds"}
KL = 10.0  # nats towards which β is moved


def main(labels: int = 800, seeds: int = 3, tokens: int = 32_000, run_dir: Path = Path("runs/rounds")) -> None:
    """Make both arms, each with so many labels and tokens in all its rounds together, and print the tables."""
    arms: Runs = {1: [], 2: []}
    for seed in range(seeds):
        for rounds, runs in arms.items():
            root = run_dir / f"labels-{labels}-seed-{seed}-rounds-{rounds}"
            runs.append(study.kept(root / "figures.json", lambda: figures(root, labels, seed, rounds, tokens)))  # noqa: B023
    print(f"{labels} labels, {seeds} seeds, mean ± standard error")
    print_tables(arms)


def figures(root: Path, labels: int, seed: int, rounds: int, tokens: int) -> dict[str, Any]:
    """Do a run, and return its figures."""
    collect = CollectConfig(
        num_prompts=-(-labels // rounds // 3), samples_per_prompt=6, num_labels=labels // rounds, temperatures=(1.0,)
    )
    config = study.run_config(
        root,
        seed,
        rounds=rounds,
        without_kl=False,
        collect=collect,
        reward=RewardConfig(training=study.REWARD_TRAINING, force=True),
        agent=PPOSettings(total_tokens=tokens // rounds, kl_control="constraint", kl_target=KL, kl_coef=0.03),
    )
    folder = study.quiet_run(config, study.task_from_sft())
    last = study.measured(folder)["policies"][-1]
    result = {"gold": last["gold"][0], "kl": last["kl"][0], "wins": last["wins_sft"][0]}
    return result | {"right": right_about(folder, seed, rounds)}


def right_about(folder: RunFolder, seed: int, rounds: int) -> list[list[float]]:
    """How often r_φ of each round orders two responses of each policy as gold does, (rounds, 1 + rounds).

    Fresh pairs on held-out prompts; pairs that gold finds equally good are left out.
    """
    task = study.task_from_sft()
    rewards = [load_reward(folder.stage("reward", i) / "model", "cpu") for i in range(1, rounds + 1)]
    policies = [task.sft, *(folder.seed("train", i, seed) / "model" for i in range(1, rounds + 1))]
    prompts = [prompt for prompt in task.heldout_prompts for _ in range(2)]
    drawn = [draw(load_causal_lm(policy), task, prompts, seed=seed + 555) for policy in policies]
    golds = [gold_scores(task.gold, samples) for samples in drawn]
    return [
        [
            study.share_ordered_right(proxy_scores(reward, task.tokenizer, samples), gold)
            for samples, gold in zip(drawn, golds, strict=True)
        ]
        for reward in rewards
    ]


def print_tables(arms: Runs) -> None:
    """Print how the arms end, what is between them, and how far their reward models are right."""
    forms = {"gold": ".2f", "kl": ".2f", "wins": ".1%"}
    rows = [
        [ARMS[n], *(study.spread([r[name] for r in runs], f) for name, f in forms.items())] for n, runs in arms.items()
    ]
    print(study.markdown_table(["", "gold", "KL, nats", "wins vs SFT"], rows))
    one, two = ([[r[name] for r in runs] for name in ("kl", "gold")] for runs in arms.values())
    equal = difference_at_equal(*one, *two)
    (first, first_error), (second, second_error) = (study.mean_and_error(gold) for _, gold in (one, two))
    print(f"two rounds − one, in gold: {second - first:+.2f} ± {math.hypot(first_error, second_error):.2f}", end="; ")
    print(f"at equal KL {equal.difference:+.2f} ± {equal.se:.2f} (slope {equal.slope:+.3f} a nat)\n")
    rows = [
        [f"{ARMS[rounds]}, r_φ of round {i + 1}", *(f"{100 * value:.1f}" for value in row), *[""] * (2 - rounds)]
        for rounds, runs in arms.items()
        for i, row in enumerate(np.mean([r["right"] for r in runs], axis=0))
    ]
    print(
        study.markdown_table(["r_φ orders two responses as gold does, %", "of SFT", "of round 1", "of round 2"], rows)
    )


if __name__ == "__main__":
    study.run_script(main)
