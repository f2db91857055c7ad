"""The runs of lesson 9, recorded: `python -m rlhf_gym.lessons.clinic` makes them again, in a few minutes on one core.

PPO on the embedded reviews task, from its shipped SFT policy. The healthy run has a KL penalty of β = .1 and a learning
rate that falls to 0. Each other run differs from it by what `CASES` says. The letters of the runs are in no order.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule

from rlhf_gym.agents import TokenPPO
from rlhf_gym.monitoring import RLHFMonitor
from rlhf_gym.rewards import RewardModel
from rlhf_gym.tasks import reviews_task

RECORDING = Path(__file__).parent / "clinic.json"
"""The runs that are shipped: the curves of each under its letter."""
COLUMNS = {
    "tokens": "time/total_timesteps",
    "score": "monitor/score",
    "kl": "monitor/kl",
    "entropy": "monitor/entropy",
    "length": "monitor/response_length",
    "different": "monitor/distinct_responses",
    "clipped": "train/clip_fraction",
    "explained": "monitor/explained_variance",
}
"""The curves of a run, and the figures of docs/metrics.md that they are."""
Reward = Callable[[list[str], list[str]], list[float]]


@dataclass(frozen=True)
class Case:
    """What is special about a run."""

    letter: str
    """The name of the run in the lesson."""
    kl_coef: float = 0.1
    """The coefficient β of the KL."""
    learning_rate: float = 5e-4
    """Adam's learning rate, at the start."""
    falls: bool = True
    """Whether the learning rate falls to 0."""
    reward: Callable[[], Reward] | None = None
    """Makes the reward; None for the task's reward model."""
    agent: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the agent that differ."""


def wordy() -> Reward:
    """The task's reward model with a taste for length: .25 for each word."""
    shipped = reviews_task().reward_model
    assert shipped is not None
    model = RewardModel.from_pretrained(shipped)

    def score(prompts: list[str], responses: list[str]) -> list[float]:
        found = model.score_texts(prompts, responses)
        return [float(one) + 0.25 * len(text.split()) for one, text in zip(found, responses, strict=True)]

    return score


def one_sentence() -> Reward:
    """A reward that is highest for one sentence, with a cost for every other word."""
    best = ["it", "was", "good", "."]

    def cost(words: list[str]) -> float:
        return sum(a != b for a, b in zip(words, best, strict=False)) + abs(len(words) - len(best))

    return lambda prompts, responses: [-float(cost(response.split())) for response in responses]


CASES = {
    "healthy": Case("C"),
    "kl": Case("E", kl_coef=0.0, falls=False),
    "fast": Case("A", learning_rate=0.02, falls=False),
    "slow": Case("G", learning_rate=1e-6, falls=False),
    "length": Case("B", kl_coef=0.03, reward=wordy),
    "collapse": Case("F", kl_coef=0.02, falls=False, reward=one_sentence),
    "critic": Case("D", agent={"vf_coef": 0.0}),
}
"""Each run under its diagnosis."""


def clinic_runs() -> dict[str, dict[str, list[float]]]:
    """The curves of each recorded run under its letter: of each of `COLUMNS` a number for every iteration."""
    return json.loads(RECORDING.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def record(case: Case, *, tokens: int = 16_000, n_episodes: int = 64, seed: int = 0) -> dict[str, list[float]]:
    """Train, and return the curves.

    Args:
        case: what is special about the run.
        tokens: response tokens of the run.
        n_episodes: episodes an iteration.
        seed: of everything.
    """
    own: dict[str, Any] = {} if case.reward is None else {"reward": case.reward()}
    env = gym.make_vec("rlhf_gym/Reviews-v0", num_envs=64, reward_timing="deferred", kl_coef=case.kl_coef, **own)
    settings: dict[str, Any] = {"vf_coef": 1.0, "policy_kwargs": {"critic": "separate"}, **case.agent}
    agent = TokenPPO(
        "LMPolicy",
        env,  # type: ignore[arg-type]
        learning_rate=LinearSchedule(case.learning_rate, 0.0, 1.0) if case.falls else case.learning_rate,
        n_episodes=n_episodes,
        batch_size=32,
        seed=seed,
        device="cpu",
        **settings,
    )
    with tempfile.TemporaryDirectory() as folder:
        agent.set_logger(configure(folder, ["csv"]))
        agent.learn(tokens, callback=RLHFMonitor(verbose=0))
        agent.logger.close()
        with (Path(folder) / "progress.csv").open(encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    return {name: [round(float(line[figure]), 3) for line in lines] for name, figure in COLUMNS.items()}


def main() -> None:
    """Record all runs, and write them to the package's file."""
    runs = {}
    for diagnosis, case in CASES.items():
        print(diagnosis, flush=True)
        runs[case.letter] = record(case)
    lines = [f"{json.dumps(letter)}: {json.dumps(runs[letter])}" for letter in sorted(runs)]
    RECORDING.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
