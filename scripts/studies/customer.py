"""python scripts/studies/customer.py: the whole circle on dialogues with a customer, as a table and a picture.

The shipped SFT policy talks twice to each customer. An annotator, simulated by gold, compares the two dialogues
(Bradley–Terry). r_φ learns from whole dialogues, and PPO from r_φ with a KL penalty. Gold judges both policies with
customers that nothing was trained on. A study that was interrupted goes on; a minute a seed on one core. It leaves out
fresh labels about PPO's dialogues, and any tuning. scripts/models/build_customer.py makes the SFT policy.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import study

from rlhf_gym.agents import Rollout, TokenPPO, collect_rollout
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm import Shared
from rlhf_gym.lm.chat import as_response, prompt_text
from rlhf_gym.preferences import BradleyTerryAnnotator, Candidate, CandidatePair, split_by_prompt
from rlhf_gym.rewards import RewardModel
from rlhf_gym.tasks import customer_task
from rlhf_gym.tasks.customer import customer_mood
from rlhf_gym.training import evaluate_reward_model

COLUMNS = {"gold": ".2f", "wishes met": ".2f", "offended": ".0%", "answers": ".2f", "r_φ": ".2f", "KL, nats": "z.1f"}
LABELS = 1_500


def make_env(reward: Any, **changes: Any) -> TokenVectorEnv:
    """The dialogues with this reward."""
    return gym.make_vec("rlhf_gym/Chat-v0", num_envs=64, reward=reward, reward_timing="deferred", **changes)


def make_agent(reward: Any, seed: int) -> TokenPPO:
    """PPO on the dialogues; until it learns, it is the SFT policy."""
    env = make_env(reward)
    return TokenPPO("LMPolicy", env, n_episodes=256, batch_size=64, learning_rate=5e-4, seed=seed, device="cpu")


def talk(agent: TokenPPO, episodes: int, seed: int, **changes: Any) -> Rollout:
    """So many dialogues of the agent's policy, two with each customer, scored by gold."""
    env = make_env(customer_task().gold, samples_per_prompt=2, **changes)
    env.reset(seed=seed)
    agent.policy.set_training_mode(False)
    return collect_rollout(agent.policy, env, episodes, critic=False)


def candidates_of(dialogues: Rollout) -> list[Candidate]:
    """What the two sides said behind the customer's opening."""
    return [Candidate(e.prompt, as_response(e.messages[len(e.prompt) :])) for e in dialogues.episodes]


def learn_reward(seed: int, labels: int = LABELS) -> tuple[RewardModel, list[float]]:
    """r_φ from comparisons of the SFT policy's dialogues; how often it and gold agree with held-out comparisons."""
    task = customer_task()
    told = candidates_of(talk(make_agent(task.gold, seed), 2 * labels, seed))
    pairs = [CandidatePair(a, b) for a, b in zip(told[::2], told[1::2], strict=True) if a.response != b.response]
    learned, heldout = split_by_prompt(BradleyTerryAnnotator(task.gold, seed=seed).label(pairs), 0.1, seed=seed)
    reward = study.train_r_phi(task.sft, task, learned, seed)
    reward.fit_normalizers([c.prompt for c in told], [c.response for c in told])
    return reward, [evaluate_reward_model(judge, heldout).accuracy for judge in (reward, task.gold)]


def measure(agent: TokenPPO, reward: RewardModel) -> dict[str, Any]:
    """The policy with held-out customers: means over its dialogues, and one of them."""
    asked = customer_task().heldout_prompts
    dialogues = talk(agent, 2 * len(asked), 99, prompts=asked)
    told = candidates_of(dialogues)
    turns = [[customer_mood(e.messages[:end]) for end in range(2, len(e.messages) + 1, 2)] for e in dialogues.episodes]
    values = (
        dialogues.rewards.scores.mean(),
        np.mean([moods.count("content") for moods in turns]),
        np.mean(["offended" in moods for moods in turns]),
        np.mean([len(moods) for moods in turns]),
        reward.score_texts([c.prompt for c in told], [c.response for c in told]).mean(),
        dialogues.mean_kl,
    )
    found = dict(zip(COLUMNS, map(float, values), strict=True))
    return found | {"tokens": agent.num_timesteps, "dialogue": prompt_text(dialogues.episodes[2].messages)}


def circle(seed: int, labels: int, tokens: int, points: int) -> dict[str, Any]:
    """One seed: how right r_φ is, and what is measured before PPO and so many times on its way."""
    reward, accuracy = learn_reward(seed, labels)
    agent = make_agent(Shared(reward), seed)
    way = [measure(agent, reward)]
    for _ in range(points):
        agent.learn(tokens // points, reset_num_timesteps=False)
        way.append(measure(agent, reward))
    return {"accuracy": accuracy, "way": way}


def main(
    seeds: int = 5,
    labels: int = LABELS,
    tokens: int = 48_000,
    points: int = 8,
    run_dir: Path = Path("runs/customer"),
    output: Path = study.IMAGES / "customer.png",
) -> None:
    """Go round with so many seeds, each with its own labels, r_φ and agent; measure at so many points."""
    files = [run_dir / f"seed-{seed}.json" for seed in range(seeds)]
    runs = [study.kept(file, partial(circle, seed, labels, tokens, points)) for seed, file in enumerate(files)]
    rows = []
    for name, place in (("SFT", 0), ("PPO", -1)):
        found = [run["way"][place] for run in runs]
        rows.append([name, *(middle([point[c] for point in found], form) for c, form in COLUMNS.items())])
        print(f"{name}\n\n{found[0]['dialogue']}\n")
    print(study.markdown_table(["median (range)", *(f"{column}:" for column in COLUMNS)], rows))
    right = (middle([run["accuracy"][i] for run in runs], ".0%") for i in range(2))
    print("\nheld-out comparisons predicted: {} by r_φ, {} by gold".format(*right))
    places = {"gold": (0, 0), "r_φ": (0, 1), "wishes met": (1, 2), "KL, nats": (2, 3)}
    with study.picture(output, 1, 3, (9, 2.8)) as axes:
        for column, (panel, colour) in places.items():
            for run in runs:
                x, y = ([point[name] for point in run["way"]] for name in ("tokens", column))
                label = column if run is runs[0] else None
                axes[0, panel].plot(x, y, color=study.COLOURS[colour], label=label)
            axes[0, panel].set_xlabel("tokens")
            axes[0, panel].legend()


def middle(values: list[float], form: str) -> str:
    """The median, and in brackets the lowest and the highest."""
    return study.minus(f"{np.median(values):{form}} ({min(values):{form}} to {max(values):{form}})")


if __name__ == "__main__":
    study.run_script(main)
