"""python scripts/studies/film_reviews.py --model FOLDER --reviews FILE: a real model learns to praise films.

After Ziegler et al. 2019 (arXiv:1909.08593). A pretrained model goes on from the first four words of a film review.
SFT on some reviews, good and bad, brings it to their style. r_φ learns from pairs of reviews that people labelled good
and bad. PPO with LoRA learns from r_φ: with β fixed, with β steered to a KL, and without penalty. A classifier of
words, trained on labels that r_φ never saw, is the judge. Prints a table and draws a picture beside the run; an
interrupted study goes on.

`rlhf-gym run --model FOLDER --corpus FILE` does one such run, without SFT, with a report. This script leaves out people
who read the responses, and a search for better settings. FILE has a line {"text": …, "label": 0 or 1} for each review.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from study import (
    COLOURS,
    kept,
    markdown_table,
    minus,
    picture,
    put_into_page,
    read_trajectory,
    spread,
)

from rlhf_gym.functional import distinct_n, share_interval
from rlhf_gym.lm import load_causal_lm
from rlhf_gym.pipeline import draw, gold_scores, log_probs, prepare, proxy_scores, run
from rlhf_gym.preferences import Demonstration
from rlhf_gym.rewards import load_reward
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import PPOSettings, TaskConfig, default_config
from rlhf_gym.tasks import Task, labelled_text_task

START = "SFT, which is π_ref"
RESPONSE = 32
"""Tokens of a response at most, its end included."""
LORA = PPOSettings(lora_r=16, learning_rate=5e-4, n_episodes=32, batch_size=8, num_envs=32)
ARMS = {
    "β = .05": replace(LORA, kl_coef=0.05),
    "KL steered to 4 nats": replace(LORA, kl_coef=0.05, kl_control="adaptive", kl_target=4.0, kl_horizon=200),
    "no penalty": replace(LORA, kl_coef=0.0),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a causal language model, a folder or a hub name")
    parser.add_argument("--reviews", type=Path, required=True, help="labelled reviews")
    parser.add_argument("--tokens", type=int, default=6_400, help="PPO tokens of an arm and seed")
    parser.add_argument("--seeds", type=int, default=2, help="agents of the first arm; the others have one each")
    parser.add_argument("--demonstrations", type=int, default=1_200, help="reviews that SFT learns from")
    parser.add_argument("--pairs", type=int, default=512, help="preferences that r_φ learns from")
    parser.add_argument("--prompts", type=int, default=128, help="held-out prompts that every policy answers")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/film-reviews"), help="gone on with if it is there")
    parser.add_argument("--page", type=Path, help="a page that the table goes into; by default it is printed alone")
    parser.add_argument("--output", type=Path, default=Path("runs/film-reviews.png"), help="the picture")
    a = parser.parse_args(arguments)
    began = time.perf_counter()
    task = film_task(a)
    base = default_config(TaskConfig(corpus=a.reviews, model=a.model))
    base = replace(base, run_dir=a.run_dir / "before", device="cpu", seeds=a.seeds)
    for stage in ("sft", "collect", "reward"):
        run(base, task=task, only=stage)
    before = RunFolder(base.run_dir)
    start = before.stage("sft") / "model"
    found = {
        name: [kept(a.run_dir / f"{name.split()[0].lower().strip(',')}.json", partial(answers, model, task, before, a))]
        for name, model in (("pretrained model", a.model), (START, start))
    }
    for name, agent in ARMS.items():
        arm = folder(a, name)
        seeds = seeds_of(a, name)
        config = replace(base, run_dir=arm.root, seeds=seeds, agent=replace(agent, total_tokens=a.tokens))
        if not (arm.root / "round-1").is_dir():
            made = prepare(config, task=task)
            made.folder.open(made.config, notes=made.notes)
            for made_once in ("sft", "round-1"):  # every arm has the one π_ref and r_φ
                shutil.copytree(before.root / made_once, arm.root / made_once)
        run(config, task=task, only="train")
        policies = [arm.seed("train", 1, seed) / "model" for seed in range(seeds)]
        found[name] = [
            kept(arm.root / f"seed-{seed}.json", partial(answers, policy, task, before, a))
            for seed, policy in enumerate(policies)
        ]
    text = page_text(found, before, task)
    print(text)
    if a.page is not None:
        put_into_page(a.page, "film reviews", "studies/film_reviews.py", text)
    draw_picture(a, found)
    print(f"{(time.perf_counter() - began) / 60:.0f} minutes; what was there already took none")


def folder(a: argparse.Namespace, arm: str) -> RunFolder:
    """The run folder of an arm."""
    return RunFolder(a.run_dir / f"arm-{list(ARMS).index(arm)}")


def seeds_of(a: argparse.Namespace, arm: str) -> int:
    """How many agents an arm has."""
    return a.seeds if arm == next(iter(ARMS)) else 1


def film_task(a: argparse.Namespace) -> Task:
    """The task of the reviews, with the first of those it is trained on as demonstrations."""
    task = labelled_text_task(a.reviews, model=a.model, max_new_tokens=RESPONSE, heldout_fraction=0.2)
    texts = labelled_text_task(a.reviews, max_new_tokens=RESPONSE, heldout_fraction=0.2)  # the same split of them

    def fitting(some: Sequence[Demonstration]) -> list[Demonstration]:
        return [d for d in some if len(task.tokenizer(d.response).input_ids) < RESPONSE]

    return replace(
        task,
        demonstrations=fitting(texts.demonstrations)[: a.demonstrations],
        heldout_demonstrations=fitting(texts.heldout_demonstrations)[: a.prompts],
        preferences=task.preferences[: a.pairs],
    )


def answers(policy: str | Path, task: Task, before: RunFolder, a: argparse.Namespace) -> dict[str, Any]:
    """One response to each of the first held-out prompts, and what r_φ, judge and pretrained model say of it."""
    samples = draw(load_causal_lm(policy), task, task.heldout_prompts[: a.prompts], seed=1)
    models = (policy, before.stage("sft") / "model", a.model)
    own, reference, pretrained = (log_probs(load_causal_lm(model), samples) for model in models)
    scores = proxy_scores(load_reward(before.stage("reward") / "model"), task.tokenizer, samples)
    judged = gold_scores(task.gold, samples)
    return {
        "score": float(scores.mean()),
        "judge": float(judged.mean()),
        "agreement": float(np.corrcoef(scores, judged)[0, 1]),
        "kl": float(np.mean([(x - y).sum() for x, y in zip(own, reference, strict=True)])),
        "perplexity": float(np.exp(-np.concatenate(pretrained).mean())),
        "distinct": distinct_n([response.split() for response in samples.responses], 2),
        "texts": [[prompt, response] for prompt, response in zip(samples.prompts, samples.responses, strict=True)],
    }


# -- what came out -----------------------------------------------------------------------------------------------------


def page_text(found: dict[str, list[dict[str, Any]]], before: RunFolder, task: Task) -> str:
    """The table, the reward model's accuracy, and the first responses of every arm."""
    metrics = before.metrics("reward") or {}
    unit = float(np.std(task.gold(*zip(*found[START][0]["texts"], strict=True))))
    rows = [
        [
            name,
            *(spread([f[key] / (unit if key == "judge" else 1) for f in runs], form) for key, form in COLUMNS.items()),
        ]
        for name, runs in found.items()
    ]
    header = ["policy", "r_φ:", "judge:", "correlation of the two:", "KL, nats:", "perplexity:", "distinct-2:"]
    table = markdown_table(header, rows)
    right = share_interval(metrics["accuracy"], metrics["n"])
    accuracy = (
        f"r_φ is right about {right.rate:.1%} of {metrics['n']} held-out pairs [{right.low:.1%}, {right.high:.1%}]."
    )
    shown = []
    for i in range(3):
        shown.append(f"\n*{found[START][0]['texts'][i][0]} …*\n")
        shown += [f"- {name}: {' '.join(runs[0]['texts'][i][1].split())}" for name, runs in found.items()]
    return minus("\n".join([accuracy, "", table, *shown]))


COLUMNS = {
    "score": "+.2f",
    "judge": "+.2f",
    "agreement": ".2f",
    "kl": ".1f",
    "perplexity": ".1f",
    "distinct": ".2f",
}


def draw_picture(a: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    """r_φ, the judge and the KL of each rollout over the tokens learned from; a line a seed."""
    with picture(a.output, 1, 3, (11, 3.4)) as axes:
        for colour, name in zip(COLOURS, ARMS, strict=False):
            for seed in range(seeds_of(a, name)):
                path = read_trajectory(folder(a, name), "train", seed)
                for axis, values in zip(axes[0], (path.proxy, path.gold, path.kl), strict=True):
                    axis.plot(path.tokens, values, color=colour, alpha=0.8, label=name if seed == 0 else None)
        for axis, title in zip(axes[0], ("r_φ", "judge: log-odds of praise", "KL, nats a response"), strict=True):
            axis.set(title=title, xlabel="tokens")
        axes[0, 0].legend()


if __name__ == "__main__":
    main()
