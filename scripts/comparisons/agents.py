"""Every agent with its settings, place by place.

Settings are mostly those of each agent's tests, looked at on seed 0; the comparison is told from other seeds. None was
searched for. What all have in common: γ = 1, no entropy bonus, Adam, a learning rate (TRPO: a trust region) that falls
to 0 over the budget, and where the optimum is to be hit advantages as they are, not whitened (GRPO's are its own).
"""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import ppo_single_file
from sb3_contrib import QRDQN, TRPO, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from comparisons.places import Place, PlaceName, Point, Watch
from comparisons.policies import Chooser, Greedy, Policy, Sampler
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
from rlhf_gym.agents.maskable import MaskableLMActorCriticPolicy
from rlhf_gym.envs import ActionMask, SB3VecEnv, ShortlistVectorActions
from rlhf_gym.lm import Shared

Settings = dict[str, Any]


class Learned(NamedTuple):
    """What a run left."""

    policy: Policy
    """The final one."""
    tokens: int
    """Learnt from."""
    seconds: float
    """Of processor time, in one thread, without looking at the policy meanwhile."""
    points: list[Point]
    """What was seen meanwhile; the last point is the final policy."""


@dataclass(frozen=True)
class Run:
    """One agent's learning."""

    place: Place
    """Where."""
    tokens: int
    """The budget."""
    seed: int
    """Of the agent, and where things are enumerated of the place."""
    progress: Callable[[int], None]
    """Told the tokens so far."""

    def watched(self, policy: Policy, learn: Callable[[Watch], int]) -> Learned:
        """`learn` with someone looking; it returns the tokens it took."""
        watch = Watch(self.place, self.tokens, self.progress)
        started = time.process_time()
        tokens = learn(watch)
        seconds = time.process_time() - started - watch.seconds
        points = [*watch.points, Point(tokens, self.place.glance(policy))]
        return Learned(policy, tokens, seconds, points)

    @property
    def uncached(self) -> Settings:
        """A table has no keys and values to keep."""
        return {"use_cache": False} if self.place.name == "tabular" else {}


class Look(BaseCallback):
    """Looks at an agent whenever it is about to act."""

    def __init__(self, watch: Watch, policy: Policy) -> None:
        super().__init__()
        self.watch, self.policy = watch, policy

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


# -- ours --------------------------------------------------------------------------------------------------------------

EXACT = {"gae_lambda": 1.0, "normalize_advantage": False, "clip_range_vf": None, "vf_coef": 0.5}
OURS: dict[type[TokenAlgorithm], dict[PlaceName, Settings]] = {
    TokenPPO: {
        "tabular": {"learning_rate": 0.1, "n_epochs": 4} | EXACT,
        "gpt2": {"learning_rate": 3e-3, "n_epochs": 4} | EXACT,
        "reviews": {"learning_rate": 1e-3, "batch_size": 32, "n_epochs": 4},
    },
    TokenA2C: {
        "tabular": {"learning_rate": 0.1, "vf_coef": 0.5},
        "gpt2": {"learning_rate": 5e-3, "vf_coef": 0.5, "n_episodes": 64},
        "reviews": {"learning_rate": 2e-3, "n_episodes": 32},
    },
    TokenReinforce: {
        "tabular": {"learning_rate": 0.1},
        "gpt2": {"learning_rate": 5e-3, "n_episodes": 64},
        "reviews": {"learning_rate": 2e-3, "n_episodes": 32},
    },
    TokenRLOO: {
        "tabular": {"learning_rate": 0.1},
        "gpt2": {"learning_rate": 5e-3, "n_episodes": 64},
        "reviews": {"learning_rate": 2e-3, "n_episodes": 32},
    },
    TokenGRPO: {
        "tabular": {"learning_rate": 0.1, "n_epochs": 1},
        "gpt2": {"learning_rate": 5e-3, "n_epochs": 1, "n_episodes": 64},
        "reviews": {"learning_rate": 1e-3, "batch_size": 32, "n_epochs": 4},
    },
}
GROUP: dict[PlaceName, int] = {"tabular": 8, "gpt2": 8, "reviews": 4}
"""Responses to a prompt, where they are compared."""


def ours(kind: type[TokenAlgorithm]) -> Callable[[Run], Learned]:
    """A learner on whole episodes, rewards deferred."""

    def learn(run: Run) -> Learned:
        settings = OURS[kind][run.place.name]
        grouped = {"samples_per_prompt": GROUP[run.place.name]} if kind.compares_groups else {}
        return _token_agent(kind, run, grouped, settings)

    return learn


def _token_agent(kind: type[TokenAlgorithm], run: Run, env: Settings, settings: Settings) -> Learned:
    shared = {"n_episodes": 128, "seed": run.seed, "device": "cpu", "policy_kwargs": run.uncached}
    settings = shared | ({"batch_size": settings.get("n_episodes", 128)} if kind is TokenPPO else {}) | settings
    settings["learning_rate"] = LinearSchedule(settings["learning_rate"], 0.0, 1.0)
    agent = kind("LMPolicy", run.place.env(min(128, settings["n_episodes"]), **env), **settings)
    return _sb3(run, agent, Sampler(agent.policy.model))


def _sb3(run: Run, agent: BaseAlgorithm, policy: Policy, *callbacks: BaseCallback) -> Learned:
    def learn(watch: Watch) -> int:
        agent.learn(run.tokens, callback=[*callbacks, Look(watch, policy)])
        return agent.num_timesteps

    return run.watched(policy, learn)


# -- others' -----------------------------------------------------------------------------------------------------------

PLAIN = {"normalize_advantage": False, "gae_lambda": 1.0, "max_grad_norm": 1.0}
STOCK: dict[type[BaseAlgorithm], dict[PlaceName, Settings]] = {
    PPO: {
        "tabular": {"learning_rate": 0.05, "n_steps": 3, "batch_size": 384, "n_epochs": 4} | PLAIN,
        "gpt2": {"learning_rate": 3e-3, "n_steps": 3, "batch_size": 384, "n_epochs": 4} | PLAIN,
        "reviews": {"learning_rate": 1e-3, "n_steps": 32, "batch_size": 512, "n_epochs": 4, "vf_coef": 0.1},
    },
    MaskablePPO: {
        "tabular": {"learning_rate": 0.05, "n_steps": 3, "batch_size": 384, "n_epochs": 4} | PLAIN,
        "gpt2": {"learning_rate": 3e-3, "n_steps": 3, "batch_size": 384, "n_epochs": 4} | PLAIN,
        "reviews": {"learning_rate": 1e-3, "n_steps": 32, "batch_size": 512, "n_epochs": 4, "vf_coef": 0.1},
    },
    A2C: {
        "tabular": {"learning_rate": 0.1, "n_steps": 3, "use_rms_prop": False} | PLAIN,
        "gpt2": {"learning_rate": 5e-3, "n_steps": 3, "use_rms_prop": False} | PLAIN,
        "reviews": {"learning_rate": 2e-3, "n_steps": 8, "use_rms_prop": False, "vf_coef": 0.1},
    },
    TRPO: {
        "tabular": {"learning_rate": 0.05, "n_steps": 9, "batch_size": 1152, "target_kl": 0.05} | PLAIN,
        "gpt2": {"learning_rate": 5e-3, "n_steps": 9, "batch_size": 1152, "target_kl": 0.05} | PLAIN,
        "reviews": {
            "learning_rate": 1e-3,
            "n_steps": 32,
            "batch_size": 2048,
            "target_kl": 0.05,
            "cg_max_steps": 4,
        },
    },
}


def stock(kind: type[BaseAlgorithm]) -> Callable[[Run], Learned]:
    """An agent of SB3 or sb3-contrib as it is, its policy attached."""

    def learn(run: Run) -> Learned:
        settings = dict(STOCK[kind][run.place.name])
        settings["learning_rate"] = LinearSchedule(settings["learning_rate"], 0.0, 1.0)
        settings |= {"gamma": 1.0, "seed": run.seed, "device": "cpu"}
        settings["policy_kwargs"] = {"model": Shared(run.place.reference)} | run.uncached
        masks = {"action_mask": ActionMask()} if kind is MaskablePPO else {}
        if kind is TRPO:
            settings = {key: value for key, value in settings.items() if key != "max_grad_norm"}
            settings["n_critic_updates"] = 4
        policy_class = MaskableLMActorCriticPolicy if kind is MaskablePPO else LMActorCriticPolicy
        slots = 64 if run.place.name == "reviews" or (kind is A2C and run.place.name == "gpt2") else 128
        env = SB3VecEnv(run.place.env(slots, reward_timing="step", **masks))
        agent = kind(policy_class, env, **settings)
        shrink = [Shrink(settings["target_kl"])] if kind is TRPO else []
        return _sb3(run, agent, Sampler(agent.policy.model), AttachPolicy(), *shrink)  # type: ignore[arg-type]

    return learn


SINGLE: dict[PlaceName, Settings] = {
    "tabular": {"num_envs": 128, "num_steps": 9, "learning_rate": 0.03, "vf_coef": 0.5, "norm_adv": False,
                "clip_vloss": False, "gae_lambda": 1.0},
    "gpt2": {"num_envs": 128, "num_steps": 9, "learning_rate": 3e-3, "vf_coef": 0.5, "norm_adv": False,
             "clip_vloss": False, "gae_lambda": 1.0, "cached": True},
    "reviews": {"num_envs": 64, "num_steps": 32, "learning_rate": 1e-3, "cached": True},
}  # fmt: skip


class CountedSteps(gym.vector.VectorWrapper):
    """Tells of every rollout that begins: the single file has no callbacks."""

    def __init__(self, env: gym.vector.VectorEnv, look: Callable[[int], None], num_steps: int) -> None:
        super().__init__(env)
        self._look, self._num_steps, self._steps = look, num_steps, 0

    def step(self, actions: Any) -> Any:
        """A step in every slot."""
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
        return run.tokens // (args.num_steps * args.num_envs) * args.num_steps * args.num_envs

    return run.watched(policy, learn)


VALUE: dict[PlaceName, Settings] = {
    "tabular": {"learning_rate": 0.02, "net_arch": [], "k": 4},
    "gpt2": {"learning_rate": 3e-3, "net_arch": [64], "k": 4},
    "reviews": {"learning_rate": 1e-3, "net_arch": [128], "k": 16},
}


def value_based(kind: type[DQN] | type[QRDQN]) -> Callable[[Run], Learned]:
    """A value-based agent as it is: actions from a shortlist, a frozen model's features, nothing attached."""

    def learn(run: Run) -> Learned:
        own = VALUE[run.place.name]
        env = SB3VecEnv(ShortlistVectorActions(run.place.env(64, reward_timing="step"), own["k"]))
        model = {"model": Shared(run.place.reference)} | run.uncached
        agent = kind(
            "MultiInputPolicy",
            env,
            policy_kwargs={
                "features_extractor_class": LMFeaturesExtractor,
                "features_extractor_kwargs": model,
                "net_arch": own["net_arch"],
            }
            | ({"n_quantiles": 20} if kind is QRDQN else {}),  # its 200 take most of the time
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
        return _sb3(run, agent, Greedy(agent, own["k"]))

    return learn


# -- yardsticks --------------------------------------------------------------------------------------------------------

PAIRS: dict[PlaceName, Settings] = {
    "tabular": {"learning_rate": 0.1, "n_episodes": 256},
    "gpt2": {"learning_rate": 5e-3, "n_episodes": 256},
    "reviews": {"learning_rate": 1e-3, "n_episodes": 128, "batch_size": 32},
}


def dpo(run: Run) -> Learned:
    """DPO on pairs that π_ref draws and the environment's scores decide."""
    return _token_agent(DPO, run, {}, PAIRS[run.place.name])


def best_of(n: int) -> Callable[[Run], Learned]:
    """The best of n: nothing is learnt."""

    def learn(run: Run) -> Learned:
        agent = BestOfN("LMPolicy", run.place.env(64), n=n, seed=run.seed)
        return run.watched(Chooser(agent), lambda _: 0)

    return learn


# -- all of them -------------------------------------------------------------------------------------------------------

PI_STAR = "π*"


@dataclass(frozen=True)
class Entrant:
    """An agent in the comparison."""

    group: str
    """Whose it is, or what for."""
    aim: str
    """What it goes to."""
    learn: Callable[[Run], Learned]
    """Lets it."""

    @property
    def is_policy_gradient(self) -> bool:
        """Whether J* is its own aim, so that it is held to it."""
        return self.group in ("ours", "stock")


ENTRANTS: dict[str, Entrant] = {kind.__name__: Entrant("ours", PI_STAR, ours(kind)) for kind in OURS}
ENTRANTS |= {kind.__name__: Entrant("stock", PI_STAR, stock(kind)) for kind in STOCK}
ENTRANTS |= {
    "ppo_single_file": Entrant("stock", PI_STAR, single_file),
    "DQN": Entrant("value-based", "the mode of π*", value_based(DQN)),
    "QRDQN": Entrant("value-based", "the mode of π*", value_based(QRDQN)),
    "DPO": Entrant("yardstick", "π*, from pairs of π_ref's responses", dpo),
    "BestOf4": Entrant("yardstick", "π_ref tilted towards r, KL ≤ log 4 − 3/4 = .64", best_of(4)),
    "BestOf16": Entrant("yardstick", "π_ref tilted towards r, KL ≤ log 16 − 15/16 = 1.84", best_of(16)),
}
