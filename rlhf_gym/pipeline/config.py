"""The settings of a run: one frozen record a stage, and `RunConfig`, which holds them all.

The defaults are those of the embedded task; `default_config` gives those that suit what one brings along.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import arg

from rlhf_gym.preferences import PairingStrategy
from rlhf_gym.rewards import Aggregate
from rlhf_gym.training import RewardModelingConfig, SFTConfig

Reference = Literal["sft", "pretrained", "previous"]
KLControl = Literal["fixed", "adaptive", "constraint"]
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
            _at_least(self, name, 1)


@dataclass(frozen=True)
class CollectConfig:
    """Which responses are compared, and by whom."""

    num_prompts: int = 2000
    """Prompts that responses are drawn for; all of the task's where it has fewer."""
    samples_per_prompt: int = 16
    """Responses to each."""
    temperatures: tuple[float, ...] = (1.0, 1.3)
    """Sampling temperatures; the responses to a prompt take them in turn. Some heat shows r_φ what PPO may come to."""
    pairing: PairingStrategy = "random"
    """Which of a prompt's responses are compared: "random" pairs each once, "all" compares all, "tournament" some."""
    labeler: Labeler = "simulated"
    """Who compares: "simulated", annotators that know gold, or "web", people at a labelling page."""
    num_labels: int | None = None
    """Comparisons asked for in a round; None for all the pairs there are."""
    annotator_temperature: float = 0.25
    """The simulated annotator prefers y1 with σ((gold(y1) − gold(y2))/temperature); 0 never doubts."""
    mistake_rate: float = 0.05
    """Share of its answers that are turned round."""
    heldout_fraction: float = 0.1
    """Share of the prompts whose pairs only measure the reward model."""

    def __post_init__(self) -> None:
        _at_least(self, "num_prompts", 2)
        _at_least(self, "samples_per_prompt", 2)
        _at_least(self, "num_labels", 2)
        if self.labeler not in get_args(Labeler):
            raise ValueError(f"expected labeler to be one of {get_args(Labeler)}, got {self.labeler!r}")
        if not self.temperatures or not all(t > 0 for t in self.temperatures):
            raise ValueError(f"expected temperatures > 0, at least one, got {self.temperatures}")
        if self.pairing not in get_args(PairingStrategy):
            raise ValueError(f"expected pairing to be one of {get_args(PairingStrategy)}, got {self.pairing!r}")
        if not self.annotator_temperature >= 0:
            raise ValueError(f"expected annotator_temperature >= 0, got {self.annotator_temperature}")
        if not 0 <= self.mistake_rate <= 1:
            raise ValueError(f"expected mistake_rate in [0, 1], got {self.mistake_rate}")
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(f"expected heldout_fraction in (0, 1), got {self.heldout_fraction}")


@dataclass(frozen=True)
class RewardConfig:
    """The reward model r_φ: one, or several as an ensemble, on the SFT policy's trunk."""

    training: Annotated[RewardModelingConfig, arg(name="")] = field(
        default_factory=lambda: RewardModelingConfig(epochs=2, learning_rate=1e-3, batch_size=64)
    )
    """How each is trained."""
    members: int = 1
    """Reward models that are trained; more than one make an ensemble."""
    aggregate: Aggregate = "mean"
    """How members become one score: "mean", "min", or "uwo" (mean − λ·variance)."""
    uncertainty_weight: float = 0.1
    """λ of "uwo"."""
    reference_samples: int = 1000
    """SFT responses over which scores are normalised to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        _at_least(self, "members", 1)
        _at_least(self, "reference_samples", 2)
        if self.aggregate not in get_args(Aggregate):
            raise ValueError(f"expected aggregate to be one of {get_args(Aggregate)}, got {self.aggregate!r}")


@dataclass(frozen=True)
class PPOConfig:
    """PPO on the token environment."""

    total_tokens: int = 48_000
    """Response tokens generated in training, for each seed and round."""
    kl_coef: float = 0.1
    """β of the KL penalty (with a controller, the first one)."""
    kl_control: KLControl = "fixed"
    """Who sets β: "fixed", "adaptive" towards kl_target (Ziegler et al.), or "constraint" KL ≤ kl_target."""
    kl_target: float = 6.0
    """KL per response, in nats, that a controller steers to."""
    learning_rate: float = 1e-3
    """Adam's, at the start."""
    schedule: Literal["constant", "linear"] = "linear"
    """Whether the learning rate stays or falls to 0."""
    n_episodes: int = 128
    """Responses a rollout."""
    batch_size: int = 32
    """Responses a minibatch; each minibatch is one optimizer step."""
    micro_batch_size: int | None = None
    """Responses in one forward; fewer take less memory and give the same update."""
    n_epochs: int = 4
    """Passes over a rollout."""
    num_envs: int = 64
    """Responses written at once."""
    samples_per_prompt: int = 1
    """Responses in a row to the same prompt."""
    gae_lambda: float = 0.95
    """λ of the advantages (γ is 1)."""
    clip_range: float = 0.2
    """ε of the policy's ratio."""
    clip_range_vf: float | None = 0.2
    """ε of the value; None not to clip."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    ent_coef: float = 0.0
    """Weight of an entropy bonus; the KL penalty has one already."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    target_kl: float | None = None
    """A rollout's epochs stop once KL(π_old‖π) exceeds 1.5 times this."""
    critic: Literal["shared", "separate"] = "shared"
    """Where the value head sits: on the policy's trunk, or on a copy of it."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the score of a response that never ends."""
    gold_every: int = 1
    """Iterations between two looks at gold; nothing learns from it."""
    checkpoint_every: int = 10
    """Iterations between the checkpoints an interrupted run goes on from."""

    def __post_init__(self) -> None:
        counts = ("total_tokens", "n_episodes", "batch_size", "n_epochs", "num_envs", "samples_per_prompt")
        for name in (*counts, "micro_batch_size", "gold_every", "checkpoint_every"):
            _at_least(self, name, 1)
        if not self.kl_coef >= 0 or not self.learning_rate > 0:
            raise ValueError(f"expected kl_coef >= 0 and learning_rate > 0, got {self.kl_coef}, {self.learning_rate}")
        if self.kl_control not in get_args(KLControl):
            raise ValueError(f"expected kl_control to be one of {get_args(KLControl)}, got {self.kl_control!r}")
        if self.kl_control != "fixed" and not (self.kl_coef > 0 and self.kl_target > 0):
            raise ValueError(
                f"expected kl_coef and kl_target > 0 with kl_control={self.kl_control!r}, "
                f"got {self.kl_coef} and {self.kl_target}"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured at the end, on prompts nothing was trained on."""

    num_prompts: int = 400
    """Held-out prompts; all of the task's where it has fewer."""
    best_of: int = 4
    """n of the yardstick: the SFT policy's best of n responses by r_φ."""
    shown: int = 6
    """Prompts whose responses are shown token by token in the report."""

    def __post_init__(self) -> None:
        _at_least(self, "num_prompts", 2)
        _at_least(self, "best_of", 2)
        _at_least(self, "shown", 0)


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
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation."""

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("seeds", 1), ("threads", 0)):
            _at_least(self, name, least)
        if self.reference not in get_args(Reference):
            raise ValueError(f"expected reference to be one of {get_args(Reference)}, got {self.reference!r}")
        fixed = self.task.preferences is not None or self.task.reward_model is not None
        if self.rounds > 1 and fixed:
            raise ValueError(
                f"expected rounds=1 with preferences or a reward model of your own, got {self.rounds}: "
                "a further round collects fresh preferences"
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


def _at_least(config: object, name: str, least: int) -> None:
    value = vars(config)[name]
    if value is not None and value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")
