"""The commands that run stages: each is `RunConfig`, of which `--help` shows the settings that matter to it.

The settings of the run folder are the defaults of a later call on that folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Union, get_type_hints

from rich.console import Console
from rich.markup import escape
from tyro.conf import Suppress, arg, subcommand

from rlhf_gym.cli.options import LabelOptions
from rlhf_gym.labeling import PageSettings
from rlhf_gym.ranges import Count, check_ranges
from rlhf_gym.settings import (
    AGENTS,
    STAGES,
    CollectConfig,
    RunConfig,
    StageName,
    TaskConfig,
    default_config,
    read_config,
    with_adapter,
)

EVERYWHERE = ("run_dir", "device", "threads")
BEGINNING = ("task", "seed")
SHOWN: dict[str, tuple[str, ...]] = {
    "run": (
        *EVERYWHERE,
        *BEGINNING,
        "rounds",
        "reference",
        "seeds",
        "without_kl",
        "pretrain",
        "logger",
        "collect.labeler",
        "collect.num_labels",
    ),
    "pretrain": (*EVERYWHERE, *BEGINNING, "pretrain", "pretraining"),
    "sft": (*EVERYWHERE, *BEGINNING, "sft"),
    "collect": (*EVERYWHERE, "rounds", "collect"),
    "reward": (*EVERYWHERE, "rounds", "reward"),
    "train": (*EVERYWHERE, "rounds", "reference", "seeds", "agent", "monitor"),
    "without-kl": (*EVERYWHERE, "seeds", "without_kl", "agent", "monitor"),
    "evaluate": (*EVERYWHERE, "evaluate"),
}
"""The settings that a command's help shows, by their dotted names. A command takes all others too."""
DESCRIPTIONS = {
    "run": "The whole circle, without the stages that are complete. It takes the settings of every stage, too: "
    "--sft.…, --collect.…, --reward.…, agent:NAME and --agent.…, --monitor.…, --evaluate.…, as the help of each "
    "stage lists them.",
    "pretrain": "Pretrain a small language model, where the task has one to make.",
    "sft": "Fine-tune on demonstrations.",
    "collect": "Draw responses of the policy, and collect preferences between them.",
    "reward": "Train the reward model r_φ on the preferences.",
    "train": "Train the agent against r_φ. Another agent than PPO: agent:NAME, one of "
    f"{', '.join(agent.name for agent in AGENTS)}.",
    "without-kl": "Train the agent without KL penalty, to see what the penalty prevents.",
    "evaluate": "Measure on held-out prompts who wins. With --human people compare the agent with SFT afterwards.",
}


@dataclass(frozen=True)
class StageOptions:
    """The options of a command that runs stages."""

    command: Annotated[str, Suppress]
    """The command's name."""
    config: RunConfig
    """The run's settings."""
    redo: StageName | None = None
    """Begin again from this stage: what it and all later stages left is removed, and their settings may be others."""

    def run(self) -> int:
        """Run the command and return its exit code."""
        return run_stages(self)


@dataclass(frozen=True)
class EvaluateOptions(StageOptions):
    """The options of `evaluate`."""

    human: bool = False
    """Let people compare the agent with SFT, blind, once the stage is complete. What follows is for that."""
    num_items: Count | None = None
    """How many prompts are put before people at most."""
    num_labels: Count | None = None
    """The labelling ends after this many labels."""
    labels_per_item: Count = 1
    """How many annotators judge each prompt."""
    page: Annotated[PageSettings, arg(name="")] = field(default_factory=PageSettings)
    """Where and how the labelling page is served."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def run(self) -> int:
        """Run the command and return its exit code."""
        code = run_stages(self)
        from rlhf_gym.ranks import ranks  # torch, as below

        if code or not (self.human and ranks().leads):  # rank 0 asks people
            return code
        from rlhf_gym.cli.label_command import label

        options = LabelOptions(
            self.config.run_dir,
            compare=("train", "sft"),
            num_items=self.num_items,
            num_labels=self.num_labels,
            labels_per_item=self.labels_per_item,
            page=self.page,
        )
        return label(options)


def stage_command(name: str, arguments: Sequence[str]) -> Any:
    """The command of this name for tyro, its defaults those of the folder or of the task that the arguments name."""
    start = starting_point(arguments)
    asks_for_help = "-h" in arguments or "--help" in arguments
    config = _narrowed(RunConfig, SHOWN[name]) if asks_for_help else RunConfig
    if name == "evaluate" and not asks_for_help:
        # its own --num-labels is the page's
        config = _with_types(config, {"collect": Annotated[CollectConfig, Suppress]})
    names_agent = any(word.startswith("agent:") for word in arguments)
    if names_agent:
        config = _with_types(config, {"agent": _agents(start)})
    base = EvaluateOptions if name == "evaluate" else StageOptions
    made = _with_types(base, {"config": Annotated[config, arg(name="")]})
    default = made(name, _as(config, start))
    return Annotated[made, subcommand(name, default=default, description=DESCRIPTIONS[name], prefix_name=False)]


def starting_point(arguments: Sequence[str]) -> RunConfig:
    """The settings before the command line is read: the run folder's own, or the defaults for this kind of task.

    Raises:
        ValueError: the folder's settings cannot be read, or the task's do not go together.
    """
    glance = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    glance.add_argument("--run-dir", "--run_dir")
    for name in ("--corpus", "--model", "--prompts"):
        glance.add_argument(name)
    glance.add_argument("--agent.lora-r", "--agent.lora_r", dest="lora", default="")
    seen, _ = glance.parse_known_args(list(arguments))
    saved = None if seen.run_dir is None else read_config(Path(seen.run_dir))
    if saved is not None:
        start = replace(saved, run_dir=Path(seen.run_dir))
    else:
        corpus, prompts = (None if path is None else Path(path) for path in (seen.corpus, seen.prompts))
        model = seen.model if corpus is not None or prompts is not None else None  # alone it is refused later
        start = default_config(TaskConfig(corpus=corpus, model=model, prompts=None if model is None else prompts))
    return with_adapter(start, int(seen.lora)) if seen.lora.isdecimal() else start  # what is no rank, tyro refuses


def run_stages(options: StageOptions) -> int:
    """Run a stage, or all of them. Returns the exit code; `app.main` makes one message of what is raised."""
    from rlhf_gym.lm.memory import keep_freed_memory  # torch and all that, which --help does without
    from rlhf_gym.pipeline import Interrupted, execute, prepare
    from rlhf_gym.pipeline.stages import check_inputs

    keep_freed_memory()
    command = options.command
    config = RunConfig(**{setting.name: getattr(options.config, setting.name) for setting in fields(RunConfig)})
    only = None if command == "run" else next(name for name in STAGES if name == command.replace("-", "_"))
    run = prepare(config, redo=options.redo)
    if only is not None:
        check_inputs(run, only, options.redo)
    try:
        execute(run, only=only, redo=options.redo)
    except Interrupted as interrupt:
        run.console.print(
            f"\n[bold]Interrupted[/bold] in {interrupt}. What is complete is kept; this goes on from there:\n\n"
            f"  rlhf-gym {command} --run-dir {escape(str(run.folder.root))}\n",
            highlight=False,
            soft_wrap=True,
        )
        return 130
    return 0


def fail(message: str) -> int:
    """Print one message on standard error. Returns the exit code of bad input."""
    shown = escape(message.encode("utf-8", "backslashreplace").decode())  # a path may hold bytes that are no text
    Console(stderr=True).print(f"[bold red]error:[/bold red] {shown}", highlight=False, soft_wrap=True)
    return 2


def _agents(start: RunConfig) -> Any:
    """The union of all agents, each with the folder's own settings, or with those that suit the task."""
    learner = start.agent.learner()
    rank = 0 if learner is None else learner.lora_r
    suited = [
        start.agent if type(start.agent) is kind else with_adapter(default_config(start.task, kind()), rank).agent
        for kind in AGENTS
    ]
    return Union[tuple(Annotated[type(agent), subcommand(agent.name, default=agent)] for agent in suited)]  # noqa: UP007


def _narrowed(kind: type, shown: Sequence[str], prefix: str = "") -> type:
    """The same record for tyro, only the settings of these dotted names visible."""
    changes: dict[str, Any] = {}
    hints = get_type_hints(kind, include_extras=True)
    for setting in fields(kind):
        name = prefix + setting.name
        if name in shown:
            continue
        hint = hints[setting.name]
        if any(other.startswith(f"{name}.") for other in shown):
            changes[setting.name] = _narrowed(hint, shown, f"{name}.")
        else:
            changes[setting.name] = Annotated[hint, Suppress]
    return _with_types(kind, changes)


def _with_types(kind: type, types: dict[str, Any]) -> type:
    """The same record, some of its fields annotated otherwise."""
    body: dict[str, Any] = {"__annotations__": types, "__module__": kind.__module__, "__doc__": kind.__doc__}
    for setting in fields(kind):
        if setting.name in types and (setting.default is not MISSING or setting.default_factory is not MISSING):
            body[setting.name] = field(default=setting.default, default_factory=setting.default_factory)  # type: ignore[call-overload]
    return dataclass(frozen=True)(type(kind.__name__, (kind,), body))


def _as(kind: type, record: Any) -> Any:
    """The record as one of the narrowed kind."""
    hints = get_type_hints(kind)
    narrowed = {
        name: _as(hints[name], value)
        for name, value in vars(record).items()
        if isinstance(hints[name], type) and issubclass(hints[name], type(value)) and hints[name] is not type(value)
    }
    return kind(**vars(record) | narrowed)
