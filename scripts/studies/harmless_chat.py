"""python scripts/studies/harmless_chat.py --model FOLDER --comparisons FILE: what 1,500 human pairs carry.

FILE holds comparisons of conversations, such as Anthropic's HH-RLHF (Bai et al. 2022, arXiv:2204.05862). One part of
the pairs trains r_φ, a second part measures it, and the pairs that are too long for both train a judge of words. PPO
with LoRA then learns from r_φ on the prompts of the first part. Its answers to those of the second are compared blind
with the untouched model's: by r_φ, by the judge, and, where people are at hand, at the labelling page. Prints a table
and draws a picture beside the run; an interrupted study goes on.

It leaves out SFT, a search for better settings, and help against over-optimisation but the KL penalty.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from study import COLOURS, kept, markdown_table, minus, picture, put_into_page

from rlhf_gym.functional import share_interval
from rlhf_gym.lm import load_causal_lm, load_tokenizer
from rlhf_gym.lm.chat import response_text
from rlhf_gym.pipeline import Samples, draw, log_probs, proxy_scores, run
from rlhf_gym.preferences import Preference, check_preferences, read_preferences, split_by_prompt, write_preferences
from rlhf_gym.rewards import load_reward
from rlhf_gym.runs import RunFolder, iterations
from rlhf_gym.settings import PPOSettings, TaskConfig, default_config
from rlhf_gym.tasks import Task

LORA = PPOSettings(lora_r=16, learning_rate=5e-4, n_episodes=32, batch_size=8, num_envs=32, kl_coef=0.05)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a chat model, a folder or a hub name")
    parser.add_argument("--comparisons", type=Path, required=True, help="pairs of answers that people compared")
    parser.add_argument("--longest", type=int, default=160, help="tokens of a prompt and answer; longer pairs are left")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer of the policy's at most")
    parser.add_argument("--tokens", type=int, default=6_000, help="PPO tokens of a seed")
    parser.add_argument("--seeds", type=int, default=2, help="agents")
    parser.add_argument("--prompts", type=int, default=96, help="held-out prompts that both answer")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/harmless-chat"), help="gone on with if it is there")
    parser.add_argument("--page", type=Path, help="a page that the table goes into; by default it is printed alone")
    parser.add_argument("--output", type=Path, default=Path("runs/harmless-chat.png"), help="the picture")
    a = parser.parse_args(arguments)
    began = time.perf_counter()
    tokenizer = load_tokenizer(a.model)
    pairs = read_preferences(a.comparisons)
    odd = check_preferences(pairs, tokenizer=tokenizer, max_length=a.longest)
    usable = [p for i, p in enumerate(pairs) if i not in {*odd.identical, *odd.empty, *odd.too_long}]
    learned, measured = split_by_prompt(usable, 0.4)
    seen = {p.prompt for p in usable}
    judged = [p for p in pairs if p.prompt not in seen]  # mostly those that are too long for the others
    judge = WordJudge(judged)
    task = chat_task(a, learned, measured)
    config = replace(
        default_config(TaskConfig(model=a.model, prompts=prompt_file(a, learned))),
        run_dir=a.run_dir / "run",
        device="cpu",
        seeds=a.seeds,
        agent=replace(LORA, total_tokens=a.tokens),
    )
    config = replace(config, reward=replace(config.reward, force=True))
    for stage in ("collect", "reward", "train"):
        run(config, task=task, only=stage)
    folder = RunFolder(config.run_dir)
    policies = [a.model, *(folder.seed("train", 1, seed) / "model" for seed in range(a.seeds))]
    found = [
        kept(a.run_dir / f"answers-{i}.json", partial(answers, policy, a.model, task, folder, judge, a))
        for i, policy in enumerate(policies)
    ]
    text = page_text(a, found, folder, judge, measured, counts=(len(pairs), len(usable), len(learned), len(judged)))
    print(text)
    if a.page is not None:
        put_into_page(a.page, "harmless chat", "studies/harmless_chat.py", text)
    draw_picture(a, folder)
    print(f"{(time.perf_counter() - began) / 60:.0f} minutes; what was there already took none")


# -- the parts ---------------------------------------------------------------------------------------------------------


class WordJudge:
    """Which of two answers people prefer, from the words and word pairs in which they differ: logistic regression."""

    def __init__(self, preferences: Sequence[Preference]) -> None:
        self.words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        self.words.fit([response_text(side) for p in preferences for side in (p.chosen, p.rejected)])
        apart = self.words.transform([response_text(p.chosen) for p in preferences])
        apart -= self.words.transform([response_text(p.rejected) for p in preferences])  # (n, F)
        signs = np.where(np.arange(len(preferences)) % 2, -1, 1)  # (n,): either answer may stand first
        self.model = LogisticRegression(fit_intercept=False).fit(apart.multiply(signs[:, None]).tocsr(), signs)

    def __call__(self, answers: Sequence[str]) -> np.ndarray:
        """The log-odds that each answer brings to a comparison, (B,)."""
        return self.words.transform(answers) @ self.model.coef_[0]


def chat_task(a: argparse.Namespace, learned: Sequence[Preference], measured: Sequence[Preference]) -> Task:
    """The prompts of the pairs as prompts, the pairs as preferences."""
    tokenizer = load_tokenizer(a.model)
    prompts, kept_prompts = (list(dict.fromkeys(p.prompt for p in some)) for some in (learned, measured))
    return Task(
        name=a.comparisons.stem,
        prompts=prompts,
        heldout_prompts=kept_prompts,
        demonstrations=(),
        heldout_demonstrations=(),
        tokenizer=tokenizer,
        gold=None,
        max_prompt_length=a.longest,
        max_new_tokens=a.answer,
        preferences=learned,
        heldout_preferences=measured,
        pretrained=a.model,
    )


def prompt_file(a: argparse.Namespace, learned: Sequence[Preference]) -> Path:
    """The file of prompts that the run's settings name."""
    path = a.run_dir / "prompts.jsonl"
    write_preferences(path, learned)  # its lines have the field "prompt"
    return path


def answers(
    policy: str | Path, untouched: str, task: Task, folder: RunFolder, judge: WordJudge, a: argparse.Namespace
) -> dict[str, Any]:
    """One answer to each held-out prompt, and what r_φ, the judge and the untouched model say of it."""
    samples: Samples = draw(load_causal_lm(policy), task, task.heldout_prompts[: a.prompts], seed=1)
    own, reference = (log_probs(load_causal_lm(model), samples) for model in (policy, untouched))
    reward = load_reward(folder.stage("reward") / "model")
    return {
        "score": proxy_scores(reward, task.tokenizer, samples).tolist(),
        "judge": judge(samples.responses).tolist(),
        "kl": float(np.mean([(x - y).sum() for x, y in zip(own, reference, strict=True)])),
        "perplexity": float(np.exp(-np.concatenate(reference).mean())),
        "length": float(samples.lengths.mean()),
        "responses": samples.responses,
    }


# -- what came out -----------------------------------------------------------------------------------------------------


def page_text(
    a: argparse.Namespace,
    found: Sequence[dict[str, Any]],
    folder: RunFolder,
    judge: WordJudge,
    measured: Sequence[Preference],
    *,
    counts: tuple[int, int, int, int],
) -> str:
    """How right r_φ and the judge are about people, and how the agents fare against the untouched model."""
    total, usable, learned, judged = counts
    metrics = folder.metrics("reward") or {}
    chosen = judge([response_text(p.chosen) for p in measured])
    rejected = judge([response_text(p.rejected) for p in measured])
    by_words = float((chosen > rejected).mean())
    right = [
        ["r_φ", f"{learned}", interval(metrics["accuracy"], len(measured))],
        ["judge of words", f"{judged}", interval(by_words, len(measured))],
    ]
    base = found[0]
    rows = [["untouched", "", "", "0.0", f"{base['perplexity']:.1f}", f"{base['length']:.0f}"]]
    for seed, agent in enumerate(found[1:]):
        wins = (interval(share(agent[key], base[key]), len(base[key])) for key in ("score", "judge"))
        rows.append(
            [f"PPO, seed {seed}", *wins, f"{agent['kl']:.1f}", f"{agent['perplexity']:.1f}", f"{agent['length']:.0f}"]
        )
    parts = [
        f"{usable} of {total} pairs are used: both answers have words, differ, and fit {a.longest} tokens.",
        "",
        markdown_table(["right about people", "learned from:", f"on {len(measured)} held-out pairs:"], right),
        "",
        markdown_table(["answers", "preferred by r_φ:", "by the judge:", "KL, nats:", "perplexity:", "tokens:"], rows),
    ]
    return minus("\n".join(parts))


def share(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How often ours is higher; equal ones count half."""
    return float((0.5 * (1 + np.sign(np.subtract(ours, theirs)))).mean())


def interval(rate: float, n: int) -> str:
    """A share and its 95 % interval."""
    found = share_interval(rate, n)
    return f"{found.rate:.1%} [{found.low:.1%}, {found.high:.1%}]"


def draw_picture(a: argparse.Namespace, folder: RunFolder) -> None:
    """r_φ and KL of each rollout over the tokens learned from, a line a seed."""
    with picture(a.output, 1, 2, (8, 3.4)) as axes:
        for seed, colour in zip(range(a.seeds), COLOURS, strict=False):
            log = iterations(folder.seed("train", 1, seed))
            tokens = [record["tokens"] for record in log]
            for axis, name in zip(axes[0], ("rlhf/score", "rlhf/kl"), strict=True):
                axis.plot(tokens, [record[name] for record in log], color=colour, label=f"seed {seed}")
        for axis, title in zip(axes[0], ("r_φ, in standard deviations", "KL, nats a response"), strict=True):
            axis.set(title=title, xlabel="tokens")
        axes[0, 0].legend()


if __name__ == "__main__":
    main()
