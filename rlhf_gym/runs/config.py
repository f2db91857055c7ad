"""The settings of a run: one frozen record a stage, and `RunConfig`, which holds them all.

The defaults are those of the embedded task; `default_config` gives those that suit what one brings along.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import arg

from rlhf_gym.preferences import CONFIDENT_WORDS, PairingStrategy
from rlhf_gym.preferences.active import Acquisition
from rlhf_gym.rewards import Aggregate, Trunk
from rlhf_gym.runs.agent_config import PPOConfig, at_least
from rlhf_gym.runs.monitor_config import MonitorConfig
from rlhf_gym.training import RewardModelingConfig, SFTConfig

Reference = Literal["sft", "pretrained", "previous"]
Pairing = Literal[PairingStrategy, "active"]
Labeler = Literal["simulated", "web"]


@dataclass(frozen=True)
class TaskConfig:
    """What the run is about. Without any of these: the embedded reviews task."""

    corpus: Path | None = None
    """Labelled texts, JSONL of {"text", "label"}: a small model is made of them, and gold is what a classifier says."""
    model: str | None = None
    """Your own language model to begin from: a folder or a hub name. Needs --prompts."""
    prompts: Path | None = None
    """Your own prompts: JSONL with the field "prompt", or a text file with one a line."""
    demonstrations: Path | None = None
    """Your own demonstrations, JSONL of {"prompt", "response"}; without them SFT is left out."""
    preferences: Path | None = None
    """Your own preferences, JSONL of {"prompt", "chosen", "rejected"}, instead of collecting them."""
    reward_model: str | None = None
    """A reward model that is there already, a folder or a hub name: nothing is collected, none is trained."""
    max_prompt_length: int | None = None
    """Longest prompt in tokens; by default the task's own, or that of your longest prompt."""
    max_new_tokens: int | None = None
    """Longest response in tokens, its end included; by default the task's own."""

    def __post_init__(self) -> None:
        if self.corpus is not None and self.model is not None:
            raise ValueError("expected either a corpus (it brings a small model of its own) or a model, got both")
        if self.model is not None and self.prompts is None:
            raise ValueError(f"expected prompts to go with the model {self.model!r}, got none: add --prompts FILE")
        if self.model is None and self.prompts is not None:
            raise ValueError(f"expected a model to answer the prompts of {self.prompts}, got none: add --model")
        if self.model is None and self.demonstrations is not None:
            raise ValueError(f"expected a model to learn from {self.demonstrations}, got none: add --model")
        for name in ("max_prompt_length", "max_new_tokens"):
            at_least(self, name, 1)


@dataclass(frozen=True)
class CollectConfig:
    """Which responses are compared, and by whom."""

    num_prompts: int = 2000
    """Prompts that responses are drawn for; all of the task's where it has fewer."""
    samples_per_prompt: int = 16
    """Responses to each."""
    sources: tuple[str, ...] = ("previous",)
    """Policies that write: "sft", "previous" (those of the round before, at first the SFT policy), "round-K" (those of
    round K, from the round after it on), or a folder or hub name. A prompt's responses take all ways of all in turn."""
    decodings: tuple[str, ...] = ("sample",)
    """How they write: "sample", "greedy", "beam-4", or "best-of-4" by r_φ (with other numbers too)."""
    temperatures: tuple[float, ...] = (1.0, 1.3)
    """Sampling temperatures, of "sample" and "best-of-n". Some heat shows r_φ what PPO may come to."""
    top_ps: tuple[float, ...] = (1.0,)
    """Top-p, of "sample" and "best-of-n"; each with each temperature."""
    reward_model: str | None = None
    """Folder of the r_φ that the best of n is best by; by default that of the round before: none in the first."""
    pairing: Pairing = "random"
    """Which of a prompt's responses are compared: "random" pairs each once, "all" compares all, "tournament" some;
    "active" labels in batches and chooses each batch by what the labels so far leave open."""
    acquisition: Acquisition = "uncertainty"
    """What "active" looks for: "disagreement" of an ensemble, "information" on which of it is right (BALD), or
    "uncertainty", a preference near ½."""
    batches: int = 4
    """Batches that "active" labels in; the first is drawn at random, where there is nothing to go by yet."""
    active_members: int = 3
    """Reward models of the ensemble that "active" chooses by."""
    sharpness: float | None = None
    """A pair is chosen with probability ∝ (acquisition score)^sharpness, 0 being at random; None takes the best."""
    labeler: Labeler = "simulated"
    """Who compares: "simulated", annotators that know gold, or "web", people at a labelling page."""
    num_labels: int | None = None
    """Comparisons asked for in a round; None for all the pairs there are."""
    annotator_temperature: float = 0.25
    """The simulated annotator prefers y1 with σ((gold(y1) − gold(y2))/temperature); 0 never doubts."""
    mistake_rate: float = 0.05
    """Share of its answers that are turned round."""
    annotator_length_bias: float = 0.0
    """How much better a response seems to it for each word, in gold's unit."""
    annotator_word_bias: float = 0.0
    """How much better for each of `annotator_bias_words`."""
    annotator_bias_words: tuple[str, ...] = CONFIDENT_WORDS
    """Words it is fond of; by default those of people who are sure of themselves."""
    annotator_tie_threshold: float = 0.0
    """It calls closer ones than this a tie, in gold's unit (Rao and Kupper); ties are not learned from."""
    annotators: int = 1
    """Simulated annotators."""
    annotator_spread: float = 0.0
    """How much they differ: temperature, mistake rate and biases of each are multiplied by e^{spread·z}, z normal."""
    judges_per_pair: int = 1
    """How many of them (or of the people at the page) compare each pair; their answers weigh one together."""
    heldout_fraction: float = 0.1
    """Share of the prompts whose pairs only measure the reward model."""

    def __post_init__(self) -> None:
        at_least(self, "num_prompts", 2)
        at_least(self, "samples_per_prompt", 2)
        at_least(self, "num_labels", 2)
        if self.labeler not in get_args(Labeler):
            raise ValueError(f"expected labeler to be one of {get_args(Labeler)}, got {self.labeler!r}")
        if not self.temperatures or not all(t > 0 for t in self.temperatures):
            raise ValueError(f"expected temperatures > 0, at least one, got {self.temperatures}")
        if not self.top_ps or not all(0 < p <= 1 for p in self.top_ps):
            raise ValueError(f"expected top_ps in (0, 1], at least one, got {self.top_ps}")
        _check_decodings(self)
        for name, allowed in (("pairing", get_args(Pairing)), ("acquisition", get_args(Acquisition))):
            if (value := vars(self)[name]) not in allowed:
                raise ValueError(f"expected {name} to be one of {allowed}, got {value!r}")
        for name in ("annotators", "judges_per_pair", "batches"):
            at_least(self, name, 1)
        at_least(self, "active_members", 2)
        for name in ("annotator_temperature", "annotator_tie_threshold", "annotator_spread", "sharpness"):
            if vars(self)[name] is not None and not vars(self)[name] >= 0:
                raise ValueError(f"expected {name} >= 0, got {vars(self)[name]}")
        if self.labeler == "simulated" and self.judges_per_pair > self.annotators:
            raise ValueError(f"expected judges_per_pair <= annotators = {self.annotators}, got {self.judges_per_pair}")
        if not 0 <= self.mistake_rate <= 1:
            raise ValueError(f"expected mistake_rate in [0, 1], got {self.mistake_rate}")
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(f"expected heldout_fraction in (0, 1), got {self.heldout_fraction}")


def is_source_name(source: str) -> bool:
    """Whether an entry of `CollectConfig.sources` names policies of the run; otherwise it is a folder or hub name."""
    return re.fullmatch(r"sft|previous|round-\d+", source) is not None


def _check_decodings(config: CollectConfig) -> None:
    """The sources and decodings are some, and can be had.

    Raises:
        ValueError: they are not.
    """
    if not config.sources or not config.decodings:
        raise ValueError(f"expected sources and decodings, got {config.sources} and {config.decodings}")
    for text in config.decodings:
        if not re.fullmatch(r"sample|greedy|(best-of|beam)-([2-9]|[1-9]\d+)", text):
            raise ValueError(f'expected decodings "sample", "greedy", "best-of-4", "beam-4" or such, got {text!r}')
    if config.reward_model is None and all(text.startswith("best-of") for text in config.decodings):
        raise ValueError(
            f"expected reward_model, or a decoding for the first round, which has none yet, got {config.decodings}"
        )


@dataclass(frozen=True)
class RewardConfig:
    """The reward model r_φ: one, or several as an ensemble, on the SFT policy's trunk."""

    training: Annotated[RewardModelingConfig, arg(name="")] = field(
        default_factory=lambda: RewardModelingConfig(epochs=2, learning_rate=1e-3, batch_size=64)
    )
    """How each is trained."""
    members: int = 1
    """Reward models that are trained; more than one make an ensemble."""
    trunk: Trunk = "separate"
    """Whether members have a trunk each, or "shared" one: k heads that cost what one model costs, and disagree less."""
    aggregate: Aggregate = "mean"
    """How members become one score: "mean", "min", or "uwo" (mean − λ·variance)."""
    uncertainty_weight: float = 0.1
    """λ of "uwo"."""
    reference_samples: int = 1000
    """SFT responses over which scores are normalised to mean 0 and standard deviation 1."""
    probe_samples: int = 250
    """SFT responses to held-out prompts that are edited, to see what the scores are for; 0 leaves the probes out."""
    force: bool = False
    """Go on to PPO even with a reward model that is no better than a coin on the held-out pairs."""

    def __post_init__(self) -> None:
        at_least(self, "members", 1)
        at_least(self, "reference_samples", 2)
        at_least(self, "probe_samples", 0)
        for name, allowed in (("aggregate", get_args(Aggregate)), ("trunk", get_args(Trunk))):
            if (value := vars(self)[name]) not in allowed:
                raise ValueError(f"expected {name} to be one of {allowed}, got {value!r}")
        if self.trunk == "shared" and self.members < 2:
            raise ValueError(f"expected members >= 2 to share a trunk, got {self.members}")
        if not self.uncertainty_weight >= 0:
            raise ValueError(f"expected uncertainty_weight >= 0, got {self.uncertainty_weight}")


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured at the end, on prompts nothing was trained on."""

    num_prompts: int = 400
    """Held-out prompts; all of the task's where it has fewer."""
    best_of: int = 4
    """n of the yardstick: the SFT policy's best of n responses by r_φ."""
    best_of_samples: int = 64
    """SFT responses to a prompt by which the best of n is measured, for every n up to that, where there is gold; 0 for
    none."""
    best_of_prompts: int = 64
    """The first so many of the held-out prompts are asked for that; all where there are fewer."""
    shown: int = 6
    """Prompts whose responses are shown token by token in the report."""

    def __post_init__(self) -> None:
        at_least(self, "num_prompts", 2)
        at_least(self, "best_of", 2)
        at_least(self, "best_of_samples", 0)
        at_least(self, "best_of_prompts", 1)
        at_least(self, "shown", 0)


@dataclass(frozen=True)
class RunConfig:
    """A whole run: pretrain → SFT → collect → reward model → PPO → evaluate → report."""

    run_dir: Path = Path("runs/run")
    """The run's folder: config, data, models, metrics, samples, report. Run again, it goes on where it stopped."""
    task: Annotated[TaskConfig, arg(name="")] = field(default_factory=TaskConfig)
    """What it is about."""
    rounds: int = 1
    """Times collect → reward model → PPO is gone through, the preferences adding up. May grow later."""
    reference: Reference = "sft"
    """What π_ref is: the SFT policy, the pretrained model, or the policy the round began with."""
    seeds: int = 3
    """PPO runs, which differ in their random seed alone; figures are their medians."""
    unleashed: bool = True
    """Run PPO a second time without KL penalty, to see what it prevents. Where there is a gold reward to see it by."""
    pretrain: bool = False
    """Pretrain even where the task brings pretrained weights."""
    seed: int = 0
    """First seed of everything."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1" …; auto: a GPU where there is one."""
    threads: int = 0
    """CPU threads of torch; 0: OMP_NUM_THREADS, else one a core, or one alone for a small model, which is faster so."""
    pretraining: SFTConfig = field(default_factory=lambda: SFTConfig(epochs=4, learning_rate=3e-3, batch_size=64))
    """Pretraining of a small model, where the task has one to make."""
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(epochs=2, learning_rate=1e-3, batch_size=64))
    """Supervised fine-tuning on demonstrations."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """Collecting preferences."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """The reward model."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """PPO."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """What watches the agent, and its alarms."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation."""

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("seeds", 1), ("threads", 0)):
            at_least(self, name, least)
        if self.reference not in get_args(Reference):
            raise ValueError(f"expected reference to be one of {get_args(Reference)}, got {self.reference!r}")
        fixed = self.task.preferences is not None or self.task.reward_model is not None
        if self.ppo.agent == "best_of_n" and self.reference != "sft":
            raise ValueError(f"expected reference=sft with agent=best_of_n, got {self.reference}: it draws from SFT")
        self._check_stop_on()
        if self.task.reward_model is not None:
            self._check_own_reward()
        if self.rounds > 1 and fixed:
            raise ValueError(
                f"expected rounds=1 with preferences or a reward model of your own, got {self.rounds}: "
                "a further round collects fresh preferences"
            )

    def _check_own_reward(self) -> None:
        """With a reward model that is there already, nothing asks for others to be trained."""
        for name, value, none in (
            ("members", self.reward.members, 1),
            ("trunk", self.reward.trunk, "separate"),
            ("training.bootstrap", self.reward.training.bootstrap, False),
        ):
            if value != none:
                raise ValueError(
                    f"expected reward.{name.removeprefix('training.')}={none} with a reward model of your own, got "
                    f"{value}: none is trained; the folder of an ensemble is taken as it is"
                )

    def _check_stop_on(self) -> None:
        """The alarms that are to end the training can sound: the agent leaves what they listen to."""
        agent = self.ppo.agent
        for alarm in self.monitor.stop_on:
            if agent == "best_of_n" or (agent == "dpo" and alarm != "held_out"):
                which = "no alarm" if agent == "best_of_n" else "held_out alone"
                raise ValueError(f"expected {which} to stop on with agent={agent} (no rollouts), got {alarm}")
            if alarm == "critic" and agent not in ("ppo", "a2c"):
                raise ValueError(f"expected an agent with a critic to stop on it, got agent={agent}")
            if alarm == "disagreement" and self.task.reward_model is None and self.reward.members < 2:
                raise ValueError(
                    f"expected reward.members >= 2 to stop on their disagreement, got {self.reward.members}"
                )


def default_config(task: TaskConfig | None = None) -> RunConfig:
    """The run that suits what one brings along: small models are learned fast, a model of one's own with care."""
    task = TaskConfig() if task is None else task
    config = RunConfig(task=task)
    if task.model is not None:
        return replace(
            config,
            sft=SFTConfig(epochs=2, learning_rate=2e-5, batch_size=32),
            reward=replace(
                config.reward, training=RewardModelingConfig(epochs=1, learning_rate=1e-5), reference_samples=256
            ),
            collect=replace(config.collect, samples_per_prompt=4, temperatures=(1.0,)),
            ppo=replace(
                config.ppo, total_tokens=300_000, learning_rate=1e-5, n_episodes=64, batch_size=16, kl_coef=0.05
            ),
            evaluate=replace(config.evaluate, num_prompts=200),
            seeds=1,
        )
    if task.corpus is not None:
        return replace(
            config,
            pretraining=SFTConfig(epochs=4, learning_rate=2e-3, batch_size=32),
            collect=replace(
                config.collect,
                num_prompts=10_000,
                samples_per_prompt=6,
                temperatures=(1.0,),
                annotator_temperature=0.1,
            ),
            reward=replace(
                config.reward,
                training=RewardModelingConfig(epochs=2, learning_rate=1e-3, batch_size=64, weight_decay=0.01),
            ),
            ppo=replace(config.ppo, total_tokens=100_000, learning_rate=5e-4),
            seeds=1,
            unleashed=False,
        )
    return config
