"""PPO, or another agent, on the token environment, one run a seed: π_ref and r_φ in the environment, the policy in the
agent."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import LinearSchedule

from rlhf_gym.agents import (
    DPO,
    AdaptiveKL,
    ConstraintKL,
    FixedKL,
    KLController,
    TokenA2C,
    TokenAlgorithm,
    TokenGRPO,
    TokenPPO,
    TokenReinforce,
    TokenRLOO,
)
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.files import read_json, write_json
from rlhf_gym.lm import LoRA, Shared, load_causal_lm
from rlhf_gym.pipeline.collect import all_preferences
from rlhf_gym.pipeline.inspection import keep_views
from rlhf_gym.pipeline.monitor import make_monitor, what_it_said
from rlhf_gym.pipeline.preparation import Run
from rlhf_gym.pipeline.progress import IterationLog, PPOProgress, Watch
from rlhf_gym.pipeline.restraints import how_stopped, regularisers, stop_on_kl
from rlhf_gym.preferences import Preference
from rlhf_gym.rewards import ScoreError
from rlhf_gym.runs.agent_config import PPOConfig
from rlhf_gym.runs.folder import METRICS_FILE, StageName
from rlhf_gym.runs.records import ITERATIONS, iterations
from rlhf_gym.runs.summaries import alarm_line

CHECKPOINT = "checkpoint.zip"
AGENTS: dict[str, type[TokenAlgorithm]] = {
    "ppo": TokenPPO, "a2c": TokenA2C, "reinforce": TokenReinforce, "rloo": TokenRLOO, "grpo": TokenGRPO, "dpo": DPO,
}  # fmt: skip
"""Those that learn, by their name in the settings."""
SHOWN = ("rlhf/score", "rlhf/kl", "rlhf/kl_initial", "rlhf/entropy", "rlhf/response_length", "rlhf/stopped",
         "rlhf/gold", "train/loss", "train/accuracy")  # fmt: skip
"""What the stage's own metrics keep of the last iterations."""


def ppo_stage(run: Run, round: int) -> dict[str, Any]:
    """The agent from the policy of the round before (the SFT policy in the first), every seed."""
    return _all_seeds(run, "ppo", round)


def unleashed_stage(run: Run, round: int) -> dict[str, Any]:
    """The same without a KL penalty, for as many tokens: what the leash is for."""
    return _all_seeds(run, "unleashed", round)


def _all_seeds(run: Run, stage: StageName, round: int) -> dict[str, Any]:
    config = run.config.ppo
    if config.agent == "best_of_n":
        return _without_learning(run, stage, round)
    reward = Shared(run.load_reward(round))
    for place, seed in enumerate(run.seeds):
        folder = run.folder.seed(stage, round, seed)
        if read_json(folder / METRICS_FILE) is not None:
            continue
        name = stage if config.agent == "ppo" else config.agent if stage == "ppo" else f"{config.agent}, {stage}"
        label = name if len(run.seeds) == 1 else f"{name}, seed {place + 1} of {len(run.seeds)}"
        train(run, stage, round, seed, reward=reward, label=label)
    logs = [iterations(run.folder.seed(stage, round, seed)) for seed in run.seeds]
    ends = [read_json(run.folder.seed(stage, round, seed) / METRICS_FILE) for seed in run.seeds]
    return {
        "agent": config.label,
        "seeds": run.seeds,
        "tokens": [log[-1]["tokens"] for log in logs],
        "first": _medians([log[:1] for log in logs]),
        "last": _medians([log[-5:] for log in logs]),
        "stop_kl": config.stop_kl,
        "stop_kl_patience": config.stop_kl_patience,
        "stopped": [end.get("stopped") for end in ends],
        "alarms": alarm_line(ends),
    }


def _without_learning(run: Run, stage: StageName, round: int) -> dict[str, Any]:
    """The SFT policy as it is, in each seed's place: the best of n is chosen when it is evaluated."""
    for seed in run.seeds:
        folder = run.folder.seed(stage, round, seed)
        model = load_causal_lm(run.sft)
        model.save_pretrained(folder / "model")
        run.task.tokenizer.save_pretrained(folder / "model")
        write_json(folder / METRICS_FILE, {"seed": seed, "tokens": 0, "iterations": 0})
    return {"agent": run.config.ppo.label, "seeds": run.seeds, "tokens": [0] * len(run.seeds), "first": {}, "last": {}}


def train(run: Run, stage: StageName, round: int, seed: int, *, reward: Shared, label: str) -> None:
    """One seed's run, from its checkpoint if it has one, into its folder.

    On Ctrl-C, and where what scores the responses fails, the agent is saved as it was after its last whole iteration,
    and the interrupt or the error goes on its way.
    """
    config, folder = run.config.ppo, run.folder.seed(stage, round, seed)
    folder.mkdir(parents=True, exist_ok=True)
    env = make_env(run, stage, round, seed, reward)
    checkpoint = folder / CHECKPOINT
    if checkpoint.is_file():
        given: dict[str, Any] = {"preferences": preferences(run, round)} if config.agent == "dpo" else {}
        if AGENTS[config.agent].learns_from == "rewards":
            given["regularisers"] = regularisers(config, run.task, stage, seed)
        agent = AGENTS[config.agent].load(checkpoint, env=env, device=run.device, **given)
    else:
        agent = make_agent(run, stage, round, seed, env)
    judge = None if config.agent == "dpo" else run.task.gold  # it reads no responses of its own
    log = IterationLog(folder / ITERATIONS, tokens=agent.num_timesteps)
    with PPOProgress(run.console, label, total=config.total_tokens, done=agent.num_timesteps) as bar:
        agent.set_logger(Logger(folder=None, output_formats=[log, bar]))
        watch = Watch(
            checkpoint, gold=judge, gold_every=config.gold_every, checkpoint_every=config.checkpoint_every,
            iteration=log.iteration,
        )  # fmt: skip
        stop = stop_on_kl(config, stage)
        monitor = make_monitor(run, stage, folder)
        callbacks: list[BaseCallback] = [watch, monitor, *([stop] if stop else [])]
        try:
            agent.learn(
                config.total_tokens - agent.num_timesteps, callbacks, reset_num_timesteps=agent.num_timesteps == 0
            )
            keep_views(run, agent, folder)
        except (KeyboardInterrupt, ScoreError):
            watch.save_interrupted(agent)
            raise
    agent.save_pretrained(folder / "model", merge=True)
    done = {"seed": seed, "tokens": agent.num_timesteps, "iterations": log.iteration, "stopped": how_stopped(stop)}
    write_json(folder / METRICS_FILE, done | what_it_said(monitor))
    checkpoint.unlink(missing_ok=True)


def make_env(run: Run, stage: StageName, round: int, seed: int, reward: Shared) -> TokenVectorEnv:
    """The token MDP of a seed: this round's r_φ, its π_ref, the task's prompts."""
    config = run.config.ppo
    reference = load_causal_lm(run.reference(round, seed), device=run.device).requires_grad_(False)
    return TokenVectorEnv(
        config.num_envs,
        prompts=list(run.task.prompts),
        tokenizer=run.task.tokenizer,
        reference=Shared(reference),
        reward=reward,
        max_new_tokens=run.task.max_new_tokens,
        max_prompt_length=run.task.max_prompt_length,
        kl_coef=0.0 if stage == "unleashed" else config.kl_coef,
        reward_timing="deferred",
        samples_per_prompt=config.group,
        missing_eos_penalty=config.missing_eos_penalty,
        shaping=config.shaping,
    )


def make_agent(run: Run, stage: StageName, round: int, seed: int, env: TokenVectorEnv) -> TokenAlgorithm:
    """A fresh agent, its policy that of the round before."""
    config = run.config.ppo
    start = load_causal_lm(run.policy(round - 1, seed)).float()
    rate = config.learning_rate
    settings: dict[str, Any] = {
        "policy_kwargs": {"model": Shared(start), "freeze_layers": config.freeze_layers, "bf16": config.bf16},
        "learning_rate": LinearSchedule(rate, 0.0, 1.0) if config.schedule == "linear" else rate,
        "n_episodes": config.n_episodes,
        "batch_size": config.batch_size,
        "micro_batch_size": config.micro_batch_size,
        "n_epochs": config.epochs,
        "max_grad_norm": config.max_grad_norm,
        "seed": seed,
        "device": run.device,
    }
    if config.lora_r:
        settings["policy_kwargs"]["lora"] = LoRA(r=config.lora_r, alpha=2 * config.lora_r)
    if config.agent == "dpo":
        return DPO("LMPolicy", env, beta=config.kl_coef, preferences=preferences(run, round), **settings)
    settings |= {
        "target_kl": config.target_kl,
        "kl_controller": FixedKL(0.0) if stage == "unleashed" else kl_controller(config),
        "regularisers": regularisers(config, run.task, stage, seed),
    }
    if config.agent in ("ppo", "a2c"):
        settings["policy_kwargs"]["critic"] = config.critic
        settings |= {"vf_coef": config.vf_coef}
    if config.agent == "ppo":
        settings |= {"gae_lambda": config.gae_lambda, "clip_range_vf": config.clip_range_vf}
    if config.agent in ("ppo", "grpo"):
        settings |= {"clip_range": config.clip_range}
    return AGENTS[config.agent]("LMPolicy", env, **settings)


def preferences(run: Run, round: int) -> list[Preference] | None:
    """What DPO learns from: the pairs that the reward model of this round was trained on.

    None where none were collected, the reward model being the user's: DPO then compares π_ref's responses by it.
    """
    return None if run.config.task.reward_model is not None else all_preferences(run, round)[0]


def kl_controller(config: PPOConfig) -> KLController:
    """Who sets β."""
    if config.kl_control == "adaptive":
        return AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
    if config.kl_control == "constraint":
        return ConstraintKL(config.kl_coef, config.kl_target)
    return FixedKL(config.kl_coef)


def _medians(logs: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """Of each quantity: the mean over a log's records, the median over the logs."""
    found = {}
    for name in SHOWN:
        means = [np.mean([r[name] for r in log if name in r]) for log in logs if any(name in r for r in log)]
        if means:
            found[name] = float(statistics.median(means))
    return found
