"""PPO runs as the picture's last scene shows them: what each iteration's policy is like, and what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from rlhf_gym.agents import TokenPPO
from rlhf_gym.envs import EpisodeView
from rlhf_gym.monitoring import inspect_episodes
from rlhf_gym.tasks.reviews import heldout_topics
from rlhf_gym.tasks.reviews_gold import reviews_gold

RECORDING = Path(__file__).parent / "recording.json"
"""The runs on the shipped page. `scripts/picture.py --record` makes them."""
DIGITS = 4


def record(
    kl_coefs: Sequence[float] = (0.1, 0.0), *, tokens: int = 48_000, judged: int = 192, shown: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Record PPO on the embedded reviews task, once for each β, against its shipped reward model.

    Before every iteration, and after the last, the policy responds to the same held-out prompts with the same seed.

    Args:
        kl_coefs: the values of β; nothing else differs between the runs.
        tokens: response tokens of each run.
        judged: held-out prompts that the means are over.
        shown: the first so many of them, whose responses are kept token by token.
        seed: of learning and of the responses.

    Returns:
        `prompts` (those shown), `judged`, and `runs`. A run has its `kl_coef` and `steps`. A step has the `tokens`
        learned from so far, the means of `score`, `gold`, `kl` (nats a response), `entropy` (nats a token) and `length`
        (tokens), and the `samples`.
    """
    prompts = [topic.prompt() for topic in heldout_topics()[:judged]]
    runs = []
    for kl_coef in kl_coefs:
        env = gym.make_vec("rlhf_gym/Reviews-v0", num_envs=64, reward_timing="deferred", kl_coef=kl_coef)
        observer = _Observer(prompts, shown, seed)
        agent = TokenPPO("LMPolicy", env, learning_rate=1.5e-4, n_episodes=64, seed=seed, device="cpu")  # type: ignore[arg-type]
        agent.learn(tokens, callback=observer)
        runs.append({"kl_coef": kl_coef, "steps": observer.steps})
    return {"prompts": prompts[:shown], "judged": len(prompts), "runs": runs}


class _Observer(BaseCallback):
    """Look at the policy before each rollout, and when training ends."""

    def __init__(self, prompts: list[str], shown: int, seed: int) -> None:
        super().__init__()
        self.prompts = prompts
        self.shown = shown
        self.seed = seed
        self.steps: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        views = inspect_episodes(self.model, prompts=self.prompts, seed=self.seed)  # type: ignore[arg-type]
        gold = reviews_gold(self.prompts, [text_of(view.tokens) for view in views])  # (judged,)
        means = {
            "score": np.mean([_score(view) for view in views]),
            "gold": gold.mean(),
            "kl": np.mean([_log_ratios(view).sum() for view in views]),
            "entropy": np.concatenate([view.entropy for view in views]).mean(),
            "length": np.mean([len(view.tokens) for view in views]),
        }
        kept = zip(views[: self.shown], gold, strict=False)
        samples = [_sample(view, float(judged)) for view, judged in kept]
        rounded = {name: round(float(mean), DIGITS) for name, mean in means.items()}
        self.steps.append({"tokens": self.num_timesteps, **rounded, "samples": samples})

    def _on_training_end(self) -> None:
        self._on_rollout_start()


def text_of(tokens: Sequence[str]) -> str:
    """The response that these tokens are, without the token that ends it."""
    return "".join(tokens).rstrip().removesuffix("<eos>").rstrip()


def _score(view: EpisodeView) -> float:
    assert view.score is not None  # the episode is over
    return view.score


def _log_ratios(view: EpisodeView) -> np.ndarray:
    assert view.log_ratios is not None  # the environment has a reference
    return view.log_ratios


def _sample(view: EpisodeView, gold: float) -> dict[str, Any]:
    """A response: its tokens, log π and log π_ref of each, its score and gold."""
    columns = {"log_probs": view.log_probs, "ref_log_probs": view.ref_log_probs}
    rounded = {name: np.round(np.asarray(column, float), DIGITS).tolist() for name, column in columns.items()}
    return {
        "tokens": list(view.tokens),
        **rounded,
        "score": round(_score(view), DIGITS),
        "gold": round(gold, DIGITS),
    }
