"""`rlhf-gym`: reads the command line, by tyro, and runs the command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any, Union

import tyro
from tyro.conf import AvoidSubcommands, CascadeSubcommandArgs, subcommand

from rlhf_gym import __version__
from rlhf_gym.cli.commands import DESCRIPTIONS, fail, stage_command
from rlhf_gym.cli.options import (
    AdversarialOptions,
    Agreement,
    Check,
    CheckRun,
    CopyLessons,
    DiagnoseOptions,
    Export,
    GradeLessons,
    Import,
    LabelOptions,
    ListLessons,
    ReportOptions,
)
from rlhf_gym.files import StoppedError, reason

Preferences = Annotated[
    Union[  # noqa: UP007
        Annotated[Check, subcommand("check", prefix_name=False)],
        Annotated[Import, subcommand("import", prefix_name=False)],
        Annotated[Export, subcommand("export", prefix_name=False)],
        Annotated[Agreement, subcommand("agreement", prefix_name=False)],
    ],
    subcommand(
        "preferences", prefix_name=False, description="Files of preferences, and the labels of a run: check, import, …"
    ),
]
Lessons = Annotated[
    Union[  # noqa: UP007
        Annotated[ListLessons, subcommand("list", prefix_name=False)],
        Annotated[CopyLessons, subcommand("copy", prefix_name=False)],
        Annotated[GradeLessons, subcommand("check", prefix_name=False)],
    ],
    subcommand("lessons", prefix_name=False, description="The lessons: list, copy to a folder, check a class."),
]
OTHERS: dict[str, tuple[Any, str]] = {
    "check": (CheckRun, "Check that what a run's stages left is still what they left, by the SHA-256 of each file."),
    "report": (ReportOptions, "Write report.html of a run; of several runs a page that compares them."),
    "label": (LabelOptions, "Serve a page on which people compare, rank or rate responses, blind."),
    "diagnose": (DiagnoseOptions, "Show what a reward model of yours has learned: length, style, words, edits."),
    "adversarial": (AdversarialOptions, "Find responses that the reward model overrates, label them, train on them."),
}
DESCRIPTION = """RLHF as ordinary RL: pretrain, SFT, collect preferences, reward model, train, evaluate, report.

Begin with: rlhf-gym run --run-dir runs/demo (the embedded task, complete and offline).

Your own labelled texts: rlhf-gym run --run-dir runs/films --corpus films.jsonl

Your own model: rlhf-gym run --run-dir runs/mine --model FOLDER --prompts FILE --preferences FILE

Another agent: rlhf-gym run --run-dir runs/rloo agent:rloo

Again from a stage on: rlhf-gym run --run-dir runs/demo --redo train --agent.kl-coef 0.05"""


@dataclass(frozen=True)
class _Another:
    """Stands in for a command that is not called, whose settings need not be made."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0; 2 where something given is not as expected; 130 after Ctrl-C.

    Of several processes of torchrun the first to fail says why, and rank 0 alone says anything else.

    SIGTERM and SIGHUP end it as Ctrl-C does, with 143 and 129: what is complete is kept.

    Here, and nowhere else, errors become one message. `python -X dev -m rlhf_gym.cli` shows where they come from.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"rlhf-gym {__version__}")
        return 0
    with _interrupted_by_signals() as caught:
        try:
            with _silent() if _processes() > 1 and os.environ.get("RANK") != "0" else nullcontext():
                options = parse(given or ["--help"])
            code = run_command(options)
        except (ValueError, OSError, ImportError, ArithmeticError, StoppedError) as error:
            if sys.flags.dev_mode:
                raise
            code = fail(reason(error)) if _speaks(error) else 2
        except KeyboardInterrupt:
            code = 130
    return 128 + caught[0] if caught and code == 130 else code


def _processes() -> int:
    """How many torchrun has started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def _speaks(error: Exception) -> bool:
    """Whether this process is the one to tell of an error; the others end."""
    if _processes() == 1:
        return True
    from rlhf_gym.ranks import ranks  # it brings torch

    group = ranks()
    group.fail(error)
    return group.speaks()


@contextmanager
def _silent() -> Iterator[None]:
    """Write nothing."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def _interrupted_by_signals() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP interrupt as Ctrl-C does; yields a list of those that came.

    A signal that is ignored stays so, as SIGHUP under nohup.
    """
    caught: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        caught.append(number)
        raise KeyboardInterrupt

    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows lacks one
    ours = [number for number in signals if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield caught
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def run_command(options: Any) -> int:
    """Run the command that these options are of. Returns the exit code.

    A command's module is imported only here: it brings torch, which `--help` does without.
    """
    match options:
        case LabelOptions():
            from rlhf_gym.cli.label_command import label

            return label(options)
        case CheckRun():
            from rlhf_gym.cli.report_command import check_run

            return check_run(options)
        case ReportOptions():
            from rlhf_gym.cli.report_command import report

            return report(options)
        case DiagnoseOptions():
            from rlhf_gym.cli.diagnose_command import diagnose

            return diagnose(options)
        case AdversarialOptions():
            from rlhf_gym.cli.adversarial_command import adversarial_command

            return adversarial_command(options)
        case Check() | Import() | Export() | Agreement():
            from rlhf_gym.cli.preferences_command import preferences_command

            return preferences_command(options)
        case ListLessons() | CopyLessons() | GradeLessons():
            from rlhf_gym.cli.lessons_command import lessons_command

            return lessons_command(options)
        case _:
            return options.run()


def parse(arguments: Sequence[str]) -> Any:
    """The command as a record: its settings are those given, over those of the run folder, over what suits the task.

    Raises:
        SystemExit: --help, or what tyro cannot make sense of.
        ValueError: settings that do not go together, or several processes of torchrun for a command that runs in one.
    """
    words = list(arguments)
    if _processes() > 1 and not {*DESCRIPTIONS, "-h", "--help"} & {*words[:1]}:
        raise ValueError(
            f"expected one of {', '.join(DESCRIPTIONS)} in WORLD_SIZE={_processes()} processes, got {words[0]}, which "
            "runs in one"
        )
    commands: list[Any] = []
    for name, text in DESCRIPTIONS.items():
        # only the command that is called for has its settings made ready: that takes a while
        kind = (
            stage_command(name, words) if name in words[:1] else Annotated[_Another, subcommand(name, description=text)]
        )
        commands.append(kind)
    for name, (options, text) in OTHERS.items():
        commands.append(Annotated[options, subcommand(name, description=text, prefix_name=False)])
    names_agent = any(word.startswith("agent:") for word in words)
    union: Any = Union[(*commands, Preferences, Lessons)]
    return tyro.cli(
        union,
        args=words,
        prog="rlhf-gym",
        description=DESCRIPTION,
        config=(CascadeSubcommandArgs, *(() if names_agent else (AvoidSubcommands,))),
    )
