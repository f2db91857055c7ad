"""How many questions agents need in the guessing game, beside the optimum; prints a table and draws a picture.

    python scripts/guessing_game.py                                  # n = 8 and 16, PPO, three seeds; some ten minutes
    python scripts/guessing_game.py --ns 8 --agents TokenPPO TokenRLOO --seeds 1

Each agent starts from the SFT policy (β = .01, a learning rate that falls to 0) and then plays `GAMES` games with other
secrets, sampling from its policy; so does the SFT policy. What was played is kept in `--results`. Left out: tuning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import study
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from rlhf_gym import agents as kinds
from rlhf_gym.tasks import optimal_questions

TOKENS = {8: 40_000, 16: 150_000}
GAMES = 4096
PPO = {"n_episodes": 128, "batch_size": 32, "vf_coef": 0.5}
GROUPS = {"n_episodes": 128, "batch_size": 128}
SETTINGS: dict[str, tuple[float, dict[str, Any]]] = {  # learning rate, and others
    "TokenPPO": (3e-3, PPO),
    "TokenRLOO": (5e-3, GROUPS),
    "TokenGRPO": (5e-3, GROUPS),
}


class Questions(BaseCallback):
    """Notes the tokens and the mean questions of each rollout."""

    def _on_training_start(self) -> None:
        self.curve: list[tuple[int, float]] = []

    def _on_rollout_end(self) -> None:
        self.curve.append((self.num_timesteps, questions(self.model.buffer.episodes)))  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


def questions(episodes: list[Any]) -> float:
    """Mean questions a game."""
    return -float(np.mean([episode.turn_rewards.sum() for episode in episodes]))


def learn(name: str, n: int, tokens: int, seed: int) -> dict[str, Any]:
    """Train one agent and play with it: mean "questions", share "solved", and the "curve" while it learned."""
    kind = getattr(kinds, name)
    rate, settings = SETTINGS[name]
    group = {"samples_per_prompt": 8} if kind.compares_groups else {}
    env = gym.make_vec("rlhf_gym/Guess-v0", num_envs=128, n=n, reward_timing="deferred", **group)
    agent = kind("LMPolicy", env, learning_rate=LinearSchedule(rate, 0.0, 1.0), seed=seed, device="cpu", **settings)
    noted = Questions()
    if tokens:
        agent.learn(tokens, callback=noted)
    games = gym.make_vec("rlhf_gym/Guess-v0", num_envs=256, n=n, reference=None, kl_coef=0.0)
    observation, _ = games.reset(seed=1_000 + seed, options={"episodes": GAMES})
    played: list[Any] = []
    while not games.parked.all():
        actions, _ = agent.predict(observation)
        observation, *_ = games.step(actions)
        played += games.last_step.episodes
    solved = float(np.mean([episode.finish_reason == "stop" for episode in played]))
    return {"questions": questions(played), "solved": solved, "curve": noted.curve if tokens else []}


def draw_figure(found: dict[int, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Mean questions of each rollout over actions, a panel for each n and a line for each seed."""
    with study.picture(path, 1, len(found), (4.3 * len(found), 3.4)) as axes:
        for axis, (n, by_name) in zip(axes[0], found.items(), strict=True):
            axis.axhline(optimal_questions(n), color=study.INK, ls="--", lw=1, label="optimum")
            for colour, (name, runs) in zip(study.COLOURS, list(by_name.items())[1:], strict=False):
                for run in runs:
                    label = name if run is runs[0] else None
                    axis.plot(*np.array(run["curve"]).T, color=colour, lw=0.9, label=label)
            axis.set(title=f"n = {n}", xlabel="actions", ylabel="questions a game", ylim=(2, None))
            axis.legend()


def main(
    agents: tuple[Literal[tuple(SETTINGS)], ...] = ("TokenPPO",),  # type: ignore[valid-type]
    ns: tuple[int, ...] = (8, 16),
    seeds: int = 3,
    results: Path = Path("runs/guessing_game"),
    output: Path = study.IMAGES / "guessing_game.png",
) -> None:
    """Train these agents on games of these sizes, with so many seeds."""
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    rows = []
    for n in ns:
        found[n] = {}
        best = optimal_questions(n)
        for name, budget in {"SFT policy": 0, **dict.fromkeys(agents, TOKENS.get(n, 150_000))}.items():
            kind = name if budget else "TokenPPO"
            runs = found[n][name] = []
            for seed in range(seeds):
                path = results / f"{n}-{kind}-{budget}-{seed}.json"
                runs.append(study.kept(path, lambda: learn(kind, n, budget, seed)))  # noqa: B023
            asked = [run["questions"] for run in runs]
            cells = (f"{np.median(asked):.2f} ({max(asked):.2f})", f"{np.median(asked) / best - 1:.1%}")
            rows.append([str(n), name, f"{budget:,}", *cells, f"{min(run['solved'] for run in runs):.1%}"])
        rows.append([str(n), "optimum", "", f"{best:.3f}", "", "100.0%"])
    print(study.markdown_table(["n:", "policy", "actions:", "questions:", "above the optimum:", "solved:"], rows))
    draw_figure(found, output)


if __name__ == "__main__":
    study.run_script(main)
