"""python scripts/studies/guessing_game.py [--ns 8 --seeds 1]: questions PPO needs in the game, and the optimum.

PPO starts from the SFT policy (β = .01, a learning rate that falls to 0), then plays `GAMES` games with other secrets,
sampling from its policy; so does the SFT policy. Prints a table and draws docs/images/guessing_game.png; some ten
minutes on one core. What was played is kept in `--results`. Left out: other agents, and tuning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import study
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from rlhf_gym.agents import TokenPPO
from rlhf_gym.tasks import optimal_questions

TOKENS = {8: 40_000, 16: 150_000}
GAMES = 4096
SETTINGS = {"n_episodes": 128, "batch_size": 32, "vf_coef": 0.5, "learning_rate": LinearSchedule(3e-3, 0.0, 1.0)}


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


def learn(n: int, tokens: int, seed: int) -> dict[str, Any]:
    """Train an agent and play with it: mean "questions", share "solved", and the "curve" while it learned."""
    env = gym.make_vec("rlhf_gym/Guess-v0", num_envs=128, n=n, reward_timing="deferred")
    agent = TokenPPO("LMPolicy", env, seed=seed, device="cpu", **SETTINGS)
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
            for seed, run in enumerate(by_name["TokenPPO"]):
                curve = np.array(run["curve"]) / (1000, 1)  # (rollouts, 2)
                colour = study.COLOURS[seed % len(study.COLOURS)]
                axis.plot(*curve.T, color=colour, lw=0.9, label=f"TokenPPO, seed {seed}")
            axis.set(title=f"n = {n}", xlabel="thousand actions", ylabel="questions a game", ylim=(2, None))
            axis.legend()


def main(
    ns: tuple[int, ...] = (8, 16),
    seeds: int = 3,
    results: Path = Path("runs/guessing_game"),
    output: Path = study.IMAGES / "guessing_game.png",
) -> None:
    """Train on games of these sizes, with so many seeds."""
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    rows = []
    for n in ns:
        found[n] = {}
        best = optimal_questions(n)
        for name, budget in {"SFT policy": 0, "TokenPPO": TOKENS.get(n, 150_000)}.items():
            runs = found[n][name] = []
            for seed in range(seeds):
                path = results / f"{n}-{budget}-{seed}.json"
                runs.append(study.kept(path, lambda: learn(n, budget, seed)))  # noqa: B023
            asked = [run["questions"] for run in runs]
            cells = (f"{np.median(asked):.2f} ({max(asked):.2f})", f"{np.median(asked) / best - 1:.1%}")
            rows.append([str(n), name, f"{budget:,}", *cells, f"{min(run['solved'] for run in runs):.1%}"])
        rows.append([str(n), "optimum", "", f"{best:.3f}", "", "100.0%"])
    print(study.markdown_table(["n:", "policy", "actions:", "questions:", "above the optimum:", "solved:"], rows))
    draw_figure(found, output)


if __name__ == "__main__":
    study.run_script(main)
