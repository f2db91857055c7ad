"""`RunConfig`, which holds the settings of a whole run, and what the run is about.

The defaults are those of the embedded task; `default_config` gives those that suit what one brings along.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tyro.conf import arg

from rlhf_gym.ranges import Count, Seed, Whole, check_ranges
from rlhf_gym.settings.agents import AgentSettings, PPOSettings
from rlhf_gym.settings.defaults import Beginning, Row, model_width, row
from rlhf_gym.settings.monitor import LogFormats, MonitorConfig
from rlhf_gym.settings.stages import CollectConfig, EvaluateConfig, RewardConfig
from rlhf_gym.settings.supervised import RewardModelingConfig, SFTConfig, from_row

Reference = Literal["sft", "pretrained", "previous"]
StageName = Literal["pretrain", "sft", "collect", "reward", "train", "without_kl", "evaluate", "report"]
Embedded = Literal["reviews", "customer"]
STAGES: tuple[StageName, ...] = get_args(StageName)


@dataclass(frozen=True)
class TaskConfig:
    """What the run is about. Without any of these: the embedded reviews task."""

    embedded: Embedded = "reviews"
    """The embedded task, where no model, prompts or corpus of your own are given: reviews, or dialogues of several
    turns with a customer (docs/turns.md)."""
    corpus: Path | None = None
    """Labelled texts, JSONL of {"text", "label"}: gold is what a classifier of them says. A small model is made of
    them, or --model goes on from their first words, with preferences made of half the labels."""
    model: str | None = None
    """Your own language model to begin from: a folder or a hub name. Needs --prompts or --corpus."""
    chat_template: str = "auto"
    """What renders conversations: "auto" is the template of the model's tokenizer, "none" makes transcripts of them,
    and anything else is a file with a Jinja template."""
    prompts: Path | None = None
    """Your own prompts: JSONL with the field "prompt", a text or messages, or a text file with one a line."""
    demonstrations: Path | None = None
    """Your own demonstrations, JSONL of {"prompt", "response"}; without them SFT is left out."""
    preferences: Path | None = None
    """Your own preferences, JSONL of {"prompt", "chosen", "rejected"}, instead of collecting them."""
    step_labels: Path | None = None
    """Your own responses in steps, JSONL of {"prompt", "completions", "labels"}: r_φ learns which steps are good, and
    rewards each. Nothing is collected."""
    reward_model: str | None = None
    """A reward model that is there already, a folder or a hub name: nothing is collected, none is trained."""
    skip_bad: bool = False
    """Leave out rows of the run's files that cannot be used, and say how many; otherwise they stop the run. That goes
    for all files of texts that the run is given."""
    drop_longer_than: Count | None = None
    """Leave out what has more tokens than this, and say how many: preferences and demonstrations with their end, and
    prompts with max_new_tokens. Prompts longer than max_prompt_length are then left out, too."""
    attribute: str | None = None
    """What rates a response in preferences of one response a row (HelpSteer); "helpfulness" by default."""
    max_prompt_length: Count | None = None
    """Longest prompt in tokens; by default the task's own, or that of your longest prompt."""
    max_new_tokens: Count | None = None
    """Longest response in tokens, its end included; by default the task's own. With a respondent: of all turns."""
    respondent: str | None = None
    """Your own other side, "module:function" of (messages, rng) -> text, None where the conversation is over, or a
    `rlhf_gym.envs.Reply`, which may have a reward of the turn: each episode is then a dialogue. Needs --model."""
    max_turns: Count = 4
    """The policy's turns in a dialogue, at most."""
    max_turn_tokens: Count | None = None
    """Tokens of one turn, at most; by default only those of the whole dialogue are limited."""
    max_reply_tokens: Count = 48
    """Room for one reply in tokens, with what the chat template writes around it."""

    def __post_init__(self) -> None:
        if self.embedded != "reviews" and (self.model is not None or self.corpus is not None):
            raise ValueError(f"expected either the embedded task {self.embedded!r} or a task of your own, got both")
        if self.respondent is not None and (self.model is None or self.prompts is None):
            raise ValueError(
                f"expected a model and prompts of your own with the respondent {self.respondent!r}, got none"
            )
        if self.corpus is not None and self.prompts is not None:
            raise ValueError(f"expected either a corpus, which brings prompts, or prompts, got {self.prompts} as well")
        if self.corpus is not None and self.demonstrations is not None:
            raise ValueError(f"expected no demonstrations beside a corpus, got {self.demonstrations}")
        if self.model is not None and self.prompts is None and self.corpus is None:
            raise ValueError(
                f"expected prompts to go with the model {self.model!r}, got none: add --prompts FILE, or --corpus FILE"
            )
        if self.model is None and self.chat_template != "auto":
            raise ValueError(f"expected a model with the chat template {self.chat_template}, got none: add --model")
        if self.model is None and self.prompts is not None:
            raise ValueError(f"expected a model to answer the prompts of {self.prompts}, got none: add --model")
        if self.model is None and self.demonstrations is not None:
            raise ValueError(f"expected a model to learn from {self.demonstrations}, got none: add --model")
        if self.step_labels is not None and (self.preferences is not None or self.reward_model is not None):
            raise ValueError(
                f"expected either step labels or preferences or a reward model, got {self.step_labels} and "
                f"{self.preferences or self.reward_model}"
            )
        check_ranges(self)

    @property
    def compares(self) -> bool:
        """Whether r_φ is learned from preferences, which are collected where none are given."""
        return self.reward_model is None and self.step_labels is None

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's files that the task is made of."""
        template = None if self.chat_template in ("auto", "none") else Path(self.chat_template)
        given = (self.corpus, self.prompts, self.demonstrations, self.preferences, self.step_labels, template)
        return tuple(path for path in given if path is not None)


@dataclass(frozen=True)
class RunConfig:
    """A whole run: pretrain → SFT → collect → reward model → train the agent → evaluate → report."""

    run_dir: Path = Path("runs/run")
    """The run's folder: config, data, models, metrics, samples, report. Run again, it goes on where it stopped."""
    task: Annotated[TaskConfig, arg(name="")] = field(default_factory=TaskConfig)
    """The task."""
    rounds: Count = 1
    """Times collect → reward model → agent is gone through, the preferences adding up. May grow later."""
    reference: Reference = "sft"
    """What π_ref is: the SFT policy, the pretrained model, or the policy the round began with."""
    seeds: Count = 3
    """Agents that are trained, which differ in their random seed alone; figures are their medians."""
    without_kl: bool = True
    """Train the agent a second time without KL penalty, to see what it prevents, where there is a gold reward."""
    pretrain: bool = False
    """Pretrain even where the task brings pretrained weights."""
    seed: Seed = 0
    """The first random seed; all others are counted from it."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1" …; auto: a GPU where there is one."""
    threads: Whole = 0
    """CPU threads of torch; 0: OMP_NUM_THREADS, else one a core, or one alone for a small model, which is faster so."""
    logger: LogFormats = ()
    """Where the agents' figures go, too, in each seed's folder: "tensorboard", "csv" (progress.csv) and
    "wandb", with commas between them. The first and the last need the extra of their name."""
    pretraining: SFTConfig = field(default_factory=lambda: from_row(SFTConfig, row("pretraining", "scratch")))
    """Pretraining of a small model, where the task has one to make."""
    sft: SFTConfig = field(default_factory=lambda: from_row(SFTConfig, row("sft", "scratch")))
    """Supervised fine-tuning on demonstrations."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """How preferences are collected."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """The reward model."""
    agent: AgentSettings = field(default_factory=PPOSettings)
    """The agent that learns against the reward model."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """What the monitor measures, and its alarms."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """How the policies are evaluated."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if isinstance(self.logger, str) or len(set(self.logger)) < len(self.logger):  # two would write one file
            raise ValueError(f"expected logger as a tuple of different names, got {self.logger!r}")
        self.agent.check_reference(self.reference)
        if self.task.reward_model is not None:
            self._check_own_reward()
        elif "disagreement" in self.monitor.stop_on and self.reward.members < 2:
            raise ValueError(f"expected reward.members >= 2 to stop on their disagreement, got {self.reward.members}")
        if self.task.step_labels is not None and (self.reward.trunk == "shared" or self.reward.training.bootstrap):
            raise ValueError("expected members with trunks of their own and no bootstrap with step labels, got another")
        if self.rounds > 1 and (self.task.preferences is not None or not self.task.compares):
            raise ValueError(
                f"expected rounds=1 with preferences, step labels or a reward model of your own, got {self.rounds}: "
                "a further round collects fresh preferences"
            )

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the user's that the run reads."""
        held_out = () if self.monitor.held_out is None else (self.monitor.held_out,)
        return (*self.task.files, *self.agent.files, *held_out)

    def _check_own_reward(self) -> None:
        """With a reward model that is there already, nothing asks for others to be trained."""
        for name, value, none in (
            ("members", self.reward.members, 1),
            ("trunk", self.reward.trunk, "separate"),
            ("bootstrap", self.reward.training.bootstrap, False),
        ):
            if value != none:
                raise ValueError(
                    f"expected reward.{name}={none} with a reward model of your own, got {value}: none is trained; "
                    "the folder of an ensemble is taken as it is"
                )


def default_config(task: TaskConfig | None = None, agent: AgentSettings | None = None) -> RunConfig:
    """The run that suits what one brings along: small models are learned fast, a model of one's own with care.

    How each stage learns is in the table of `rlhf_gym.settings.defaults` (docs/settings.md), by what it begins with.

    Args:
        task: what the run is about; the embedded task by default.
        agent: who learns; PPO by default. How much and how fast it learns is what suits the task, and whether it has
            an adapter.
    """
    task = TaskConfig() if task is None else task
    agent = PPOSettings() if agent is None else agent
    if task.model is not None:
        own = RunConfig(task=task)
        width = model_width(task.model)
        return replace(
            own,
            sft=from_row(SFTConfig, row("sft", "pretrained"), width),
            reward=replace(
                own.reward,
                training=from_row(RewardModelingConfig, row("reward", "pretrained"), width),
                reference_samples=256,
            ),
            collect=replace(own.collect, samples_per_prompt=4, temperatures=(1.0,), heldout_fraction=0.2),
            agent=_suited(agent, agent_row(agent, pretrained=True), width),
            evaluate=replace(own.evaluate, num_prompts=200),
            seeds=1,
        )
    config = RunConfig(task=task, agent=agent)
    if task.corpus is None:
        return config
    return replace(
        config,
        pretraining=SFTConfig(epochs=4, learning_rate=2e-3, batch_size=32),
        collect=replace(
            config.collect, num_prompts=10_000, samples_per_prompt=6, temperatures=(1.0,), annotator_temperature=0.1
        ),
        reward=replace(config.reward, training=replace(config.reward.training, weight_decay=0.01)),
        agent=_with(agent, total_tokens=100_000, learning_rate=agent_row(agent, pretrained=False).learning_rate / 2),
        seeds=1,
        without_kl=False,
    )


def agent_row(agent: AgentSettings, *, pretrained: bool) -> Row:
    """The row of the table that an agent's defaults are in, by what its policy begins with."""
    learner = agent.learner()
    begins: Beginning = "scratch" if not pretrained else "lora" if learner and learner.lora_r else "pretrained"
    return row(agent.name, begins)


def with_adapter(config: RunConfig, rank: int) -> RunConfig:
    """The same run, its agent with a LoRA adapter of this rank (0: without): the learning rate moves to its new row.

    A learning rate that is not that of the row before was somebody's choice, and stays.
    """
    learner = config.agent.learner()
    if learner is None or learner.lora_r == rank:
        return config
    made: AgentSettings = replace(learner, lora_r=rank)
    if config.task.model is not None:
        width = model_width(config.task.model)
        if learner.learning_rate == agent_row(learner, pretrained=True).rate(width):
            made = _with(made, learning_rate=agent_row(made, pretrained=True).rate(width))
    return replace(config, agent=made)


def _suited(agent: AgentSettings, row: Row, width: int | None) -> AgentSettings:
    """The agent with what its row of the table says."""
    return _with(agent, learning_rate=row.rate(width), **row.settings)


def _with(agent: AgentSettings, **values: float) -> AgentSettings:
    """The agent with those of these values that it has a setting for."""
    own = {setting.name for setting in fields(agent)}
    changes: dict[str, Any] = {name: value for name, value in values.items() if name in own}
    return replace(agent, **changes)
