"""What is seen and kept while an agent learns: a line of JSON an iteration, a progress bar, gold from outside."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from torch import Tensor

from rlhf_gym.agents import TokenAlgorithm
from rlhf_gym.envs.episode import prompts_of
from rlhf_gym.files import (
    InputError,
    append_jsonl,
    checkpoint_next,
    read_jsonl,
    reading,
    rotate_checkpoint,
    write_jsonl,
)
from rlhf_gym.lm.tokens import decode
from rlhf_gym.pipeline.samples import spread_gold_scores
from rlhf_gym.progress import Progress
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import RewardFunction


class IterationLog(KVWriter):
    """Appends each iteration's figures to a JSONL file, under the names of SB3's logger; rank 0 alone writes.

    The agent's checkpoint has the lines too (`TokenAlgorithm.keep`): those of a file that was damaged come back.

    Args:
        path: the file; what it holds of iterations after `tokens` is removed (they will be gone through again).
        tokens: response tokens generated so far.
    """

    def __init__(self, path: Path, *, tokens: int) -> None:
        self.path = path
        kept: list[dict[str, Any]] = []
        if tokens:
            with suppress(InputError), reading("the log of an agent", path):  # the checkpoint has the lines too
                kept = [record for record in read_jsonl(path) if record["tokens"] <= tokens]
        self._begin_with(kept)

    def _begin_with(self, records: list[dict[str, Any]]) -> None:
        if ranks().leads:
            write_jsonl(self.path, records)
        self.records = records
        self.iteration = len(records)

    def state_dict(self) -> dict[str, Any]:
        """The lines so far, for the agent's checkpoint."""
        return {"records": list(self.records)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the file hold these lines."""
        self._begin_with(list(state["records"]))

    def weights(self) -> dict[str, Tensor]:
        """There are none."""
        return {}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """There are none."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append the iteration's figures as one line."""
        self.iteration += 1
        scalars = {name: value for name, value in key_values.items() if "json" not in key_excluded[name]}
        figures = {name: float(value) for name, value in sorted(scalars.items()) if np.isfinite(value)}
        self.records.append({"iteration": self.iteration, "tokens": int(step), **figures})
        append_jsonl(self.path, self.records[-1])

    def close(self) -> None:
        """Does nothing: the file is closed after every line."""


class TrainingProgress(KVWriter):
    """Shows tokens so far, and how score, KL, β, entropy and length stand."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Show the iteration's figures and move the bar."""
        shown = (
            ("score", "rlhf/score", "+.2f"),
            ("dense", "rlhf/dense_reward", "+.2f"),
            ("gold", "rlhf/gold", "+.2f"),
            ("KL", "rlhf/kl", ".2f"),
            ("β", "rlhf/kl_coef", ".3f"),
            ("H", "rlhf/entropy", ".2f"),
            ("len", "rlhf/response_length", ".1f"),
            ("loss", "train/loss", ".3f"),
            ("tok/s", "time/tokens_per_second", ",.0f"),
        )
        figures = "  ".join(f"{label} {key_values[name]:{form}}" for label, name, form in shown if name in key_values)
        self._progress.update(step, figures=figures)

    def close(self) -> None:
        """Does nothing: leaving the progress's `with` block closes it."""


class Watch(BaseCallback):
    """Looks at gold, which no agent sees, and writes checkpoints between iterations.

    Args:
        checkpoint: where the agent is saved.
        gold: the judge; None where there is none.
        gold_every: iterations between two looks; the first iteration is looked at.
        checkpoint_every: iterations between two checkpoints.
        iteration: iterations that are over.
        progress: where the tokens of a rollout are shown as they come.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        gold: RewardFunction | None,
        gold_every: int,
        checkpoint_every: int,
        iteration: int,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.progress = progress
        self._shown = time.monotonic()
        self.checkpoint = checkpoint
        self.gold = gold
        self.gold_every = gold_every
        self.checkpoint_every = checkpoint_every
        self.iteration = iteration

    def _on_rollout_start(self) -> None:
        # Between iterations: what is saved here is the start of this one.
        if self.iteration and self.iteration % self.checkpoint_every == 0:
            self.save(self.model)

    def save(self, agent: BaseAlgorithm) -> None:
        """Write a checkpoint; the one before stays until it is on the disk, and after."""
        agent.save(checkpoint_next(self.checkpoint))
        if ranks().leads:
            rotate_checkpoint(self.checkpoint)

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now - self._shown > 1:
            self._shown = now
            self.progress.update(self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        if self.gold is not None and self.iteration % self.gold_every == 0:
            agent = self.model
            assert isinstance(agent, TokenAlgorithm) and agent.buffer is not None
            episodes = agent.buffer.episodes
            tokenizer = agent.engine.tokenizer
            prompts = prompts_of(episodes, tokenizer)
            responses = decode(tokenizer, [e.answer_ids.tolist() for e in episodes])
            scores = spread_gold_scores(self.gold, prompts, responses)
            self.logger.record("rlhf/gold", float(scores.mean()))
            self.logger.record("rlhf/gold_std", float(scores.std()))
        self.iteration += 1

    def save_interrupted(self, agent: TokenAlgorithm) -> None:
        """Keep what an interrupted run has done: up to its last whole iteration, and that one's figures."""
        if "train/loss" in agent.logger.name_to_value:  # the update was let finish, its figures were not yet written
            agent.dump_logs(self.iteration)
        self.save(agent)
