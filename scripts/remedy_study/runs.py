"""The runs behind the table: a seed's preferences and reward models, PPO under each remedy, figures kept in files."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from study import Trajectory, kept, quiet_run, study_config, task_from_sft

from remedy_study.arms import NONE, Arm, Source
from rlhf_gym.lm import Shared, load_causal_lm, quiet_transformers
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.pipeline.ppo import train
from rlhf_gym.pipeline.reward import normalise_all, train_reward, training_preferences
from rlhf_gym.pipeline.samples import draw, gold_scores, log_probs
from rlhf_gym.rewards import LearnedReward, RewardModel, load_reward
from rlhf_gym.runs import PPOConfig, RunConfig, RunFolder, TaskConfig
from rlhf_gym.runs.records import iterations
from rlhf_gym.tasks import Task


@dataclass(frozen=True)
class Ground:
    """What all arms have in common."""

    root: Path
    """Where everything is kept."""
    labels: int = 1_000
    """Preferences of a seed, a tenth of them held out."""
    mistakes: float = 0.2
    """Share of them that are turned round."""
    members: int = 4
    """Of an ensemble."""
    tokens: int = 16_000
    """Response tokens of PPO."""
    bootstrap: bool = True
    """Whether members of an ensemble learn from draws of their own."""
    small: bool = False
    """Everything tiny, to see that it runs."""

    def seed(self, seed: int) -> Path:
        """Folder of a seed."""
        return self.root / f"seed-{seed}"

    def config(self, folder: Path, seed: int, **changes: Any) -> RunConfig:
        """The settings to depart from."""
        settings: dict[str, Any] = {"ppo": PPOConfig(total_tokens=self.tokens, kl_coef=0.0, n_episodes=64)}
        config = study_config(folder, seed, labels=self.labels, **(settings | changes))
        collect = replace(config.collect, mistake_rate=self.mistakes)
        members = self.members if config.task.reward_model is None else 1  # else they are there already
        reward = replace(config.reward, members=members, force=True)
        if self.small:
            config = replace(config, ppo=replace(config.ppo, n_episodes=16, num_envs=16))
            reward = replace(reward, reference_samples=32)
        return replace(config, collect=collect, reward=reward, unleashed=False)


def reward_models(ground: Ground, seed: int, task: Task) -> dict[Source, Path]:
    """Folders of the seed's reward models, all trained on the same preferences and normalised on SFT responses."""
    folder = ground.seed(seed) / "rewards"
    config = ground.config(ground.seed(seed) / "ground", seed)
    found: dict[Source, Path] = {"single": folder / "single"}
    for trunk in ("separate", "shared"):
        found[trunk] = folder / trunk  # type: ignore[index]
    if all((path / "done").is_file() for path in found.values()):
        return found
    run(config, task=task, only="collect", console=_silent())
    for name, path in found.items():
        members = 1 if name == "single" else ground.members
        trunk = "shared" if name == "shared" else "separate"
        training = replace(config.reward.training, bootstrap=ground.bootstrap and members > 1)
        settings = replace(config.reward, members=members, trunk=trunk, training=training)
        prepared = prepare(config, task=task, console=_silent())
        prepared = replace(prepared, config=replace(config, reward=settings))
        with quiet_transformers():
            reward = train_reward(prepared, folder / f"{name}.partial", *training_preferences(prepared, 1))
            normalise_all(reward, prepared)
            reward.save_pretrained(path)
        (path / "done").touch()
    return found


def arm_figures(ground: Ground, arm: Arm, seed: int) -> dict[str, Any]:
    """What PPO under a remedy came to; made unless it is there.

    `trajectory`: tokens, KL to SFT, gold and score of each iteration's responses. `final`: KL and gold of the policy
    that came out, on prompts nothing was trained on. `base`: gold of the SFT policy on the same.
    """
    return kept(ground.seed(seed) / f"{arm.name}.json", lambda: _arm_figures(ground, arm, seed))


def disagreement(ground: Ground, seed: int) -> dict[str, dict[str, list[float]]]:
    """Of each ensemble, about what SFT writes and what no remedy came to: mean score, and mean variance of members.

    The run without a remedy must be there.
    """
    return kept(ground.seed(seed) / "disagreement.json", lambda: _disagreement(ground, seed))


def trajectory(figures: dict[str, Any]) -> Trajectory:
    """As the studies read it."""
    return Trajectory(*np.array(figures["trajectory"], dtype=np.float64))


def _arm_figures(ground: Ground, arm: Arm, seed: int) -> dict[str, Any]:
    task = task_from_sft()
    if ground.small:
        task = replace(task, heldout_prompts=task.heldout_prompts[:16])
    folder, logs = _fresh(ground, arm, seed, task) if arm.fresh else _one_run(ground, arm, seed, task)
    records = [record | {"tokens": record["tokens"] + before} for before, log in logs for record in log]
    starts = [0, *(record["tokens"] for record in records)][: len(records)]
    kl = [record.get("rlhf/kl_initial", record["rlhf/kl"]) for record in records]
    columns = [starts, kl, *([record[f"rlhf/{name}"] for record in records] for name in ("gold", "score"))]
    base = kept(ground.seed(seed) / "sft.json", lambda: _heldout(task, task.sft, seed))
    return {"trajectory": columns, "final": _heldout(task, folder / "model", seed), "base": base}


def _one_run(ground: Ground, arm: Arm, seed: int, task: Task) -> tuple[Path, list[tuple[int, list[dict[str, Any]]]]]:
    """PPO against the seed's reward model."""
    source = reward_models(ground, seed, task)[arm.reward]
    config = ground.config(ground.seed(seed) / arm.name, seed, task=TaskConfig(reward_model=str(source)))
    config = replace(config, ppo=replace(config.ppo, **arm.ppo))
    prepared = prepare(config, task=task, console=_silent())
    with quiet_transformers():
        train(prepared, "ppo", 1, seed, reward=Shared(_reward(arm, source)), label=arm.name)
    folder = prepared.folder.seed("ppo", 1, seed)
    return folder, [(0, iterations(folder))]


def _fresh(ground: Ground, arm: Arm, seed: int, task: Task) -> tuple[Path, list[tuple[int, list[dict[str, Any]]]]]:
    """Half the labels about SFT's responses, half about those of the policy after half the tokens."""
    half = replace(ground, labels=ground.labels // 2, tokens=ground.tokens // 2)
    config = half.config(ground.seed(seed) / arm.name, seed, rounds=2)
    config = replace(config, ppo=replace(config.ppo, **arm.ppo), reward=replace(config.reward, members=1))
    folder = quiet_run(config, task)
    rounds = [iterations(folder.seed("ppo", round, seed)) for round in (1, 2)]
    return folder.seed("ppo", 2, seed), [(0, rounds[0]), (rounds[0][-1]["tokens"], rounds[1])]


def _disagreement(ground: Ground, seed: int) -> dict[str, dict[str, list[float]]]:
    task, sources = task_from_sft(), reward_models(ground, seed, task_from_sft())
    hacked = RunFolder(ground.seed(seed) / NONE.name).seed("ppo", 1, seed) / "model"
    found: dict[str, dict[str, list[float]]] = {}
    for name in ("separate", "shared"):
        reward = load_reward(sources[name])  # type: ignore[index]
        assert not isinstance(reward, RewardModel)
        for policy, source in (("sft", task.sft), ("none", hacked)):
            ids, _, lengths = draw(load_causal_lm(source), task, task.heldout_prompts, seed=seed + 7).rows()  # type: ignore[arg-type]
            scores = reward.member_scores(ids, torch.arange(ids.shape[1]) < lengths[:, None])  # (members, B)
            values = [float(scores.mean()), float(scores.var(dim=0, correction=0).mean())]
            found.setdefault(name, {})[policy] = values
    return found


def _reward(arm: Arm, source: Path) -> LearnedReward:
    reward = load_reward(source)
    if not isinstance(reward, RewardModel):
        reward.aggregate, reward.uncertainty_weight = arm.aggregate, arm.uncertainty_weight
    return reward


def _heldout(task: Task, policy: Any, seed: int) -> dict[str, float]:
    """Mean gold and KL to SFT of one response to each held-out prompt."""
    assert task.gold is not None and task.sft is not None
    model, sft = load_causal_lm(policy), load_causal_lm(task.sft)
    samples = draw(model, task, task.heldout_prompts, seed=seed + 7)
    ratios = [a.sum() - b.sum() for a, b in zip(log_probs(model, samples), log_probs(sft, samples), strict=True)]
    return {"gold": float(gold_scores(task.gold, samples).mean()), "kl": float(np.mean(ratios)),
            "length": float(samples.lengths.mean())}  # fmt: skip


def _silent() -> Console:
    return Console(file=io.StringIO())
