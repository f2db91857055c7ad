"""Where agents learn, and what they are measured by there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, get_args

import gymnasium as gym
import numpy as np
from transformers import PreTrainedModel

from comparisons.policies import Chooser, Greedy, Policy, Sampler
from rlhf_gym.envs import EnumerableTask, Episode, TokenVectorEnv, gpt2_task, tabular_task
from rlhf_gym.functional import best_of_n_kl
from rlhf_gym.lm import Generation, Shared, load_causal_lm
from rlhf_gym.lm.tokens import decode, encode_prompts
from rlhf_gym.pipeline.comparison import win_rate
from rlhf_gym.pipeline.samples import Samples, draw, gold_scores, log_probs
from rlhf_gym.tasks import Task, reviews_task

PlaceName = Literal["tabular", "gpt2", "reviews"]
PLACES: tuple[PlaceName, ...] = get_args(PlaceName)
TOKENS: dict[PlaceName, int] = {"tabular": 48_000, "gpt2": 96_000, "reviews": 24_000}
"""The budget of every agent."""
NEAR = 0.01
"""How close to J* is close."""
REVIEWS_BETA = 0.1
HELDOUT = 288
POINTS = 40
"""Looks at an agent while it learns."""


class Place(Protocol):
    """An environment with a yardstick."""

    name: PlaceName

    @property
    def reference(self) -> PreTrainedModel:
        """π_ref, where every agent begins."""

    def env(self, num_envs: int, **overrides: Any) -> TokenVectorEnv:
        """The environment; deferred rewards unless told otherwise."""

    def measure(self, policy: Policy) -> dict[str, float]:
        """How good a policy is, once it has learnt."""

    def glance(self, policy: Policy) -> dict[str, float]:
        """The same while it learns: what is cheap of it."""


class Point(NamedTuple):
    """A look at an agent that learns."""

    tokens: int
    """Learnt from so far."""
    figures: dict[str, float]
    """What its policy was worth."""


class Watch:
    """Looks at a policy now and then, and keeps what it saw; the time it takes is not the agent's.

    Args:
        place: that measures.
        tokens: the budget, for the distance between two looks.
        progress: told how many tokens there have been.
    """

    def __init__(self, place: Place, tokens: int, progress: Callable[[int], None]) -> None:
        self.place, self.points, self.seconds = place, list[Point](), 0.0
        self._every, self._progress = max(1, tokens // POINTS), progress

    def look(self, tokens: int, policy: Policy) -> None:
        """If it is time."""
        started = time.process_time()
        if not self.points or tokens >= self.points[-1].tokens + self._every:
            self.points.append(Point(tokens, self.place.glance(policy)))
            self._progress(tokens)
        self.seconds += time.process_time() - started


# -- where everything can be enumerated --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Enumerable:
    """4 tokens, 3 steps, β = .5: J*, π* and a policy's distance from them by enumeration."""

    name: PlaceName
    """"tabular" or "gpt2"."""
    task: EnumerableTask
    """The task of a seed."""

    @property
    def reference(self) -> PreTrainedModel:
        return self.task.reference

    def env(self, num_envs: int, **overrides: Any) -> TokenVectorEnv:
        return self.task.env(num_envs, **overrides)

    def distribution(self, policy: Policy) -> np.ndarray:
        """Probability of each response, (V^T,)."""
        if isinstance(policy, Sampler):
            return self.task.probabilities(policy.model)
        if isinstance(policy, Chooser):
            return self.task.best_of(policy.agent.n)
        (episode,) = policy.respond(self.env(1), [[0]])
        return (self.task.strings.numpy() == episode.response_ids).all(axis=1).astype(np.float64)

    def measure(self, policy: Policy) -> dict[str, float]:
        """J* − J, the total variation from π*, KL, and whether its likeliest response is that of π*."""
        p = self.distribution(policy)
        return {
            "gap": self.task.best - self.task.objective(p),
            "variation": self.task.total_variation(p),
            "kl": self.task.kl(p),
            "finds_mode": float(p.argmax() == self.task.mode),
            "gap_of_reference": self.task.best - self.task.objective(self.task.reference),
            "gap_of_mode": self.task.best - self.task.objective(np.eye(len(p))[self.task.mode]),
        }

    def glance(self, policy: Policy) -> dict[str, float]:
        p = self.distribution(policy)
        return {"gap": self.task.best - self.task.objective(p), "variation": self.task.total_variation(p)}


def tokens_needed(points: list[Point], near: float = NEAR) -> int | None:
    """Tokens after which J* − J was at most `near` at every look; None if it was not so at the last one."""
    needed = None
    for point in reversed(points):
        if point.figures["gap"] > near:
            break
        needed = point.tokens
    return needed


# -- the reviews -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reviews:
    """`rlhf_gym/Reviews-v0`: r_φ to learn from; gold, on held-out prompts, to judge by."""

    task: Task
    """The embedded task."""
    sft: PreTrainedModel
    """π_ref."""
    name: PlaceName = "reviews"

    @property
    def reference(self) -> PreTrainedModel:
        return self.sft

    @property
    def prompts(self) -> list[str]:
        """The held-out prompts that all answer."""
        return list(self.task.heldout_prompts[:HELDOUT])

    def env(self, num_envs: int, **overrides: Any) -> TokenVectorEnv:
        settings = {"reward_timing": "deferred", "kl_coef": REVIEWS_BETA, "reference": Shared(self.sft)}
        return gym.make_vec("rlhf_gym/Reviews-v0", num_envs=num_envs, **(settings | overrides))  # type: ignore[return-value]

    def answers(self, policy: Policy) -> Samples:
        """One response to each held-out prompt."""
        if isinstance(policy, Sampler):
            return draw(policy.model, self.task, self.prompts, seed=0)
        ids = encode_prompts(self.task.tokenizer, self.prompts)
        episodes = (
            policy.agent.generate(ids).episodes if isinstance(policy, Chooser) else policy.respond(self.env(64), ids)
        )
        return Samples(
            self.prompts,
            decode(self.task.tokenizer, [e.response_ids.tolist() for e in episodes]),
            [_generation(e) for e in episodes],
        )

    def measure(self, policy: Policy) -> dict[str, float]:
        """Gold's win rate against SFT with its 95 % interval, gold, KL, length."""
        before, samples = sft_answers(self), self.answers(policy)
        gold = gold_scores(self.task.gold, samples)  # type: ignore[arg-type]
        wins = win_rate(gold, gold_scores(self.task.gold, before))  # type: ignore[arg-type]
        return {
            "wins": wins.rate,
            "wins_low": wins.low,
            "wins_high": wins.high,
            "gold": float(gold.mean()),
            "kl": self._kl(policy, samples),
            "length": float(samples.lengths.mean()),
            "distinct_responses": len(set(samples.responses)) / len(samples),
        }

    def _kl(self, policy: Policy, samples: Samples) -> float:
        """Mean of log π/π_ref over the responses; best of n: its bound; greedy: π is 1."""
        if isinstance(policy, Chooser):
            return float(best_of_n_kl(policy.agent.n))
        reference = np.array([row.sum() for row in log_probs(self.sft, samples)])  # (B,)
        if isinstance(policy, Greedy):
            return float(-reference.mean())
        return float(np.mean([row.sum() for row in log_probs(policy.model, samples)] - reference))

    def glance(self, policy: Policy) -> dict[str, float]:
        return {}


def _generation(episode: Episode) -> Generation:
    return Generation(
        episode.prompt_ids.tolist(),
        episode.response_ids.tolist(),
        episode.finish_reason,
        np.zeros(episode.response_length, np.float32),
    )


@lru_cache(maxsize=1)
def reviews() -> Reviews:
    """The one there is."""
    task = reviews_task()
    if task.sft is None:
        raise FileNotFoundError("expected the weights of the reviews task; scripts/build_reviews.py makes them")
    return Reviews(task, load_causal_lm(task.sft).requires_grad_(False))


@lru_cache(maxsize=1)
def sft_answers(place: Reviews) -> Samples:
    """What π_ref says to the held-out prompts."""
    return place.answers(Sampler(place.sft))


def make_place(name: PlaceName, seed: int) -> Place:
    """The place of a seed: where things are enumerated, each has rewards and a π_ref of its own."""
    if name == "reviews":
        return reviews()
    return Enumerable(name, tabular_task(seed) if name == "tabular" else gpt2_task(seed))
