"""Every agent, ours and others', on one table and one picture: how near each comes to an optimum that is known.

    python scripts/compare_agents.py                                    # all of it; some minutes on an idle core
    python scripts/compare_agents.py --environments tabular             # with a table as policy alone
    python scripts/compare_agents.py --environments turns               # episodes of two turns, with a table
    python scripts/compare_agents.py --agents TokenPPO PPO --seeds 7    # two agents

Two environments, with a table and with a small GPT-2 as policy, can be enumerated: 4 tokens, 3 steps, so that J* and π*
are known and every policy's distance from them is exact. Their rewards and their π_ref are drawn anew for each seed.
In the third, asked for by name, the second token is another side's, with known probabilities; it has the agents that go
to π* there. Every run leaves a file in `--results`; a comparison that was interrupted goes on. It needs sb3-contrib:
`pip install -e '.[contrib]'`.

Left out: real tasks, and tuning. Each agent's settings are mostly those of its tests, looked at on seed 0, which is not
among those reported. Its learning rate (TRPO: trust region) falls to 0 over the budget, so with another budget the
tokens needed would be others. What all have in common: γ = 1, no entropy bonus, Adam, and advantages that are not
whitened (GRPO's are its own).
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import ppo_single_file
from sb3_contrib import QRDQN, TRPO, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from studies import study
from transformers import PreTrainedModel

from rlhf_gym import agents, envs
from rlhf_gym.agents.maskable import MaskableLMActorCriticPolicy  # not in the room's front: it needs sb3-contrib
from rlhf_gym.lm import Shared, quiet_transformers

TASKS: dict[str, Callable[[int], envs.EnumerableTask]] = {
    "tabular": envs.tabular_task,
    "gpt2": envs.gpt2_task,
    "turns": lambda seed: envs.with_replies(envs.tabular_task(seed), seed),
}
SEEDS: dict[str, Sequence[int]] = {
    "tabular": (10, 11, 12, 13, 14),
    "gpt2": (10, 11, 12),
    "turns": (10, 11, 12, 13, 14),
}
TOKENS = {"tabular": 48_000, "gpt2": 96_000, "turns": 40_000}
TITLES = {"tabular": "table", "gpt2": "GPT-2", "turns": "table, two turns"}
NEAR = 0.01  # how close to J* is close
LOOKS = 40  # at an agent while it learns

Policy = PreTrainedModel | np.ndarray  # a model to sample from, or the probability of each response, (V^T,)


class Run:
    """One agent's learning: where, at which learning rate, for how many tokens, with which seed of agent and task."""

    def __init__(self, place: str, rate: float, tokens: int, seed: int) -> None:
        self.tabular = place != "gpt2"
        self.task = TASKS[place](seed)
        self.rate = rate
        self.tokens = tokens
        self.seed = seed
        self.uncached = {"use_cache": False} if self.tabular else {}  # a table has no keys and values
        self.curve: list[tuple[int, dict[str, float]]] = []
        """Pairs of tokens and what the policy was worth after them."""

    def measure(self, policy: Policy) -> dict[str, float]:
        """How good a policy is: J* − J and the total variation from π*."""
        p = self.task.probabilities(policy)
        return {"gap": self.task.best - self.task.objective(p), "variation": self.task.total_variation(p)}

    def look(self, tokens: int, policy: Callable[[], Policy]) -> None:
        """Measure the policy if it is time."""
        if not self.curve or tokens >= self.curve[-1][0] + max(1, self.tokens // LOOKS):
            self.curve.append((tokens, self.measure(policy())))

    def with_sb3(self, agent: BaseAlgorithm, policy: Callable[[], Policy], *callbacks: BaseCallback) -> Learned:
        """The policy after an agent's `learn`, and the tokens learned from."""
        look = OnRolloutStart(lambda callback: self.look(callback.num_timesteps, policy))
        agent.learn(self.tokens, callback=[*callbacks, look])
        return policy(), agent.num_timesteps


Learned = tuple[Policy, int]  # a policy, and how many tokens it took


class OnRolloutStart(BaseCallback):
    """Calls a function with itself whenever the agent is about to act."""

    def __init__(self, function: Callable[[BaseCallback], None]) -> None:
        super().__init__()
        self.function = function

    def _on_rollout_start(self) -> None:
        self.function(self)

    def _on_step(self) -> bool:
        return True


def ours(run: Run, kind: type[agents.TokenAlgorithm], **settings: Any) -> Learned:
    """One of our agents, which learn on whole episodes with deferred rewards."""
    shared = {
        "n_episodes": 128 if run.tabular else 64,
        "seed": run.seed,
        "device": "cpu",
        "policy_kwargs": run.uncached,
    }
    settings = shared | settings | {"learning_rate": LinearSchedule(run.rate, 0.0, 1.0)}
    grouped = {"samples_per_prompt": 8} if kind.compares_groups else {}
    agent = kind("LMPolicy", run.task.env(min(128, settings["n_episodes"]), **grouped), **settings)
    return run.with_sb3(agent, lambda: agent.policy.model)


def stock(run: Run, kind: type[BaseAlgorithm], *callbacks: BaseCallback, **settings: Any) -> Learned:
    """An agent of SB3 or sb3-contrib as it is, its policy attached."""
    settings |= {"gamma": 1.0, "gae_lambda": 1.0, "normalize_advantage": False, "seed": run.seed, "device": "cpu"}
    settings["learning_rate"] = LinearSchedule(run.rate, 0.0, 1.0)
    settings["policy_kwargs"] = {"model": Shared(run.task.reference)} | run.uncached
    masked = kind is MaskablePPO
    masks = {"action_mask": envs.ActionMask()} if masked else {}
    slots = 64 if kind is A2C and not run.tabular else 128
    agent = kind(
        MaskableLMActorCriticPolicy if masked else agents.LMActorCriticPolicy,
        envs.SB3VecEnv(run.task.env(slots, reward_timing="step", **masks)),
        **settings,
    )
    return run.with_sb3(agent, lambda: agent.policy.model, agents.AttachPolicy(), *callbacks)  # type: ignore[arg-type, return-value]


TRUST_REGION = 0.05  # TRPO's at first


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


def single_file(run: Run) -> Learned:
    """`scripts/ppo_single_file.py`, which takes nothing from `rlhf_gym.agents`."""
    args = ppo_single_file.Args(
        seed=run.seed,
        total_timesteps=run.tokens,
        learning_rate=run.rate,
        num_envs=128,
        num_steps=9,
        gae_lambda=1.0,
        norm_adv=False,
        clip_vloss=False,
        vf_coef=0.5,
        cached=not run.tabular,
    )
    recorded = gym.wrappers.vector.RecordEpisodeStatistics(run.task.env(args.num_envs, reward_timing="step"))
    model = copy.deepcopy(run.task.reference)
    counted = CountedSteps(recorded, lambda tokens: run.look(tokens, lambda: model), args.num_steps)
    with contextlib.redirect_stdout(io.StringIO()):
        ppo_single_file.train(args, counted, model)
    rollout = args.num_steps * args.num_envs
    return model, run.tokens // rollout * rollout


def value_based(run: Run, kind: type[DQN] | type[QRDQN], **more: Any) -> Learned:
    """A value-based agent as it is: actions from a shortlist of all, a frozen model's features, nothing attached."""
    features = {
        "features_extractor_class": agents.LMFeaturesExtractor,
        "features_extractor_kwargs": {"model": Shared(run.task.reference)} | run.uncached,
    }
    agent = kind(
        "MultiInputPolicy",
        envs.SB3VecEnv(envs.ShortlistVectorActions(run.task.env(64, reward_timing="step"), 4)),
        policy_kwargs=features | {"net_arch": [] if run.tabular else [64]} | more,
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
    return run.with_sb3(agent, lambda: greedy(run.task, agent))


def greedy(task: envs.EnumerableTask, agent: BaseAlgorithm) -> np.ndarray:
    """The policy that takes the action of the highest value with certainty, (V^T,)."""
    env = task.env(1)
    short = envs.ShortlistVectorActions(env, 4)
    observation, _ = short.reset()
    while not env.parked.all():
        places, _ = agent.predict(observation, deterministic=True)  # type: ignore[arg-type]
        observation, *_ = short.step(np.asarray(places))
    (episode,) = env.pending_episodes
    return (task.strings.numpy() == episode.response_ids).all(axis=1).astype(np.float64)


@dataclass(frozen=True)
class Entrant:
    """An agent in the comparison: whose it is, what it goes to, how it learns, and how it is drawn."""

    group: Literal["ours", "stock", "value-based", "yardstick"]
    aim: str
    learn: Callable[[Run], Learned]
    colour: str
    rates: tuple[float, float] = (0.0, 0.0)
    """Its learning rates with the table and with the GPT-2."""


EXACT = {"n_epochs": 4, "batch_size": 128, "gae_lambda": 1.0, "normalize_advantage": False, "n_episodes": 128}
EXACT |= {"clip_range_vf": None, "vf_coef": 0.5}
STOCK_PPO = {"n_steps": 3, "batch_size": 384, "n_epochs": 4, "max_grad_norm": 1.0}
STOCK_A2C = {"n_steps": 3, "use_rms_prop": False, "max_grad_norm": 1.0}
STOCK_TRPO = {"n_steps": 9, "batch_size": 1152, "n_critic_updates": 4, "target_kl": TRUST_REGION}
MODE = "the mode of π*"
PAIRS = "π*, from pairs of π_ref's responses"
TILTED = "π_ref tilted towards r, KL ≤ "
BLACK = "#111111"
ENTRANTS: dict[str, Entrant] = {
    "TokenPPO": Entrant("ours", "π*", lambda run: ours(run, agents.TokenPPO, **EXACT), "#1f56a5", (0.1, 3e-3)),
    "TokenA2C": Entrant("ours", "π*", lambda run: ours(run, agents.TokenA2C, vf_coef=0.5), "#2c8fa3", (0.1, 5e-3)),
    "TokenReinforce": Entrant("ours", "π*", lambda run: ours(run, agents.TokenReinforce), "#4a7a55", (0.1, 5e-3)),
    "TokenRLOO": Entrant("ours", "π*", lambda run: ours(run, agents.TokenRLOO), "#8aa62b", (0.1, 5e-3)),
    "TokenGRPO": Entrant("ours", "π*", lambda run: ours(run, agents.TokenGRPO, n_epochs=1), "#6d5bd0", (0.1, 5e-3)),
    "DrGRPO": Entrant(
        "ours",
        "π*",
        lambda run: ours(run, agents.TokenGRPO, n_epochs=1, scale_by_std=False),
        "#3d3480",
        (0.1, 5e-3),
    ),
    "PPO": Entrant("stock", "π*", lambda run: stock(run, PPO, **STOCK_PPO), "#bf4a14", (0.05, 3e-3)),
    "MaskablePPO": Entrant("stock", "π*", lambda run: stock(run, MaskablePPO, **STOCK_PPO), "#e08a3c", (0.05, 3e-3)),
    "A2C": Entrant("stock", "π*", lambda run: stock(run, A2C, **STOCK_A2C), "#c2428b", (0.1, 5e-3)),
    "TRPO": Entrant(
        "stock",
        "π*",
        lambda run: stock(run, TRPO, OnRolloutStart(shrink_trust_region), **STOCK_TRPO),
        "#8c2f1e",
        (0.05, 5e-3),
    ),
    "ppo_single_file": Entrant("stock", "π*", single_file, "#a07a2c", (0.03, 3e-3)),
    "DQN": Entrant("value-based", MODE, lambda run: value_based(run, DQN), "#5f646c", (0.02, 3e-3)),
    "QRDQN": Entrant("value-based", MODE, lambda run: value_based(run, QRDQN, n_quantiles=20), "#9aa0a8", (0.02, 3e-3)),
    "DPO": Entrant("yardstick", PAIRS, lambda run: ours(run, agents.DPO, n_episodes=256), BLACK, (0.1, 5e-3)),
    "BestOf4": Entrant("yardstick", TILTED + "log 4 − 3/4 = .64", lambda run: (run.task.best_of(4), 0), BLACK),
    "BestOf16": Entrant("yardstick", TILTED + "log 16 − 15/16 = 1.84", lambda run: (run.task.best_of(16), 0), BLACK),
    "reference": Entrant("yardstick", "π_ref itself", lambda run: (run.task.reference, 0), BLACK),
    "mode": Entrant("yardstick", MODE, lambda run: (np.eye(len(run.task.strings))[run.task.mode], 0), BLACK),
}


Result = dict[str, Any]  # of one run, see `measure`
Found = dict[str, dict[str, list[Result]]]  # by place and agent, one a seed


def measure(place: str, agent: str, seed: int, budget: int) -> Result:
    """Do one run.

    Returns:
        "tokens" that it took, in whole rollouts; the "figures" of its final policy, see `Run.measure`; "needed", the
        tokens after which J* − J stayed at most `NEAR` or None; and the "curve", pairs of tokens and figures.
    """
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*runs without a cache")  # a table has no keys and values
        warnings.filterwarnings("ignore", message=".*mini-batch")  # the last one of a rollout may be smaller
        entrant = ENTRANTS[agent]
        run = Run(place, entrant.rates[place == "gpt2"], budget, seed)
        policy, tokens = entrant.learn(run)
        figures = run.measure(policy)
    curve = [*run.curve, (tokens, figures)]
    return {"tokens": tokens, "figures": figures, "needed": tokens_needed(curve), "curve": curve}


def tokens_needed(curve: Sequence[tuple[int, dict[str, float]]]) -> int | None:
    """Tokens after which J* − J was at most `NEAR` at every look; None if it was not so at the last one."""
    needed = None
    for tokens, figures in reversed(curve):
        if figures["gap"] > NEAR:
            break
        needed = tokens
    return needed


def markdown(found: Found) -> str:
    """One row an agent, three columns a place."""
    columns = ("J* − J", "TV", f"tokens to J* − {NEAR}")
    header = ["agent", "goes to", *(f"{TITLES[place]}: {column}" for place in found for column in columns)]
    rows = []
    for agent in next(iter(found.values())):
        figures = [cell for by_agent in found.values() for cell in cells(by_agent.get(agent, []))]
        rows.append([f"`{agent}`", ENTRANTS[agent].aim, *figures])
    return study.markdown_table(header, rows)


def cells(runs: Sequence[Result]) -> list[str]:
    """An agent's cells for one place: medians over the seeds, in brackets the worst of several."""
    if not runs:
        return ["–"] * 3
    needed = sorted(math.inf if run["needed"] is None else run["needed"] for run in runs)[(len(runs) - 1) // 2]
    tokens = "–" if not runs[0]["tokens"] else "never" if math.isinf(needed) else f"{needed:,}"
    told = []
    for figure in ("gap", "variation"):
        values = [run["figures"][figure] for run in runs]
        worst = f" ({short(max(values))})" if len(values) > 1 else ""
        told.append(short(float(np.median(values))) + worst)
    return [*told, tokens]


def short(value: float) -> str:
    """A number with four decimals below .1, two above."""
    return format(value, ".4f" if abs(value) < 0.1 else ".2f").replace("0.", ".", 1)


DASHES = {"ours": "-", "stock": "--", "yardstick": ":"}
FLOOR = 2e-5  # below this a gap is drawn here: float32 tells no smaller ones apart


def draw_figure(runs: dict[str, list[Result]], title: str, path: Path) -> None:
    """J* − J over tokens, an agent a line with the range of its seeds."""
    with study.picture(path, 1, 1, (8.6, 5.2)) as axes:
        axis = axes[0, 0]
        for agent, found in runs.items():
            entrant = ENTRANTS[agent]
            if entrant.group == "value-based" or not found[0]["tokens"]:
                continue
            grid = np.geomspace(max(run["curve"][1][0] for run in found), min(run["tokens"] for run in found), 120)
            curves = [[(tokens, figures["gap"]) for tokens, figures in run["curve"]] for run in found]
            gaps = np.maximum([np.interp(grid, *zip(*curve, strict=True)) for curve in curves], FLOOR)  # (seeds, grid)
            line = {"color": entrant.colour, "ls": DASHES[entrant.group], "lw": 1.6, "label": agent}
            axis.plot(grid, np.median(gaps, axis=0), **line)
            axis.fill_between(grid, gaps.min(axis=0), gaps.max(axis=0), color=entrant.colour, alpha=0.06, lw=0)
        axis.axhline(NEAR, color=study.SOFT, lw=1, label=f"J* − {NEAR}")
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="J* − J (what is below 2·10⁻⁵ is drawn there)")
        axis.set_title(title)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))


Name = Literal[tuple(ENTRANTS)]  # type: ignore[valid-type]
Place = Literal[tuple(TASKS)]  # type: ignore[valid-type]


def main(
    agents: tuple[Name, ...] = tuple(ENTRANTS),
    environments: tuple[Place, ...] = ("tabular", "gpt2"),
    seeds: tuple[int, ...] = (),
    tokens: int | None = None,
    results: Path = Path("runs/agents_compared"),
    output: Path = study.IMAGES / "agents_compared.png",
) -> None:
    """Compare these agents, by default on `SEEDS` and for `TOKENS`; the picture is of the first environment."""
    found: Found = {}
    notes = []
    for place in environments:
        chosen = seeds or SEEDS[place]
        budget = tokens or TOKENS[place]
        found[place] = {agent: [] for agent in agents if place != "turns" or ENTRANTS[agent].aim == "π*"}
        notes.append(f"{TITLES[place]}: seeds {', '.join(map(str, chosen))}, {budget:,} tokens each")
        for seed in chosen:
            for agent, runs in found[place].items():
                path = results / f"{place}-{agent}-{seed}-{budget}.json"
                runs.append(study.kept(path, lambda: measure(place, agent, seed, budget)))  # noqa: B023
    print(markdown(found), *notes, sep="\n")
    draw_figure(found[environments[0]], f"J* − J over tokens, medians; {notes[0]}", output)


if __name__ == "__main__":
    study.run_script(main)
