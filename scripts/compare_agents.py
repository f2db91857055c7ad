"""Every agent, ours and others', on one table and one picture.

    python scripts/compare_agents.py                                    # all of it; half an hour on an idle core
    python scripts/compare_agents.py --environments tabular             # all agents and seeds, minutes
    python scripts/compare_agents.py --agents TokenPPO PPO --seeds 7    # two agents
    python scripts/compare_agents.py --draw-only                        # table and picture of what there is

Three environments. Two of them, with a table and with a small GPT-2 as policy, can be enumerated: 4 tokens, 3 steps,
so that J* and π* are known and every policy's distance from them is exact. Their rewards and their π_ref are drawn anew
for each seed. The third is `rlhf_gym/Reviews-v0`: all learn from r_φ with the same β and the same number of tokens, and
gold judges on held-out prompts. Every run leaves a file in `--results`; a comparison that was interrupted goes on.
It needs sb3-contrib: `pip install 'rlhf-gym[contrib]'`.

Left out: tuning. Each agent's settings are mostly those of its tests, looked at on seed 0, which is not among those
reported. Its learning rate (TRPO: trust region) falls to 0 over the budget, so with another budget the tokens needed
would be others. What all have in common: γ = 1, no entropy bonus, Adam, and where the optimum is to be hit advantages
that are not whitened (GRPO's are its own).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import ppo_single_file
import torch
from matplotlib.ticker import PercentFormatter
from sb3_contrib import QRDQN, TRPO, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from study import IMAGES, SOFT, kept, markdown_table, picture, spread_apart
from transformers import PreTrainedModel

from rlhf_gym.agents import (
    DPO,
    AttachPolicy,
    BestOfN,
    LMActorCriticPolicy,
    LMFeaturesExtractor,
    TokenA2C,
    TokenAlgorithm,
    TokenGRPO,
    TokenPPO,
    TokenReinforce,
    TokenRLOO,
)
from rlhf_gym.agents.maskable import MaskableLMActorCriticPolicy  # not in the room's front: it needs sb3-contrib
from rlhf_gym.envs import (
    ActionMask,
    EnumerableTask,
    Episode,
    SB3VecEnv,
    ShortlistVectorActions,
    TokenVectorEnv,
    gpt2_task,
    tabular_task,
)
from rlhf_gym.functional import best_of_n_kl
from rlhf_gym.lm import Generation, Shared, decode, encode_prompts, load_causal_lm, quiet_transformers
from rlhf_gym.pipeline import Samples, draw, gold_scores, log_probs, win_rate
from rlhf_gym.tasks import reviews_task

PlaceName = Literal["tabular", "gpt2", "reviews"]
PLACES: tuple[PlaceName, ...] = ("tabular", "gpt2", "reviews")
SEEDS: dict[str, Sequence[int]] = {"tabular": (10, 11, 12, 13, 14), "gpt2": (10, 11, 12), "reviews": (10,)}
TOKENS: dict[str, int] = {"tabular": 48_000, "gpt2": 96_000, "reviews": 24_000}
NEAR = 0.01  # how close to J* is close
REVIEWS_BETA = 0.1
HELDOUT = 288
LOOKS = 40  # at an agent while it learns


# -- what an agent leaves ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampler:
    """A policy that samples from a language model."""

    model: PreTrainedModel

    def distribution(self, task: EnumerableTask) -> np.ndarray:
        """Probability of each response, (V^T,)."""
        return task.probabilities(self.model)

    def answers(self, reviews: Reviews) -> Samples:
        """One response to each held-out prompt."""
        return draw(self.model, reviews.task, reviews.prompts, seed=0)

    def kl(self, reviews: Reviews, samples: Samples) -> float:
        """Mean of log π/π_ref over the responses."""
        own = np.array([row.sum() for row in log_probs(self.model, samples)])  # (B,)
        return float(np.mean(own - reviews.reference_log_probs(samples)))


@dataclass(frozen=True)
class Chooser:
    """A policy that takes the best of n responses of π_ref."""

    agent: BestOfN

    def distribution(self, task: EnumerableTask) -> np.ndarray:
        """Probability of each response, (V^T,)."""
        return task.best_of(self.agent.n)

    def answers(self, reviews: Reviews) -> Samples:
        """One response to each held-out prompt."""
        ids = encode_prompts(reviews.task.tokenizer, reviews.prompts)
        return reviews.samples(self.agent.generate(ids).episodes)

    def kl(self, reviews: Reviews, samples: Samples) -> float:
        """The upper bound on the KL."""
        return float(best_of_n_kl(self.agent.n))


@dataclass(frozen=True)
class Greedy:
    """A policy that takes the action of the highest value, out of π_ref's k likeliest tokens."""

    agent: BaseAlgorithm
    k: int

    def respond(self, env: TokenVectorEnv, prompts: list[list[int]]) -> list[Episode]:
        """Its response to each prompt, in their order; `env` has deferred rewards."""
        short = ShortlistVectorActions(env, self.k)
        observation, _ = short.reset(options={"prompts": prompts})
        while not env.parked.all():
            places, _ = self.agent.predict(observation, deterministic=True)  # type: ignore[arg-type]
            observation, *_ = short.step(np.asarray(places))
        episodes = env.pending_episodes
        env.discard_episodes()
        return episodes

    def distribution(self, task: EnumerableTask) -> np.ndarray:
        """Probability of each response, (V^T,)."""
        (episode,) = self.respond(task.env(1), [[0]])
        return (task.strings.numpy() == episode.response_ids).all(axis=1).astype(np.float64)

    def answers(self, reviews: Reviews) -> Samples:
        """One response to each held-out prompt."""
        ids = encode_prompts(reviews.task.tokenizer, reviews.prompts)
        return reviews.samples(self.respond(reviews.env(64), ids))

    def kl(self, reviews: Reviews, samples: Samples) -> float:
        """Mean of −log π_ref over the responses: π of each is 1."""
        return float(-reviews.reference_log_probs(samples).mean())


Policy = Sampler | Chooser | Greedy


# -- where agents learn ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Enumerable:
    """4 tokens, 3 steps, β = .5: J*, π* and a policy's distance from them by enumeration."""

    name: PlaceName
    task: EnumerableTask

    @property
    def reference(self) -> PreTrainedModel:
        """π_ref, where every agent begins."""
        return self.task.reference

    def env(self, num_envs: int, **overrides: Any) -> TokenVectorEnv:
        """The environment; its rewards are deferred unless told otherwise."""
        return self.task.env(num_envs, **overrides)

    def glance(self, policy: Policy) -> dict[str, float]:
        """How good a policy is while it learns: J* − J and the total variation from π*."""
        p = policy.distribution(self.task)
        return {"gap": self.task.best - self.task.objective(p), "variation": self.task.total_variation(p)}

    def measure(self, policy: Policy) -> dict[str, float]:
        """How good a policy is in the end: also KL, and whether its likeliest response is that of π*."""
        p = policy.distribution(self.task)
        return self.glance(policy) | {
            "kl": self.task.kl(p),
            "finds_mode": float(p.argmax() == self.task.mode),
            "gap_of_reference": self.task.best - self.task.objective(self.task.reference),
            "gap_of_mode": self.task.best - self.task.objective(np.eye(len(p))[self.task.mode]),
        }


class Reviews:
    """`rlhf_gym/Reviews-v0`: r_φ to learn from; gold, on held-out prompts, to judge by."""

    name: PlaceName = "reviews"

    def __init__(self) -> None:
        self.task = reviews_task()
        self.reference = load_causal_lm(self.task.sft).requires_grad_(False)
        self.prompts = list(self.task.heldout_prompts[:HELDOUT])

    @cached_property
    def gold_of_sft(self) -> np.ndarray:
        """Gold of π_ref's responses to the held-out prompts, (B,)."""
        return gold_scores(self.task.gold, Sampler(self.reference).answers(self))

    def env(self, num_envs: int, **overrides: Any) -> TokenVectorEnv:
        """The environment; its rewards are deferred unless told otherwise."""
        settings = {"reward_timing": "deferred", "kl_coef": REVIEWS_BETA, "reference": Shared(self.reference)}
        return gym.make_vec("rlhf_gym/Reviews-v0", num_envs=num_envs, **(settings | overrides))  # type: ignore[return-value]

    def reference_log_probs(self, samples: Samples) -> np.ndarray:
        """log π_ref of each response, (B,)."""
        return np.array([row.sum() for row in log_probs(self.reference, samples)])

    def samples(self, episodes: Sequence[Episode]) -> Samples:
        """Episodes on the held-out prompts as responses."""
        texts = decode(self.task.tokenizer, [e.response_ids.tolist() for e in episodes])
        return Samples(self.prompts, texts, [generation(e) for e in episodes])

    def glance(self, policy: Policy) -> dict[str, float]:
        """Nothing: measuring takes too long to do it while an agent learns."""
        return {}

    def measure(self, policy: Policy) -> dict[str, float]:
        """Gold's win rate against SFT with its 95 % interval, gold, KL, length."""
        samples = policy.answers(self)
        gold = gold_scores(self.task.gold, samples)
        wins = win_rate(gold, self.gold_of_sft)
        return {
            "wins": wins.rate,
            "wins_low": wins.low,
            "wins_high": wins.high,
            "gold": float(gold.mean()),
            "kl": policy.kl(self, samples),
            "length": float(samples.lengths.mean()),
            "distinct_responses": len(set(samples.responses)) / len(samples),
        }


Place = Enumerable | Reviews
reviews = lru_cache(maxsize=1)(Reviews)


def generation(episode: Episode) -> Generation:
    """An episode as a generated response, without its log-probabilities."""
    prompt = episode.input_ids[~episode.action_mask].tolist()
    zeros = np.zeros(episode.response_length, np.float32)
    return Generation(prompt, episode.response_ids.tolist(), episode.finish_reason, zeros)


def make_place(name: PlaceName, seed: int) -> Place:
    """The place of a seed: where things are enumerated, each has rewards and a π_ref of its own."""
    if name == "reviews":
        return reviews()
    return Enumerable(name, tabular_task(seed) if name == "tabular" else gpt2_task(seed))


# -- learning ----------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """What a policy was worth after so many tokens."""

    tokens: int
    figures: dict[str, float]


class Watch:
    """Looks at a policy now and then and keeps what it saw; the time it takes is not the agent's.

    Args:
        place: that measures.
        tokens: the budget, which decides the distance between two looks.
    """

    def __init__(self, place: Place, tokens: int) -> None:
        self.place = place
        self.points: list[Point] = []
        self.seconds = 0.0
        self._every = max(1, tokens // LOOKS)

    def look(self, tokens: int, policy: Policy) -> None:
        """Measure the policy if it is time."""
        started = time.process_time()
        if not self.points or tokens >= self.points[-1].tokens + self._every:
            self.points.append(Point(tokens, self.place.glance(policy)))
        self.seconds += time.process_time() - started


class Learned(NamedTuple):
    """The result of a run that was just learned."""

    policy: Policy
    """The final policy."""
    tokens: int
    """Tokens learned from."""
    seconds: float
    """Processor time in one thread, without looking at the policy meanwhile."""
    points: list[Point]
    """What was seen meanwhile; the last point is the final policy."""


@dataclass(frozen=True)
class Run:
    """One agent's learning: where, for how many tokens, and with which seed of agent and place."""

    place: Place
    tokens: int
    seed: int

    def watched(self, policy: Policy, learn: Callable[[Watch], int]) -> Learned:
        """What `learn` leaves, which is given something to look with and returns the tokens it took."""
        watch = Watch(self.place, self.tokens)
        started = time.process_time()
        tokens = learn(watch)
        seconds = time.process_time() - started - watch.seconds
        return Learned(policy, tokens, seconds, [*watch.points, Point(tokens, self.place.glance(policy))])

    def with_sb3(self, agent: BaseAlgorithm, policy: Policy, *callbacks: BaseCallback) -> Learned:
        """What an agent with SB3's `learn` leaves."""

        def learn(watch: Watch) -> int:
            agent.learn(self.tokens, callback=[*callbacks, Look(watch, policy)])
            return agent.num_timesteps

        return self.watched(policy, learn)

    @property
    def uncached(self) -> dict[str, Any]:
        """A table has no keys and values to keep."""
        return {"use_cache": False} if self.place.name == "tabular" else {}


class Look(BaseCallback):
    """Looks at an agent whenever it is about to act."""

    def __init__(self, watch: Watch, policy: Policy) -> None:
        super().__init__()
        self.watch = watch
        self.policy = policy

    def _on_rollout_start(self) -> None:
        self.watch.look(self.num_timesteps, self.policy)

    def _on_step(self) -> bool:
        return True


class Shrink(BaseCallback):
    """TRPO's trust region, from its first size to (nearly) none."""

    def __init__(self, target_kl: float) -> None:
        super().__init__()
        self.first = target_kl

    def _on_rollout_start(self) -> None:
        left = 1.0 - self.num_timesteps / self.model._total_timesteps
        self.model.target_kl = self.first * max(left, 0.03) ** 2  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


# -- the agents and their settings -------------------------------------------------------------------------------------

Settings = dict[str, dict[str, Any]]  # by the name of the place
EXACT = {"gae_lambda": 1.0, "normalize_advantage": False, "clip_range_vf": None, "vf_coef": 0.5}
SINGLE_EXACT = {"gae_lambda": 1.0, "norm_adv": False, "clip_vloss": False, "vf_coef": 0.5}
CRITIC_FREE: Settings = {
    "tabular": {"learning_rate": 0.1},
    "gpt2": {"learning_rate": 5e-3, "n_episodes": 64},
    "reviews": {"learning_rate": 2e-3, "n_episodes": 32},
}
OURS: dict[type[TokenAlgorithm], Settings] = {
    TokenPPO: {
        "tabular": {"learning_rate": 0.1, "n_epochs": 4, "batch_size": 128} | EXACT,
        "gpt2": {"learning_rate": 3e-3, "n_epochs": 4, "batch_size": 128} | EXACT,
        "reviews": {"learning_rate": 1e-3, "batch_size": 32, "n_epochs": 4},
    },
    TokenA2C: {
        "tabular": {"learning_rate": 0.1, "vf_coef": 0.5},
        "gpt2": {"learning_rate": 5e-3, "vf_coef": 0.5, "n_episodes": 64},
        "reviews": {"learning_rate": 2e-3, "n_episodes": 32},
    },
    TokenReinforce: CRITIC_FREE,
    TokenRLOO: CRITIC_FREE,
    TokenGRPO: {
        "tabular": {"learning_rate": 0.1, "n_epochs": 1},
        "gpt2": {"learning_rate": 5e-3, "n_epochs": 1, "n_episodes": 64},
        "reviews": {"learning_rate": 1e-3, "batch_size": 32, "n_epochs": 4},
    },
    DPO: {
        "tabular": {"learning_rate": 0.1, "n_episodes": 256},
        "gpt2": {"learning_rate": 5e-3, "n_episodes": 256},
        "reviews": {"learning_rate": 1e-3, "n_episodes": 128, "batch_size": 32},
    },
}
GROUP = {"tabular": 8, "gpt2": 8, "reviews": 4}  # responses to a prompt, for the agents that compare them
UNWHITENED = {"normalize_advantage": False, "gae_lambda": 1.0}
PLAIN = UNWHITENED | {"max_grad_norm": 1.0}
STOCK_PPO: Settings = {
    "tabular": {"learning_rate": 0.05, "n_steps": 3, "batch_size": 384, "n_epochs": 4} | PLAIN,
    "gpt2": {"learning_rate": 3e-3, "n_steps": 3, "batch_size": 384, "n_epochs": 4} | PLAIN,
    "reviews": {"learning_rate": 1e-3, "n_steps": 32, "batch_size": 512, "n_epochs": 4, "vf_coef": 0.1},
}
STOCK: dict[type[BaseAlgorithm], Settings] = {
    PPO: STOCK_PPO,
    MaskablePPO: STOCK_PPO,
    A2C: {
        "tabular": {"learning_rate": 0.1, "n_steps": 3, "use_rms_prop": False} | PLAIN,
        "gpt2": {"learning_rate": 5e-3, "n_steps": 3, "use_rms_prop": False} | PLAIN,
        "reviews": {"learning_rate": 2e-3, "n_steps": 8, "use_rms_prop": False, "vf_coef": 0.1},
    },
    TRPO: {
        "tabular": {"learning_rate": 0.05, "n_steps": 9, "batch_size": 1152} | UNWHITENED,
        "gpt2": {"learning_rate": 5e-3, "n_steps": 9, "batch_size": 1152} | UNWHITENED,
        "reviews": {"learning_rate": 1e-3, "n_steps": 32, "batch_size": 2048, "cg_max_steps": 4},
    },
}
SINGLE: Settings = {
    "tabular": {"num_envs": 128, "num_steps": 9, "learning_rate": 0.03} | SINGLE_EXACT,
    "gpt2": {"num_envs": 128, "num_steps": 9, "learning_rate": 3e-3, "cached": True} | SINGLE_EXACT,
    "reviews": {"num_envs": 64, "num_steps": 32, "learning_rate": 1e-3, "cached": True},
}
VALUE: Settings = {
    "tabular": {"learning_rate": 0.02, "net_arch": [], "k": 4},
    "gpt2": {"learning_rate": 3e-3, "net_arch": [64], "k": 4},
    "reviews": {"learning_rate": 1e-3, "net_arch": [128], "k": 16},
}


def ours(kind: type[TokenAlgorithm]) -> Callable[[Run], Learned]:
    """One of our agents, which learn on whole episodes with deferred rewards."""

    def learn(run: Run) -> Learned:
        shared = {"n_episodes": 128, "seed": run.seed, "device": "cpu", "policy_kwargs": run.uncached}
        settings = shared | OURS[kind][run.place.name]
        settings["learning_rate"] = LinearSchedule(settings["learning_rate"], 0.0, 1.0)
        grouped = {"samples_per_prompt": GROUP[run.place.name]} if kind.compares_groups else {}
        agent = kind("LMPolicy", run.place.env(min(128, settings["n_episodes"]), **grouped), **settings)
        return run.with_sb3(agent, Sampler(agent.policy.model))

    return learn


def stock(kind: type[BaseAlgorithm]) -> Callable[[Run], Learned]:
    """An agent of SB3 or sb3-contrib as it is, its policy attached."""

    def learn(run: Run) -> Learned:
        settings = {"gamma": 1.0, "seed": run.seed, "device": "cpu"} | STOCK[kind][run.place.name]
        settings["learning_rate"] = LinearSchedule(settings["learning_rate"], 0.0, 1.0)
        settings["policy_kwargs"] = {"model": Shared(run.place.reference)} | run.uncached
        policy_class: type[LMActorCriticPolicy] = LMActorCriticPolicy
        masks = {}
        callbacks: list[BaseCallback] = [AttachPolicy()]
        if kind is MaskablePPO:
            policy_class = MaskableLMActorCriticPolicy
            masks = {"action_mask": ActionMask()}
        if kind is TRPO:
            settings |= {"n_critic_updates": 4, "target_kl": 0.05}
            callbacks.append(Shrink(0.05))
        slots = 64 if run.place.name == "reviews" or (kind is A2C and run.place.name == "gpt2") else 128
        agent = kind(policy_class, SB3VecEnv(run.place.env(slots, reward_timing="step", **masks)), **settings)
        return run.with_sb3(agent, Sampler(agent.policy.model), *callbacks)  # type: ignore[arg-type]

    return learn


class CountedSteps(gym.vector.VectorWrapper):
    """Tells of every rollout that begins: the single file has no callbacks."""

    def __init__(self, env: gym.vector.VectorEnv, look: Callable[[int], None], num_steps: int) -> None:
        super().__init__(env)
        self._look = look
        self._num_steps = num_steps
        self._steps = 0

    def step(self, actions: Any) -> Any:
        """Take a step in every slot."""
        if self._steps % self._num_steps == 0:
            self._look(self._steps * self.num_envs)
        self._steps += 1
        return super().step(actions)


def single_file(run: Run) -> Learned:
    """`scripts/ppo_single_file.py`, which takes nothing from `rlhf_gym.agents`."""
    args = ppo_single_file.Args(seed=run.seed, total_timesteps=run.tokens, **SINGLE[run.place.name])
    envs = gym.wrappers.vector.RecordEpisodeStatistics(run.place.env(args.num_envs, reward_timing="step"))
    model = copy.deepcopy(run.place.reference)
    policy = Sampler(model)

    def learn(watch: Watch) -> int:
        counted = CountedSteps(envs, lambda tokens: watch.look(tokens, policy), args.num_steps)
        with contextlib.redirect_stdout(io.StringIO()):
            ppo_single_file.train(args, counted, model)
        rollout = args.num_steps * args.num_envs
        return run.tokens // rollout * rollout

    return run.watched(policy, learn)


def value_based(kind: type[DQN] | type[QRDQN], **more: Any) -> Callable[[Run], Learned]:
    """A value-based agent as it is: actions from a shortlist, a frozen model's features, nothing attached."""

    def learn(run: Run) -> Learned:
        own = VALUE[run.place.name]
        features = {
            "features_extractor_class": LMFeaturesExtractor,
            "features_extractor_kwargs": {"model": Shared(run.place.reference)} | run.uncached,
        }
        agent = kind(
            "MultiInputPolicy",
            SB3VecEnv(ShortlistVectorActions(run.place.env(64, reward_timing="step"), own["k"])),
            policy_kwargs=features | {"net_arch": own["net_arch"]} | more,
            learning_rate=LinearSchedule(own["learning_rate"], own["learning_rate"] / 10, 1.0),
            buffer_size=10_000,
            learning_starts=1_000,
            batch_size=128,
            gamma=1.0,
            train_freq=1,
            gradient_steps=1,
            target_update_interval=640,
            exploration_fraction=0.6,
            exploration_final_eps=0.1,
            seed=run.seed,
            device="cpu",
        )
        return run.with_sb3(agent, Greedy(agent, own["k"]))

    return learn


def best_of(n: int) -> Callable[[Run], Learned]:
    """The best of n responses of π_ref: nothing is learned."""

    def learn(run: Run) -> Learned:
        agent = BestOfN("LMPolicy", run.place.env(64), n=n, seed=run.seed)
        return run.watched(Chooser(agent), lambda _: 0)

    return learn


@dataclass(frozen=True)
class Entrant:
    """An agent in the comparison: whose it is, what it goes to, how it learns, and how it is drawn."""

    group: Literal["ours", "stock", "value-based", "yardstick"]
    aim: str
    learn: Callable[[Run], Learned]
    colour: str


MODE = "the mode of π*"
PAIRS = "π*, from pairs of π_ref's responses"
TILTED = "π_ref tilted towards r, KL ≤ "
ENTRANTS: dict[str, Entrant] = {
    "TokenPPO": Entrant("ours", "π*", ours(TokenPPO), "#1f56a5"),
    "TokenA2C": Entrant("ours", "π*", ours(TokenA2C), "#2c8fa3"),
    "TokenReinforce": Entrant("ours", "π*", ours(TokenReinforce), "#4a7a55"),
    "TokenRLOO": Entrant("ours", "π*", ours(TokenRLOO), "#8aa62b"),
    "TokenGRPO": Entrant("ours", "π*", ours(TokenGRPO), "#6d5bd0"),
    "PPO": Entrant("stock", "π*", stock(PPO), "#bf4a14"),
    "MaskablePPO": Entrant("stock", "π*", stock(MaskablePPO), "#e08a3c"),
    "A2C": Entrant("stock", "π*", stock(A2C), "#c2428b"),
    "TRPO": Entrant("stock", "π*", stock(TRPO), "#8c2f1e"),
    "ppo_single_file": Entrant("stock", "π*", single_file, "#a07a2c"),
    "DQN": Entrant("value-based", MODE, value_based(DQN), "#5f646c"),
    "QRDQN": Entrant("value-based", MODE, value_based(QRDQN, n_quantiles=20), "#9aa0a8"),
    "DPO": Entrant("yardstick", PAIRS, ours(DPO), "#111111"),
    "BestOf4": Entrant("yardstick", TILTED + "log 4 − 3/4 = .64", best_of(4), "#111111"),
    "BestOf16": Entrant("yardstick", TILTED + "log 16 − 15/16 = 1.84", best_of(16), "#111111"),
}


# -- results -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """The figures of one run."""

    tokens: int
    """The tokens that the run took, in whole rollouts."""
    seconds: float
    """Processor time of learning, in one thread."""
    figures: dict[str, float]
    """What its final policy is worth, see the places' `measure`."""
    needed: int | None = None
    """Tokens after which J* − J stayed at most `NEAR`; None where it did not."""
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """Pairs of (tokens, figures), measured during learning."""


@dataclass(frozen=True)
class Selection:
    """What is compared, and the folder of its results."""

    agents: Sequence[str]
    places: Sequence[PlaceName]
    seeds: dict[str, Sequence[int]]
    budgets: dict[str, int]
    folder: Path

    def path(self, place: PlaceName, agent: str, seed: int) -> Path:
        """The file of a run."""
        return self.folder / f"{place}-{agent}-{seed}-{self.budgets[place]}.json"

    def runs(self) -> list[tuple[PlaceName, str, int]]:
        """(place, agent, seed) of all runs, those of one seed together."""
        return [(place, agent, seed) for place in self.places for seed in self.seeds[place] for agent in self.agents]

    def found(self, place: PlaceName, agent: str) -> dict[int, Result]:
        """The results there are, by seed."""
        if place not in self.places:
            return {}
        paths = {seed: self.path(place, agent, seed) for seed in self.seeds[place]}
        return {seed: Result(**kept(path, dict)) for seed, path in paths.items() if path.is_file()}


def measure(name: PlaceName, agent: str, seed: int, budget: int) -> dict[str, Any]:
    """Do one run, and return the fields of its `Result`."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*runs without a cache")  # a table has no keys and values
        warnings.filterwarnings("ignore", message=".*mini-batch")  # the last one of a rollout may be smaller
        place = make_place(name, seed)
        learned = ENTRANTS[agent].learn(Run(place, budget, seed))
        figures = place.measure(learned.policy)
    needed = None if name == "reviews" else tokens_needed(learned.points)
    return vars(Result(learned.tokens, learned.seconds, figures, needed, [tuple(point) for point in learned.points]))


def tokens_needed(points: Sequence[Point]) -> int | None:
    """Tokens after which J* − J was at most `NEAR` at every look; None if it was not so at the last one."""
    needed = None
    for point in reversed(points):
        if point.figures["gap"] > NEAR:
            break
        needed = point.tokens
    return needed


def median(runs: Sequence[Result], figure: str) -> float:
    """The median of a figure over the seeds."""
    return float(np.median([run.figures[figure] for run in runs]))


# -- the table ---------------------------------------------------------------------------------------------------------

TITLES = {"tabular": "table", "gpt2": "GPT-2", "reviews": "Reviews"}
EXACT_COLUMNS = ("J* − J", "TV", "tokens to J* − .01")
COLUMNS = {"tabular": EXACT_COLUMNS, "gpt2": EXACT_COLUMNS, "reviews": ("wins against SFT", "KL, nats", "tokens/s")}


def markdown(selection: Selection) -> str:
    """One row an agent, a few columns a place, and below what the figures are."""
    header = ["agent", "goes to"]
    header += [f"{TITLES[place]}: {column}" for place in selection.places for column in COLUMNS[place]]
    rows = []
    for agent in selection.agents:
        found = {place: list(selection.found(place, agent).values()) for place in selection.places}
        if any(found.values()):
            figures = [cell for place, runs in found.items() for cell in cells(place, agent, runs)]
            rows.append([f"`{agent}`", ENTRANTS[agent].aim, *figures])
    return "\n".join([markdown_table(header, rows), "", *notes(selection)]) + "\n"


def cells(place: PlaceName, agent: str, runs: Sequence[Result]) -> list[str]:
    """An agent's cells for one place."""
    if not runs:
        return ["–"] * len(COLUMNS[place])
    learned = [run for run in runs if run.tokens]
    if place == "reviews":
        kl = f"{'≤ ' if agent.startswith('BestOf') else ''}{median(runs, 'kl'):.1f}"
        rate = f"{np.median([run.tokens / run.seconds for run in learned]):,.0f}" if learned else "–"
        return [f"{median(runs, 'wins'):.1%}", kl, rate]
    needed = sorted(math.inf if run.needed is None else run.needed for run in runs)[(len(runs) - 1) // 2]
    tokens = "–" if not learned else "never" if math.isinf(needed) else f"{needed:,}"
    return [with_worst(runs, "gap"), with_worst(runs, "variation"), tokens]


def with_worst(runs: Sequence[Result], figure: str) -> str:
    """The median, and in brackets the worst of several."""
    middle = short(median(runs, figure))
    return f"{middle} ({short(max(run.figures[figure] for run in runs))})" if len(runs) > 1 else middle


def short(value: float) -> str:
    """A number with four decimals below .1, two above."""
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 0.1 else f"{value:.2f}".replace("0.", ".", 1)


def notes(selection: Selection) -> list[str]:
    """Seeds and budgets, and where π_ref and the mode of π* stand."""
    lines = []
    for place in selection.places:
        by_agent = {agent: selection.found(place, agent) for agent in selection.agents}
        runs = [run for found in by_agent.values() for run in found.values()]
        if not runs:
            continue
        seeds = sorted({seed for found in by_agent.values() for seed in found})
        told = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        budget = f"{selection.budgets[place]:,} tokens each"
        if place == "reviews":
            lines.append(
                f"- {TITLES[place]}: `rlhf_gym/Reviews-v0`, β = {REVIEWS_BETA}, {HELDOUT} held-out prompts judged by "
                f"gold; {budget}, {told}; tokens per second of processor time, one thread, on a busy machine."
            )
            continue
        over = f"median over {told} (in brackets the worst)" if len(seeds) > 1 else told
        modes = [
            f"{agent} says it on {sum(run.figures['finds_mode'] == 1 for run in found.values())} of {len(found)} "
            f"seed{'s' * (len(found) > 1)}"
            for agent, found in by_agent.items()
            if found and ENTRANTS[agent].group == "value-based"
        ]
        lines.append(
            f"- {TITLES[place]}: 4 tokens, 3 steps, β = .5; {over}, {budget}. π_ref: J* − J = "
            f"{short(median(runs, 'gap_of_reference'))}; the mode of π*, alone: {short(median(runs, 'gap_of_mode'))}"
            f"{' (' + ', '.join(modes) + ')' if modes else ''}."
        )
    return lines


# -- the picture -------------------------------------------------------------------------------------------------------

MARKERS = {"ours": "o", "stock": "s", "value-based": "^", "yardstick": "D"}
DASHES = {"ours": "-", "stock": "--", "yardstick": ":"}
FLOOR = 2e-5  # below this a gap is drawn here: float32 tells no smaller ones apart


def draw_figure(selection: Selection, path: Path) -> None:
    """A panel for the environment that is enumerated (the table if it is there), one for the reviews."""
    found = {p: {agent: list(selection.found(p, agent).values()) for agent in selection.agents} for p in PLACES}
    places = [place for place in PLACES if any(found[place].values())]
    panels = [place for place in places if place != "reviews"][:1] + ["reviews"] * ("reviews" in places)
    if not panels:
        raise ValueError("expected at least one run to draw, got none")
    with picture(path, 1, len(panels), (6.9 * len(panels), 5.2)) as axes:
        for place, axis in zip(panels, axes[0], strict=True):
            runs = {agent: results for agent, results in found[place].items() if results}
            seeds = max(map(len, runs.values()))
            if place == "reviews":
                draw_reviews(axis, runs, seeds)
            else:
                subject = "A table as policy" if place == "tabular" else "A small GPT-2"
                draw_curves(axis, runs)
                axis.set_title(f"{subject}, everything enumerated: medians of {seeds} seeds, bands their range")


def draw_curves(axis: Any, runs: dict[str, list[Result]]) -> None:
    """J* − J over tokens, an agent a line; those that learn nothing as levels."""
    ends = []
    for agent, found in runs.items():
        entrant = ENTRANTS[agent]
        if entrant.group == "value-based":
            continue
        if not any(run.tokens for run in found):
            level = median(found, "gap")
            axis.axhline(level, color=entrant.colour, lw=1, ls=":")
            annotate_level(axis, f"{agent}, no learning", level, entrant.colour)
            continue
        grid = np.geomspace(max(run.curve[1][0] for run in found), min(run.tokens for run in found), 120)
        curves = [[(point[0], point[1]["gap"]) for point in run.curve] for run in found]
        gaps = np.maximum([np.interp(grid, *zip(*curve, strict=True)) for curve in curves], FLOOR)  # (seeds, grid)
        middle = np.median(gaps, axis=0)  # (grid,)
        axis.plot(grid, middle, color=entrant.colour, ls=DASHES[entrant.group], lw=1.6)
        axis.fill_between(grid, gaps.min(axis=0), gaps.max(axis=0), color=entrant.colour, alpha=0.06, lw=0)
        ends.append((float(np.log10(middle[-1])), agent, float(grid[-1])))
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="J* − J (what is below 2·10⁻⁵ is drawn there)")
    for group, name in (("ours", "ours"), ("stock", "others'"), ("yardstick", "yardsticks")):
        axis.plot([], [], color=SOFT, ls=DASHES[group], lw=1.6, label=name)
    axis.legend(loc="lower left")
    axis.axhline(NEAR, color=SOFT, lw=1)
    annotate_level(axis, f"J* − {NEAR:.2g}", NEAR, SOFT)
    ends.sort()
    for (_, agent, x), y in zip(ends, spread_apart([end[0] for end in ends], 0.165), strict=True):
        colour = ENTRANTS[agent].colour
        axis.annotate(agent, (x, 10**y), (7, 0), textcoords="offset points", color=colour, fontsize=8.5, va="center")
    left, right = axis.get_xlim()
    axis.set_xlim(left, right * 2.4)


def annotate_level(axis: Any, text: str, level: float, colour: str) -> None:
    """A name at the left end of a horizontal line."""
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axis.annotate(text, (0.01, level), (0, 3), color=colour, fontsize=8.5, **place)


def draw_reviews(axis: Any, runs: dict[str, list[Result]], seeds: int) -> None:
    """Gold's win rate over KL, an agent a point."""
    points = []
    for agent, found in runs.items():
        entrant = ENTRANTS[agent]
        x = median(found, "kl")
        interval = [median(found, "wins_low"), median(found, "wins_high")]
        axis.plot([x, x], interval, color=entrant.colour, lw=1, alpha=0.4)
        kls = [run.figures["kl"] for run in found]
        wins = [run.figures["wins"] for run in found]
        axis.plot(kls, wins, ls="", ms=6.5, marker=MARKERS[entrant.group], color=entrant.colour)
        points.append((median(found, "wins"), x, agent))
    axis.axhline(0.5, color=SOFT, lw=1)
    annotate_level(axis, "SFT", 0.5, SOFT)
    axis.set(xlabel="KL from π_ref, nats (best of n: its bound)", ylabel="gold prefers it to SFT", xscale="log")
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlim(0.45, max(8.0, 1.25 * max(x for _, x, _ in points)))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_title(f"Reviews: what a nat buys ({seeds} seed{'s' * (seeds > 1)}, bars 95 % intervals)")
    low, high = axis.get_ylim()
    points.sort()
    levels = spread_apart([y for y, _, _ in points], 0.04 * (high - low))
    for (y, x, agent), level in zip(points, levels, strict=True):  # names in a column, with lines to their points
        colour = ENTRANTS[agent].colour
        line = {"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.45}
        at = {"textcoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
        axis.annotate(agent, (x, y), (1.01, level), color=colour, fontsize=8.5, arrowprops=line, **at)


# -- the command -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(ENTRANTS)
    parser.add_argument("--agents", nargs="+", choices=names, default=names, metavar="AGENT", help=", ".join(names))
    parser.add_argument("--environments", nargs="+", choices=PLACES, default=list(PLACES), help="where")
    parser.add_argument("--seeds", nargs="+", type=int, help=f"by default {SEEDS}")
    parser.add_argument("--tokens", type=int, help=f"budget of every agent, by default {TOKENS}")
    parser.add_argument("--results", type=Path, default=Path("runs/agents_compared"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=IMAGES / "agents_compared.png", help="the picture")
    parser.add_argument("--markdown", type=Path, help="a file for the table, which is printed in any case")
    parser.add_argument("--draw-only", action="store_true", help="run nothing")
    a = parser.parse_args(arguments)
    if a.tokens is not None and a.tokens < 1:
        parser.error(f"expected --tokens of at least 1, got {a.tokens}")
    seeds = {place: a.seeds or SEEDS[place] for place in PLACES}
    budgets = {place: a.tokens or TOKENS[place] for place in PLACES}
    selection = Selection(a.agents, a.environments, seeds, budgets, a.results)
    torch.set_num_threads(1)
    runs = [] if a.draw_only else selection.runs()
    missing = [run for run in runs if not selection.path(*run).is_file()]
    for number, (place, agent, seed) in enumerate(missing, 1):
        print(f"{number}/{len(missing)}  {place}, {agent}, seed {seed}", flush=True)
        kept(selection.path(place, agent, seed), lambda: measure(place, agent, seed, budgets[place]))  # noqa: B023
    table = markdown(selection)
    print(table)
    if a.markdown:
        a.markdown.write_text(table)
    draw_figure(selection, a.output)


if __name__ == "__main__":
    main()
