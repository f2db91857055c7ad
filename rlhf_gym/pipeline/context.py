"""The run that stages work on: its settings, its folder, its task, and where its models are."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf_gym.files import read_json
from rlhf_gym.lm import thresholds
from rlhf_gym.lm.loading import load_causal_lm, load_config
from rlhf_gym.preferences import LabelledSteps, Preference
from rlhf_gym.progress import Progress
from rlhf_gym.rewards import LearnedReward, RewardNormalizer, load_reward
from rlhf_gym.runs.folder import RunFolder
from rlhf_gym.settings import RunConfig
from rlhf_gym.settings.defaults import Beginning, Row, row
from rlhf_gym.settings.run import agent_row
from rlhf_gym.tasks import Task

WIDE = 256
"""Hidden size from which on a second CPU thread pays."""
NORMALIZERS = "normalizers.json"
"""In the reward stage's folder: the unit of a reward model of the user's own, whose folder is left as it is."""


@dataclass(frozen=True)
class Run:
    """A run that has been checked: what its stages work with."""

    config: RunConfig
    """The run's settings, their paths made absolute."""
    folder: RunFolder
    """The run's folder."""
    task: Task
    """The task."""
    preferences: tuple[Preference, ...] | None
    """The user's own preferences, if there are any."""
    perplexity_floor: float | None
    """The perplexity of the demonstrations' language itself, where it is known."""
    device: str
    """The device that the models are on."""
    console: Console
    """The terminal that shows progress."""
    notes: tuple[str, ...] = ()
    """What was left out of the user's files, not used of them, or odd about them, a sentence each."""
    steps: tuple[LabelledSteps, ...] | None = None
    """The user's own labelled steps, if there are any."""
    memory_notes: tuple[str, ...] = ()
    """What was chosen because of the memory that is free, a sentence each."""

    @property
    def makes_pretrained(self) -> bool:
        """Whether the pretrain stage has something to do."""
        return bool(self.task.pretraining_texts) and (self.config.pretrain or self.task.pretrained is None)

    @property
    def pretrained(self) -> str | Path:
        """Folder or name of the pretrained model."""
        if self.makes_pretrained:
            return self.folder.stage("pretrain") / "model"
        assert self.task.pretrained is not None
        return self.task.pretrained

    @property
    def sft(self) -> str | Path:
        """Folder or name of the SFT policy: the pretrained model, where there are no demonstrations."""
        return self.folder.stage("sft") / "model" if self.task.demonstrations else self.pretrained

    def policy(self, round: int, seed: int) -> str | Path:
        """The policy that a seed's agent left in a round; round 0: the SFT policy."""
        return self.sft if round == 0 else self.folder.seed("train", round, seed) / "model"

    def reference(self, round: int, seed: int) -> str | Path:
        """Folder or name of the π_ref of a round."""
        if self.config.reference == "pretrained":
            return self.pretrained
        return self.policy(round - 1 if self.config.reference == "previous" else 0, seed)

    def load_policy(self, source: str | Path) -> PreTrainedModel:
        """A policy, in fp32 whatever its checkpoint is in: it is trained so, and figures compare the same function."""
        return load_causal_lm(source, dtype=torch.float32, device=self.device)

    def load_reward(self, round: int) -> LearnedReward:
        """r_φ of a round, in the SFT policy's unit once its stage is complete."""
        source = self.config.task.reward_model
        if source is None:
            return load_reward(self.folder.stage("reward", round) / "model", device=self.device)
        reward = load_reward(source, device=self.device)
        saved = read_json(self.folder.stage("reward") / NORMALIZERS)
        if saved is not None:
            reward.normalizers = [RewardNormalizer.from_dict(values) for values in saved]
        return reward

    def progress(self, label: str) -> Progress:
        """Progress of some work of the run, shown where the run is."""
        return Progress(label, self.console)

    @property
    def seeds(self) -> list[int]:
        """The random seed of each agent."""
        return [self.config.seed + i for i in range(self.config.seeds)]

    @property
    def trains_without_kl(self) -> bool:
        """Whether the agent is trained without KL penalty too, which not every agent can be."""
        able = self.config.agent.without_kl() is not None
        return self.config.without_kl and self.task.gold is not None and able


def learning_rates(run: Run) -> list[tuple[str, float, Row]]:
    """The learning rate of each stage that has one, under the name of its setting, with its row of the table.

    A task that makes its own model begins from scratch, whatever has been shipped of it.
    """
    config = run.config
    pretrained = run.task.model_config is None
    begins: Beginning = "pretrained" if pretrained else "scratch"
    found = []
    if run.makes_pretrained:
        found.append(("pretraining.learning_rate", config.pretraining.learning_rate, row("pretraining", "scratch")))
    if run.task.demonstrations:
        found.append(("sft.learning_rate", config.sft.learning_rate, row("sft", begins)))
    if config.task.reward_model is None:
        found.append(("reward.training.learning_rate", config.reward.training.learning_rate, row("reward", begins)))
    learner = config.agent.learner()
    if learner is not None:
        found.append(("agent.learning_rate", learner.learning_rate, agent_row(learner, pretrained=pretrained)))
    return found


def resolve_device(device: str) -> str:
    """A device that is there.

    Raises:
        ValueError: it is not.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # "meta" makes tensors that hold nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected a device that is there, such as cpu or auto, got {device!r}: {reason}") from error
    return device


def use_threads(run: Run) -> int:
    """Set torch's CPU threads and say how many.

    As asked, or as OMP_NUM_THREADS says; else one a core, and one alone for a small model: its operations are over
    before a second thread has woken up, and where cores are shared, waiting for it costs many times what it brings.
    """
    if run.config.threads:
        torch.set_num_threads(run.config.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        config = model_config(run).get_text_config()
        torch.set_num_threads(1 if config.hidden_size < WIDE else usable_cores())
    return torch.get_num_threads()


def usable_cores() -> int:
    """The machine's physical cores, which is what torch begins with, or as many CPUs as this process may use."""
    cores = torch.get_num_threads()
    return min(cores, len(os.sched_getaffinity(0))) if sys.platform == "linux" else cores


def context_length(run: Run) -> int | None:
    """Positions of the policy's model; None where its configuration sets no limit."""
    return thresholds.context_length(model_config(run))


def model_config(run: Run) -> PreTrainedConfig:
    """The shape of the policy's model."""
    if run.makes_pretrained:
        assert run.task.model_config is not None
        return run.task.model_config
    return load_config(run.pretrained, what="a causal language model")
