"""What holds an agent to where it came from, as the settings say: ptx, and stopping on KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_gym.agents import EntropyBonus, MovingReference, PretrainingMix, Regulariser, StopOnKL
from rlhf_gym.preferences import read_texts
from rlhf_gym.runs.agent_config import PPOConfig
from rlhf_gym.runs.folder import StageName
from rlhf_gym.tasks import Task
from rlhf_gym.training.data import demonstration_rows


def ptx_texts(config: PPOConfig, task: Task) -> Sequence[str] | list[list[int]]:
    """What ptx learns from: the file of the settings, else the task's texts, else its demonstrations (as token ids).

    Raises:
        ValueError: there are none.
    """
    if config.ptx_texts is not None:
        return read_texts(config.ptx_texts)
    if task.pretraining_texts:
        return task.pretraining_texts
    if task.demonstrations:
        return [row.ids for row in demonstration_rows(task.tokenizer, task.demonstrations)]
    raise ValueError(
        f"expected texts for ptx_coef={config.ptx_coef}, but the task {task.name!r} has neither texts for pretraining "
        "nor demonstrations: give --ppo.ptx-texts FILE"
    )


def regularisers(config: PPOConfig, task: Task, stage: StageName, seed: int) -> list[Regulariser]:
    """What is added to the objective of one seed's agent."""
    found: list[Regulariser] = []
    if config.ent_coef:
        found.append(EntropyBonus(config.ent_coef))
    if config.ptx_coef:
        texts = ptx_texts(config, task)
        found.append(PretrainingMix(texts, config.ptx_coef, batch_size=config.ptx_batch_size, seed=seed))
    if config.ema_reference and stage != "unleashed":
        found.append(MovingReference(config.ema_reference))
    return found


def stop_on_kl(config: PPOConfig, stage: StageName) -> StopOnKL | None:
    """The stop of one seed's run; None where there is to be none, as in a run without any leash."""
    if config.stop_kl is None or stage == "unleashed":
        return None
    return StopOnKL(config.stop_kl, config.stop_kl_patience)


def how_stopped(stop: StopOnKL | None) -> dict[str, Any] | None:
    """For the metrics: the mean KL of the rollout that ended training, and of the policy that was kept."""
    if stop is None or stop.stopped_at is None:
        return None
    return {"stopped_at": stop.stopped_at, "kept_kl": stop.kept_kl}
