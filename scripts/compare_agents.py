"""Every agent, ours and others', on one table and one picture.

    python scripts/compare_agents.py                                    # all of it; half an hour on an idle core
    python scripts/compare_agents.py --environments tabular             # all agents and seeds, minutes
    python scripts/compare_agents.py --agents agents.TokenPPO PPO --seeds 7    # two agents

Three environments. Two of them, with a table and with a small GPT-2 as policy, can be enumerated: 4 tokens, 3 steps,
so that J* and π* are known and every policy's distance from them is exact. Their rewards and their π_ref are drawn anew
for each seed. The third is `rlhf_gym/Reviews-v0`: all learn from r_φ with the same β and the same number of tokens, and
gold judges on held-out prompts. Every run leaves a file in `--results`; a comparison that was interrupted goes on.
It needs sb3-contrib: `pip install -e '.[contrib]'`.

Left out: tuning. Each agent's settings are mostly those of its tests, looked at on seed 0, which is not among those
reported. Its learning rate (TRPO: trust region) falls to 0 over the budget, so with another budget the tokens needed
would be others. What all have in common: γ = 1, no entropy bonus, Adam, and where the optimum is to be hit advantages
that are not whitened (GRPO's are its own).
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import ppo_single_file
import study
from matplotlib.ticker import PercentFormatter
from sb3_contrib import QRDQN, TRPO, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from transformers import PreTrainedModel

from rlhf_gym import agents, envs
from rlhf_gym.agents.maskable import MaskableLMActorCriticPolicy  # not in the room's front: it needs sb3-contrib
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


class Policy(NamedTuple):
    """How the policy that an agent came to answers, where all is enumerated and on the reviews."""

    distribution: Callable[[envs.EnumerableTask], np.ndarray]
    """Gives the probability of each response, (V^T,)."""
    answers: Callable[[Reviews], Samples]
    """Gives one response to each held-out prompt."""
    kl: Callable[[Reviews, Samples], float]
    """Gives the mean of log π/π_ref over these responses."""
    model: PreTrainedModel | None = None
    """The model that it samples from, if it does."""


def sampler(model: PreTrainedModel) -> Policy:
    """The policy that samples from a language model."""
    return Policy(
        lambda task: task.probabilities(model),
        lambda reviews: draw(model, reviews.task, reviews.prompts, seed=0),
        lambda reviews, samples: float(
            np.mean(summed_log_probs(model, samples) - summed_log_probs(reviews.reference, samples))
        ),
        model,
    )


def chooser(agent: agents.BestOfN) -> Policy:
    """The policy that takes the best of n responses of π_ref; its KL is the upper bound."""
    return Policy(
        lambda task: task.best_of(agent.n),
        lambda reviews: reviews.samples(agent.generate(reviews.prompt_ids).episodes),
        lambda reviews, samples: float(best_of_n_kl(agent.n)),
    )


def greedy(agent: BaseAlgorithm, k: int) -> Policy:
    """The policy that takes the action of the highest value, out of π_ref's k likeliest tokens, with certainty."""

    def respond(env: envs.TokenVectorEnv, prompts: list[list[int]]) -> list[envs.Episode]:
        short = envs.ShortlistVectorActions(env, k)
        observation, _ = short.reset(options={"prompts": prompts})
        while not env.parked.all():
            places, _ = agent.predict(observation, deterministic=True)  # type: ignore[arg-type]
            observation, *_ = short.step(np.asarray(places))
        episodes = env.pending_episodes
        env.discard_episodes()
        return episodes

    def distribution(task: envs.EnumerableTask) -> np.ndarray:
        (episode,) = respond(task.env(1), [[0]])
        return (task.strings.numpy() == episode.response_ids).all(axis=1).astype(np.float64)

    return Policy(
        distribution,
        lambda reviews: reviews.samples(respond(reviews.env(64), reviews.prompt_ids)),
        lambda reviews, samples: float(-summed_log_probs(reviews.reference, samples).mean()),
    )


def summed_log_probs(model: PreTrainedModel, samples: Samples) -> np.ndarray:
    """log π of each response, (B,)."""
    return np.array([row.sum() for row in log_probs(model, samples)])


# -- where agents learn ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Enumerable:
    """4 tokens, 3 steps, β = .5: J*, π* and a policy's distance from them by enumeration."""

    name: PlaceName
    task: envs.EnumerableTask

    @property
    def reference(self) -> PreTrainedModel:
        """π_ref, where every agent begins."""
        return self.task.reference

    def env(self, num_envs: int, **overrides: Any) -> envs.TokenVectorEnv:
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
        self.prompt_ids = encode_prompts(self.task.tokenizer, self.prompts)

    @cached_property
    def gold_of_sft(self) -> np.ndarray:
        """Gold of π_ref's responses to the held-out prompts, (B,)."""
        return gold_scores(self.task.gold, sampler(self.reference).answers(self))

    def env(self, num_envs: int, **overrides: Any) -> envs.TokenVectorEnv:
        """The environment; its rewards are deferred unless told otherwise."""
        settings = {"reward_timing": "deferred", "kl_coef": REVIEWS_BETA, "reference": Shared(self.reference)}
        return gym.make_vec("rlhf_gym/Reviews-v0", num_envs=num_envs, **(settings | overrides))  # type: ignore[return-value]

    def samples(self, episodes: Sequence[envs.Episode]) -> Samples:
        """Episodes on the held-out prompts as responses, without their log-probabilities."""
        texts = decode(self.task.tokenizer, [e.response_ids.tolist() for e in episodes])
        generations = [
            Generation(ids, e.response_ids.tolist(), e.finish_reason, np.zeros(e.response_length, np.float32))
            for ids, e in zip(self.prompt_ids, episodes, strict=True)
        ]
        return Samples(self.prompts, texts, generations)

    def glance(self, policy: Policy) -> dict[str, float]:
        """Nothing: measuring takes too long to do it while an agent learns."""
        return {}

    def measure(self, policy: Policy) -> dict[str, float]:
        """Gold's win rate against SFT with its 95 % interval, and the KL."""
        samples = policy.answers(self)
        wins = win_rate(gold_scores(self.task.gold, samples), self.gold_of_sft)
        return {"wins": wins.rate, "wins_low": wins.low, "wins_high": wins.high, "kl": policy.kl(self, samples)}


Place = Enumerable | Reviews
reviews = lru_cache(maxsize=1)(Reviews)


def make_place(name: PlaceName, seed: int) -> Place:
    """The place of a seed: where things are enumerated, each has rewards and a π_ref of its own."""
    if name == "reviews":
        return reviews()
    return Enumerable(name, envs.tabular_task(seed) if name == "tabular" else envs.gpt2_task(seed))


# -- learning ----------------------------------------------------------------------------------------------------------


class Run:
    """One agent's learning: where, at which learning rate, for how many tokens, with which seed of agent and place."""

    def __init__(self, place: Place, rate: float, tokens: int, seed: int) -> None:
        self.place = place
        self.rate = rate
        self.tokens = tokens
        self.seed = seed
        self.uncached = {"use_cache": False} if place.name == "tabular" else {}  # a table has no keys and values
        self.curve: list[tuple[int, dict[str, float]]] = []
        """Pairs of tokens and what the policy was worth after them."""
        self.looking = 0.0
        """Processor time of looking, which is not the agent's."""

    def look(self, tokens: int, policy: Policy) -> None:
        """Measure the policy if it is time."""
        started = time.process_time()
        if not self.curve or tokens >= self.curve[-1][0] + max(1, self.tokens // LOOKS):
            self.curve.append((tokens, self.place.glance(policy)))
        self.looking += time.process_time() - started

    def with_sb3(self, agent: BaseAlgorithm, policy: Policy, *callbacks: BaseCallback) -> tuple[Policy, int]:
        """The policy after an agent's `learn`, and the tokens learned from."""
        look = OnRolloutStart(lambda callback: self.look(callback.num_timesteps, policy))
        agent.learn(self.tokens, callback=[*callbacks, look])
        return policy, agent.num_timesteps


class OnRolloutStart(BaseCallback):
    """Calls a function with itself whenever the agent is about to act."""

    def __init__(self, function: Callable[[BaseCallback], None]) -> None:
        super().__init__()
        self.function = function

    def _on_rollout_start(self) -> None:
        self.function(self)

    def _on_step(self) -> bool:
        return True


# -- the agents and their settings -------------------------------------------------------------------------------------

Settings = dict[str, dict[str, Any]]  # by the name of the place; the learning rates are with the entrants
EXACT = {"n_epochs": 4, "batch_size": 128, "gae_lambda": 1.0, "normalize_advantage": False}
EXACT |= {"clip_range_vf": None, "vf_coef": 0.5}
CRITIC_FREE: Settings = {"tabular": {}, "gpt2": {"n_episodes": 64}, "reviews": {"n_episodes": 32}}
OURS: dict[type[agents.TokenAlgorithm], Settings] = {
    agents.TokenPPO: {"tabular": EXACT, "gpt2": EXACT, "reviews": {"batch_size": 32, "n_epochs": 4}},
    agents.TokenA2C: {
        "tabular": {"vf_coef": 0.5},
        "gpt2": {"vf_coef": 0.5, "n_episodes": 64},
        "reviews": {"n_episodes": 32},
    },
    agents.TokenReinforce: CRITIC_FREE,
    agents.TokenRLOO: CRITIC_FREE,
    agents.TokenGRPO: {
        "tabular": {"n_epochs": 1},
        "gpt2": {"n_epochs": 1, "n_episodes": 64},
        "reviews": {"batch_size": 32, "n_epochs": 4},
    },
    agents.DPO: {
        "tabular": {"n_episodes": 256},
        "gpt2": {"n_episodes": 256},
        "reviews": {"n_episodes": 128, "batch_size": 32},
    },
}
GROUP = {"tabular": 8, "gpt2": 8, "reviews": 4}  # responses to a prompt, for the agents that compare them
UNWHITENED = {"normalize_advantage": False, "gae_lambda": 1.0}
EXACT_PPO = UNWHITENED | {"n_steps": 3, "batch_size": 384, "n_epochs": 4, "max_grad_norm": 1.0}
EXACT_A2C = UNWHITENED | {"n_steps": 3, "use_rms_prop": False, "max_grad_norm": 1.0}
EXACT_TRPO = UNWHITENED | {"n_steps": 9, "batch_size": 1152}
STOCK_PPO: Settings = {
    "tabular": EXACT_PPO,
    "gpt2": EXACT_PPO,
    "reviews": {"n_steps": 32, "batch_size": 512, "n_epochs": 4, "vf_coef": 0.1},
}
STOCK: dict[type[BaseAlgorithm], Settings] = {
    PPO: STOCK_PPO,
    MaskablePPO: STOCK_PPO,
    A2C: {"tabular": EXACT_A2C, "gpt2": EXACT_A2C, "reviews": {"n_steps": 8, "use_rms_prop": False, "vf_coef": 0.1}},
    TRPO: {
        "tabular": EXACT_TRPO,
        "gpt2": EXACT_TRPO,
        "reviews": {"n_steps": 32, "batch_size": 2048, "cg_max_steps": 4},
    },
}
TRUST_REGION = 0.05  # TRPO's at first
SINGLE_EXACT = {"num_envs": 128, "num_steps": 9, "gae_lambda": 1.0, "norm_adv": False, "clip_vloss": False}
SINGLE_EXACT |= {"vf_coef": 0.5}
SINGLE: Settings = {
    "tabular": SINGLE_EXACT,
    "gpt2": SINGLE_EXACT | {"cached": True},
    "reviews": {"num_envs": 64, "num_steps": 32, "cached": True},
}
VALUE: Settings = {  # hidden layers of the head, and the tokens it chooses among
    "tabular": {"net_arch": [], "k": 4},
    "gpt2": {"net_arch": [64], "k": 4},
    "reviews": {"net_arch": [128], "k": 16},
}


def ours(run: Run, kind: type[agents.TokenAlgorithm]) -> tuple[Policy, int]:
    """One of our agents, which learn on whole episodes with deferred rewards."""
    shared = {"n_episodes": 128, "seed": run.seed, "device": "cpu", "policy_kwargs": run.uncached}
    settings = shared | OURS[kind][run.place.name]
    settings["learning_rate"] = LinearSchedule(run.rate, 0.0, 1.0)
    grouped = {"samples_per_prompt": GROUP[run.place.name]} if kind.compares_groups else {}
    agent = kind("LMPolicy", run.place.env(min(128, settings["n_episodes"]), **grouped), **settings)
    return run.with_sb3(agent, sampler(agent.policy.model))


def stock(run: Run, kind: type[BaseAlgorithm]) -> tuple[Policy, int]:
    """An agent of SB3 or sb3-contrib as it is, its policy attached."""
    settings = {"gamma": 1.0, "seed": run.seed, "device": "cpu"} | STOCK[kind][run.place.name]
    settings["learning_rate"] = LinearSchedule(run.rate, 0.0, 1.0)
    settings["policy_kwargs"] = {"model": Shared(run.place.reference)} | run.uncached
    policy_class: type[agents.LMActorCriticPolicy] = agents.LMActorCriticPolicy
    masks = {}
    callbacks: list[BaseCallback] = [agents.AttachPolicy()]
    if kind is MaskablePPO:
        policy_class = MaskableLMActorCriticPolicy
        masks = {"action_mask": envs.ActionMask()}
    if kind is TRPO:
        settings |= {"n_critic_updates": 4, "target_kl": TRUST_REGION}
        callbacks.append(OnRolloutStart(shrink_trust_region))
    slots = 64 if run.place.name == "reviews" or (kind is A2C and run.place.name == "gpt2") else 128
    agent = kind(policy_class, envs.SB3VecEnv(run.place.env(slots, reward_timing="step", **masks)), **settings)
    return run.with_sb3(agent, sampler(agent.policy.model), *callbacks)  # type: ignore[arg-type]


def shrink_trust_region(callback: BaseCallback) -> None:
    """Set TRPO's trust region, which goes from its first size to (nearly) none."""
    left = 1.0 - callback.num_timesteps / callback.model._total_timesteps
    callback.model.target_kl = TRUST_REGION * max(left, 0.03) ** 2  # type: ignore[attr-defined]


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


def single_file(run: Run) -> tuple[Policy, int]:
    """`scripts/ppo_single_file.py`, which takes nothing from `rlhf_gym.agents`."""
    args = ppo_single_file.Args(
        seed=run.seed, total_timesteps=run.tokens, learning_rate=run.rate, **SINGLE[run.place.name]
    )
    recorded = gym.wrappers.vector.RecordEpisodeStatistics(run.place.env(args.num_envs, reward_timing="step"))
    model = copy.deepcopy(run.place.reference)
    policy = sampler(model)
    counted = CountedSteps(recorded, lambda tokens: run.look(tokens, policy), args.num_steps)
    with contextlib.redirect_stdout(io.StringIO()):
        ppo_single_file.train(args, counted, model)
    rollout = args.num_steps * args.num_envs
    return policy, run.tokens // rollout * rollout


def value_based(run: Run, kind: type[DQN] | type[QRDQN], **more: Any) -> tuple[Policy, int]:
    """A value-based agent as it is: actions from a shortlist, a frozen model's features, nothing attached."""
    own = VALUE[run.place.name]
    features = {
        "features_extractor_class": agents.LMFeaturesExtractor,
        "features_extractor_kwargs": {"model": Shared(run.place.reference)} | run.uncached,
    }
    agent = kind(
        "MultiInputPolicy",
        envs.SB3VecEnv(envs.ShortlistVectorActions(run.place.env(64, reward_timing="step"), own["k"])),
        policy_kwargs=features | {"net_arch": own["net_arch"]} | more,
        learning_rate=LinearSchedule(run.rate, run.rate / 10, 1.0),
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
    return run.with_sb3(agent, greedy(agent, own["k"]))


def best_of(run: Run, n: int) -> tuple[Policy, int]:
    """The best of n responses of π_ref: nothing is learned."""
    return chooser(agents.BestOfN("LMPolicy", run.place.env(64), n=n, seed=run.seed)), 0


@dataclass(frozen=True)
class Entrant:
    """An agent in the comparison: whose it is, what it goes to, how it learns, and how it is drawn."""

    group: Literal["ours", "stock", "value-based", "yardstick"]
    aim: str
    learn: Callable[[Run], tuple[Policy, int]]
    colour: str
    rates: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Its learning rates in `PLACES`."""


MODE = "the mode of π*"
PAIRS = "π*, from pairs of π_ref's responses"
TILTED = "π_ref tilted towards r, KL ≤ "
ENTRANTS: dict[str, Entrant] = {
    "TokenPPO": Entrant("ours", "π*", lambda run: ours(run, agents.TokenPPO), "#1f56a5", (0.1, 3e-3, 1e-3)),
    "TokenA2C": Entrant("ours", "π*", lambda run: ours(run, agents.TokenA2C), "#2c8fa3", (0.1, 5e-3, 2e-3)),
    "TokenReinforce": Entrant("ours", "π*", lambda run: ours(run, agents.TokenReinforce), "#4a7a55", (0.1, 5e-3, 2e-3)),
    "TokenRLOO": Entrant("ours", "π*", lambda run: ours(run, agents.TokenRLOO), "#8aa62b", (0.1, 5e-3, 2e-3)),
    "TokenGRPO": Entrant("ours", "π*", lambda run: ours(run, agents.TokenGRPO), "#6d5bd0", (0.1, 5e-3, 1e-3)),
    "PPO": Entrant("stock", "π*", lambda run: stock(run, PPO), "#bf4a14", (0.05, 3e-3, 1e-3)),
    "MaskablePPO": Entrant("stock", "π*", lambda run: stock(run, MaskablePPO), "#e08a3c", (0.05, 3e-3, 1e-3)),
    "A2C": Entrant("stock", "π*", lambda run: stock(run, A2C), "#c2428b", (0.1, 5e-3, 2e-3)),
    "TRPO": Entrant("stock", "π*", lambda run: stock(run, TRPO), "#8c2f1e", (0.05, 5e-3, 1e-3)),
    "ppo_single_file": Entrant("stock", "π*", single_file, "#a07a2c", (0.03, 3e-3, 1e-3)),
    "DQN": Entrant("value-based", MODE, lambda run: value_based(run, DQN), "#5f646c", (0.02, 3e-3, 1e-3)),
    "QRDQN": Entrant(
        "value-based", MODE, lambda run: value_based(run, QRDQN, n_quantiles=20), "#9aa0a8", (0.02, 3e-3, 1e-3)
    ),
    "DPO": Entrant("yardstick", PAIRS, lambda run: ours(run, agents.DPO), "#111111", (0.1, 5e-3, 1e-3)),
    "BestOf4": Entrant("yardstick", TILTED + "log 4 − 3/4 = .64", lambda run: best_of(run, 4), "#111111"),
    "BestOf16": Entrant("yardstick", TILTED + "log 16 − 15/16 = 1.84", lambda run: best_of(run, 16), "#111111"),
}


# -- results -----------------------------------------------------------------------------------------------------------


Result = dict[str, Any]  # of one run, see `measure`
Found = dict[str, dict[str, dict[int, Result]]]  # by place, agent and seed


def measure(name: PlaceName, agent: str, seed: int, budget: int) -> Result:
    """Do one run.

    Returns:
        "tokens" that it took, in whole rollouts; "seconds" of the processor, in one thread; the "figures" of its final
        policy, see the places' `measure`; "needed", the tokens after which J* − J stayed at most `NEAR` or None; and
        the "curve", pairs of tokens and figures.
    """
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*runs without a cache")  # a table has no keys and values
        warnings.filterwarnings("ignore", message=".*mini-batch")  # the last one of a rollout may be smaller
        entrant = ENTRANTS[agent]
        run = Run(make_place(name, seed), entrant.rates[PLACES.index(name)], budget, seed)
        started = time.process_time()
        policy, tokens = entrant.learn(run)
        seconds = time.process_time() - started - run.looking
        curve = [*run.curve, (tokens, run.place.glance(policy))]
        figures = run.place.measure(policy)
    needed = None if name == "reviews" else tokens_needed(curve)
    return {"tokens": tokens, "seconds": seconds, "figures": figures, "needed": needed, "curve": curve}


def tokens_needed(curve: Sequence[tuple[int, dict[str, float]]]) -> int | None:
    """Tokens after which J* − J was at most `NEAR` at every look; None if it was not so at the last one."""
    needed = None
    for tokens, figures in reversed(curve):
        if figures["gap"] > NEAR:
            break
        needed = tokens
    return needed


def values(runs: Sequence[Result], figure: str) -> list[float]:
    """A figure of each seed."""
    return [run["figures"][figure] for run in runs]


def median(runs: Sequence[Result], figure: str) -> float:
    """The median of a figure over the seeds."""
    return float(np.median(values(runs, figure)))


# -- the table ---------------------------------------------------------------------------------------------------------

TITLES = {"tabular": "table", "gpt2": "GPT-2", "reviews": "Reviews"}
EXACT_COLUMNS = ("J* − J", "TV", "tokens to J* − .01")
COLUMNS = {"tabular": EXACT_COLUMNS, "gpt2": EXACT_COLUMNS, "reviews": ("wins against SFT", "KL, nats", "tokens/s")}


def markdown(found: Found, budgets: dict[str, int]) -> str:
    """One row an agent, a few columns a place, and below what the figures are."""
    header = ["agent", "goes to", *(f"{TITLES[place]}: {column}" for place in found for column in COLUMNS[place])]
    rows = []
    for agent in next(iter(found.values())):
        figures = [cell for place in found for cell in cells(place, agent, list(found[place][agent].values()))]
        rows.append([f"`{agent}`", ENTRANTS[agent].aim, *figures])
    notes = [note(place, by_agent, budgets[place]) for place, by_agent in found.items()]
    return "\n".join([study.markdown_table(header, rows), "", *notes]) + "\n"


def cells(place: str, agent: str, runs: Sequence[Result]) -> list[str]:
    """An agent's cells for one place."""
    learned = [run for run in runs if run["tokens"]]
    if place == "reviews":
        kl = f"{'≤ ' if agent.startswith('BestOf') else ''}{median(runs, 'kl'):.1f}"
        rate = f"{np.median([run['tokens'] / run['seconds'] for run in learned]):,.0f}" if learned else "–"
        return [f"{median(runs, 'wins'):.1%}", kl, rate]
    needed = sorted(math.inf if run["needed"] is None else run["needed"] for run in runs)[(len(runs) - 1) // 2]
    tokens = "–" if not learned else "never" if math.isinf(needed) else f"{needed:,}"
    return [with_worst(runs, "gap"), with_worst(runs, "variation"), tokens]


def with_worst(runs: Sequence[Result], figure: str) -> str:
    """The median, and in brackets the worst of several."""
    middle = short(median(runs, figure))
    return f"{middle} ({short(max(run['figures'][figure] for run in runs))})" if len(runs) > 1 else middle


def short(value: float) -> str:
    """A number with four decimals below .1, two above."""
    return format(value, ".4f" if abs(value) < 0.1 else ".2f").replace("0.", ".", 1)


def note(place: str, by_agent: dict[str, dict[int, Result]], budget: int) -> str:
    """A place's seeds and budget, and where π_ref and the mode of π* stand."""
    runs = [run for by_seed in by_agent.values() for run in by_seed.values()]
    seeds = list(next(iter(by_agent.values())))
    told = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    if place == "reviews":
        return (
            f"- {TITLES[place]}: `rlhf_gym/Reviews-v0`, β = {REVIEWS_BETA}, {HELDOUT} held-out prompts judged by gold; "
            f"{budget:,} tokens each, {told}; tokens per second of processor time, one thread, on a busy machine."
        )
    over = f"median over {told} (in brackets the worst)" if len(seeds) > 1 else told
    modes = [
        f"{agent} says it on {sum(run['figures']['finds_mode'] == 1 for run in by_seed.values())} of {len(seeds)} "
        f"seed{'s' * (len(seeds) > 1)}"
        for agent, by_seed in by_agent.items()
        if ENTRANTS[agent].group == "value-based"
    ]
    return (
        f"- {TITLES[place]}: 4 tokens, 3 steps, β = .5; {over}, {budget:,} tokens each. π_ref: J* − J = "
        f"{short(median(runs, 'gap_of_reference'))}; the mode of π*, alone: {short(median(runs, 'gap_of_mode'))}"
        f"{' (' + ', '.join(modes) + ')' if modes else ''}."
    )


# -- the picture -------------------------------------------------------------------------------------------------------

MARKERS = {"ours": "o", "stock": "s", "value-based": "^", "yardstick": "D"}
DASHES = {"ours": "-", "stock": "--", "yardstick": ":"}
FLOOR = 2e-5  # below this a gap is drawn here: float32 tells no smaller ones apart


def draw_figure(found: Found, path: Path) -> None:
    """A panel for the first environment that is enumerated, one for the reviews."""
    panels = [place for place in found if place != "reviews"][:1] + ["reviews"] * ("reviews" in found)
    with study.picture(path, 1, len(panels), (6.9 * len(panels), 5.2)) as axes:
        for place, axis in zip(panels, axes[0], strict=True):
            runs = {agent: list(by_seed.values()) for agent, by_seed in found[place].items()}
            seeds = len(next(iter(runs.values())))
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
        if not any(run["tokens"] for run in found):
            draw_level(axis, f"{agent}, no learning", median(found, "gap"), entrant.colour, ls=":")
            continue
        grid = np.geomspace(max(run["curve"][1][0] for run in found), min(run["tokens"] for run in found), 120)
        curves = [[(point[0], point[1]["gap"]) for point in run["curve"]] for run in found]
        gaps = np.maximum([np.interp(grid, *zip(*curve, strict=True)) for curve in curves], FLOOR)  # (seeds, grid)
        middle = np.median(gaps, axis=0)  # (grid,)
        axis.plot(grid, middle, color=entrant.colour, ls=DASHES[entrant.group], lw=1.6)
        axis.fill_between(grid, gaps.min(axis=0), gaps.max(axis=0), color=entrant.colour, alpha=0.06, lw=0)
        ends.append((float(grid[-1]), float(middle[-1]), agent, entrant.colour))
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="J* − J (what is below 2·10⁻⁵ is drawn there)")
    for group, name in (("ours", "ours"), ("stock", "others'"), ("yardstick", "yardsticks")):
        axis.plot([], [], color=study.SOFT, ls=DASHES[group], lw=1.6, label=name)
    axis.legend(loc="lower left")
    draw_level(axis, f"J* − {NEAR:.2g}", NEAR, study.SOFT)
    left, right = axis.get_xlim()
    axis.set_xlim(left, right * 2.4)
    study.name_lines(axis, ends, 0.036)


def draw_level(axis: Any, text: str, level: float, colour: str, ls: str = "-") -> None:
    """A horizontal line, named at its left end."""
    axis.axhline(level, color=colour, lw=1, ls=ls)
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
        marker = MARKERS[entrant.group]
        axis.plot(values(found, "kl"), values(found, "wins"), ls="", ms=6.5, marker=marker, color=entrant.colour)
        points.append((x, median(found, "wins"), agent, entrant.colour))
    draw_level(axis, "SFT", 0.5, study.SOFT)
    axis.set(xlabel="KL from π_ref, nats (best of n: its bound)", ylabel="gold prefers it to SFT", xscale="log")
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlim(0.45, max(8.0, 1.25 * max(x for x, *_ in points)))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_title(f"Reviews: what a nat buys ({seeds} seed{'s' * (seeds > 1)}, bars 95 % intervals)")
    study.name_lines(axis, points, 0.04, column=True)


# -- the command -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    names = tuple(ENTRANTS)
    a = study.command(
        __doc__,
        arguments,
        agents=(names, ", ".join(names), names),
        environments=(PLACES, ", ".join(PLACES), PLACES),
        seeds=((), f"by default {SEEDS}"),
        tokens=(None, f"budget of every agent, by default {TOKENS}"),
        results=(Path("runs/agents_compared"), "folder of the runs, gone on with if it is there"),
        output=(study.IMAGES / "agents_compared.png", "the picture"),
    )
    budgets = {place: a.tokens or TOKENS[place] for place in PLACES}
    found: Found = {place: {agent: {} for agent in a.agents} for place in a.environments}
    for place in a.environments:
        for seed in a.seeds or SEEDS[place]:
            for agent in a.agents:
                path = a.results / f"{place}-{agent}-{seed}-{budgets[place]}.json"
                if not path.is_file():
                    print(f"{place}, {agent}, seed {seed}", flush=True)
                found[place][agent][seed] = study.kept(path, lambda: measure(place, agent, seed, budgets[place]))  # noqa: B023
    print(markdown(found, budgets))
    draw_figure(found, a.output)


if __name__ == "__main__":
    main()
