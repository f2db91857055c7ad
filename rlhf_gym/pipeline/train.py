"""Training the agent of a run, one run a seed: with the KL penalty, and without it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from rlhf_gym.agents import StopOnKL, TokenAlgorithm
from rlhf_gym.files import read_checkpoint, read_json, remove_checkpoints, write_json, write_jsonl
from rlhf_gym.lm import Shared, load_causal_lm
from rlhf_gym.lm.chat import to_json
from rlhf_gym.manifest import write_manifest
from rlhf_gym.monitoring import RLHFMonitor, inspect_episodes, logger_outputs
from rlhf_gym.pipeline.agents import Parts, agent_class, learner_settings, make_agent, make_env, settings_label
from rlhf_gym.pipeline.context import Run
from rlhf_gym.pipeline.costs import Timing, affordable, allowed
from rlhf_gym.pipeline.evaluate import heldout_prompts
from rlhf_gym.pipeline.progress import IterationLog, TrainingProgress, Watch
from rlhf_gym.pipeline.samples import Samples, draw, gold_scores, write_episodes
from rlhf_gym.preferences import Demonstration, read_texts
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import ScoreError
from rlhf_gym.runs.folder import METRICS_FILE
from rlhf_gym.runs.records import ITERATIONS, VIEWS, iterations
from rlhf_gym.runs.summaries import alarm_line
from rlhf_gym.settings import StageName

CHECKPOINT = "checkpoint.zip"
SHOWN = (
    "rlhf/score",
    "rlhf/dense_reward",
    "rlhf/kl",
    "rlhf/kl_initial",
    "rlhf/entropy",
    "rlhf/response_length",
    "rlhf/stopped",
    "rlhf/gold",
    "train/loss",
    "train/accuracy",
)
"""What the stage's own metrics keep of the last iterations."""


def train_stage(run: Run, round: int) -> dict[str, Any]:
    """Every seed's agent, from the policy of the round before (the SFT policy in the first)."""
    return _without_learning(run, round) if run.config.agent.learner() is None else _all_seeds(run, "train", round)


def without_kl_stage(run: Run, round: int) -> dict[str, Any]:
    """The same without a KL penalty, for as many tokens."""
    return _all_seeds(run, "without_kl", round)


def _all_seeds(run: Run, stage: StageName, round: int) -> dict[str, Any]:
    settings = learner_settings(run, stage)
    reward = Shared(run.load_reward(round))
    label = settings_label(settings) + (", without KL" if stage == "without_kl" else "")
    for place, seed in enumerate(run.seeds):
        folder = run.folder.seed(stage, round, seed)
        if read_json(folder / METRICS_FILE) is None:
            of = "" if len(run.seeds) == 1 else f", seed {place + 1} of {len(run.seeds)}"
            train_agent(run, stage, round, seed, reward=reward, label=label + of)
        else:
            run.folder.check_seed(stage, round, seed)
        if ranks().leads:
            remove_checkpoints(folder / CHECKPOINT)
    logs = [iterations(run.folder.seed(stage, round, seed)) for seed in run.seeds]
    ends = [read_json(run.folder.seed(stage, round, seed) / METRICS_FILE) for seed in run.seeds]
    limit = settings.kl_limit
    return {
        "agent": settings_label(settings),
        "seeds": run.seeds,
        "tokens": [log[-1]["tokens"] for log in logs],
        "first": _medians([log[:1] for log in logs]),
        "last": _medians([log[-5:] for log in logs]),
        "stop_kl": limit and limit[0],
        "stop_kl_patience": 1 if limit is None else limit[1],
        "stopped": [end.get("stopped") for end in ends],
        "alarms": alarm_line(ends),
    }


def _without_learning(run: Run, round: int) -> dict[str, Any]:
    """The SFT policy as it is, in each seed's place: the best of n is chosen when it is evaluated."""
    for seed in run.seeds if ranks().leads else []:
        folder = run.folder.seed("train", round, seed)
        model = load_causal_lm(run.sft)
        model.save_pretrained(folder / "model")
        run.task.tokenizer.save_pretrained(folder / "model")
        write_json(folder / METRICS_FILE, {"seed": seed, "tokens": 0, "iterations": 0})
    label = settings_label(run.config.agent)
    return {"agent": label, "seeds": run.seeds, "tokens": [0] * len(run.seeds), "first": {}, "last": {}}


def train_agent(run: Run, stage: StageName, round: int, seed: int, *, reward: Shared, label: str) -> None:
    """Train one seed's agent, from its checkpoint if it has one, into its folder.

    On Ctrl-C, and where what scores the responses fails, the agent is saved as it was after its last whole iteration,
    and the interrupt or the error is raised again. Of several ranks rank 0 logs and writes. Where another
    one fails, the last checkpoint is what is left.
    """
    group = ranks()
    settings = learner_settings(run, stage)
    folder = run.folder.seed(stage, round, seed)
    folder.mkdir(parents=True, exist_ok=True)
    env = make_env(run, stage, round, seed, reward)
    checkpoint = folder / CHECKPOINT
    kind: Any = agent_class(settings)

    def load(path: Path) -> TokenAlgorithm:
        return kind.load(path, env=env, device=run.device, **settings.loading_arguments(Parts(run, round, seed)))

    loaded, trouble = read_checkpoint(checkpoint, load)
    if trouble:
        run.console.print(f"  {trouble}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    agent = make_agent(run, stage, round, seed, env) if loaded is None else loaded
    log = IterationLog(folder / ITERATIONS, tokens=agent.num_timesteps)
    agent.keep("iterations", log)
    with run.progress(f"{label}, tokens").over(settings.total_tokens, done=agent.num_timesteps) as shown:
        others: list[KVWriter] = []
        if group.leads:
            others = logger_outputs(
                run.config.logger,
                folder,
                name=f"{run.folder.root.name}/{folder.relative_to(run.folder.root).as_posix()}",
                group=run.folder.root.name,
                before=[{name: value for name, value in line.items() if "/" in name} for line in log.records],
            )
        outputs = [log, TrainingProgress(shown), *others] if group.leads else []
        agent.set_logger(Logger(folder=None, output_formats=outputs))
        gold_every = settings.gold_interval
        watch = Watch(
            checkpoint,
            gold=None if gold_every is None else run.task.gold,
            gold_every=gold_every or 1,
            checkpoint_every=settings.checkpoint_every,
            iteration=log.iteration,
            progress=shown,
        )
        monitor = make_monitor(run, stage, folder)
        stop = None if settings.kl_limit is None else StopOnKL(*settings.kl_limit)
        callbacks: list[BaseCallback] = [watch, monitor, *([stop] if stop else [])]
        timing = Timing(folder)
        try:
            with group.failing_together():
                with timing.of("training"):
                    left = settings.total_tokens - agent.num_timesteps
                    agent.learn(left, callbacks, reset_num_timesteps=agent.num_timesteps == 0)
                keep_views(run, agent, folder, seconds=timing.get("training"))
                agent.save_pretrained(folder / "model", merge=True)
        except (KeyboardInterrupt, ScoreError):
            watch.save_interrupted(agent)
            raise
        finally:
            for output in others:
                output.close()
    stopped = None
    if stop is not None and stop.stopped_at is not None:
        stopped = {"stopped_at": stop.stopped_at, "kept_kl": stop.kept_kl}
    if group.leads:
        figures = {
            "seed": seed,
            "tokens": agent.num_timesteps,
            "iterations": log.iteration,
            "stopped": stopped,
            "alarms": [{"name": alarm.name, "tokens": alarm.tokens} for alarm in monitor.alarms],
            "ended_by": monitor.ended_by,
        }
        write_manifest(folder, METRICS_FILE, figures)
        write_json(folder / METRICS_FILE, figures)
    group.meet("the end of an agent's training")


def make_monitor(run: Run, stage: StageName, folder: Path) -> RLHFMonitor:
    """What watches a seed's agent, and keeps what it saw in the seed's folder.

    Of the agent without KL penalty, which is trained to see it go wrong, only the stage's line tells the alarms.
    """
    config = run.config.monitor
    texts: list[str] | list[Demonstration]
    if config.held_out is not None:
        texts = read_texts(config.held_out, skip_bad=run.config.task.skip_bad)[: config.held_out_texts]
    else:
        texts = list(run.task.heldout_demonstrations[: config.held_out_texts])
    return RLHFMonitor(
        patterns=config.by_name,
        held_out_texts=texts,
        every=config.every,
        thresholds=config.thresholds,
        stop_on=() if stage == "without_kl" else config.stop_on,
        folder=folder,
        console=run.console,
        verbose=0 if stage == "without_kl" else 1,
    )


def keep_views(run: Run, agent: TokenAlgorithm, folder: Path, *, seconds: float) -> None:
    """Write views of the evaluation's first prompts into a seed's folder: the SFT policy's response, seen by the agent
    and its critic, and the agent's own. The critic itself is not kept.

    There are as many as `evaluate.shown` says, or as a part of the `seconds` that training took allows.
    """
    # a view writes two responses and reads them five times, for which a fiftieth of the training's time is there
    timing = Timing(run.folder.stage("reward", 1))
    cost = run.config.evaluate.shown * (2 * timing.get("response") + 5 * timing.get("text"))
    shown = affordable(run.config.evaluate.shown, allowed(seconds) / 10 / max(cost, 1e-9), 1)
    shown = ranks().broadcast(shown, "how many views are kept")
    prompts = heldout_prompts(run)[:shown]
    if not prompts:
        return
    seed = run.config.seed + 7
    sides = {
        "before": draw(run.load_policy(run.sft), run.task, prompts, seed=seed).episodes,
        "after": write_episodes(agent.policy.model, run.task, prompts, seed=seed),
    }
    records: list[dict[str, Any]] = [{"prompt": to_json(prompt)} for prompt in prompts]
    for side, episodes in sides.items():
        samples = Samples.of(prompts, episodes, run.task)
        views = inspect_episodes(agent, episodes=episodes)
        judge = run.task.gold
        gold: list[float | None] = [None] * len(prompts) if judge is None else gold_scores(judge, samples).tolist()
        for record, view, score in zip(records, views, gold, strict=True):
            record[side] = view.to_dict(digits=4) | {"gold": score}
    if ranks().leads:
        write_jsonl(folder / VIEWS, records)


def _medians(logs: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """Of each quantity: the mean over a log's records, the median over the logs."""
    found = {}
    for name in SHOWN:
        means = [np.mean([r[name] for r in log if name in r]) for log in logs if any(name in r for r in log)]
        if means:
            found[name] = float(statistics.median(means))
    return found
