"""`rlhf-gym run` and its stages as commands of their own. `rlhf-gym` alone says what there is."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlhf_gym import __version__

COMMANDS = {
    "run": "the whole circle, skipping the stages that are complete: begin here",
    "pretrain": "a small language model, where the task has one to make",
    "sft": "supervised fine-tuning on demonstrations",
    "collect": "responses of the policy, and preferences between them",
    "reward": "the reward model r_φ, from the preferences",
    "ppo": "PPO against r_φ, held by the KL to π_ref; --agent takes another learner",
    "unleashed": "the same without KL penalty, to see what it prevents",
    "evaluate": "who wins on held-out prompts",
    "report": "report.html, with pictures; of several runs (report RUN RUN …) a page that compares them",
    "diagnose": "what a reward model of yours has learned: length, style, words; what edits do to it",
    "adversarial": "responses that the reward model overrates: found, labelled, trained on (collect --against RUN)",
    "label": "a page on which people compare, rank or rate responses, blind",
    "preferences": "check, import and export files of preferences and a run's labels; agreement",
}
SHORT = {"--labeler": "--collect.labeler", "--num-labels": "--collect.num-labels"}
"""Settings of a stage that a run may be asked for without its name."""
CIRCLE = "pretrain → SFT → collect preferences → reward model → PPO → evaluate → report"
EXAMPLES = (
    ("the embedded task, complete and offline", "rlhf-gym run --run-dir runs/demo"),
    ("labelled texts, JSONL of text and label", "rlhf-gym run --run-dir runs/films --corpus films.jsonl"),
    ("your own", "rlhf-gym run --run-dir runs/mine --model FOLDER --prompts FILE --preferences FILE"),
    ("on where it stopped, a round further", "rlhf-gym run --run-dir runs/demo --rounds 2"),
    ("another agent in PPO's place", "rlhf-gym run --run-dir runs/rloo --agent rloo"),
    ("again from PPO on", "rlhf-gym run --run-dir runs/demo --redo ppo --ppo.kl-coef 0.05"),
    ("two runs side by side", "rlhf-gym report runs/demo runs/rloo"),
    ("preferences from people", "rlhf-gym run --run-dir runs/mine --labeler web --num-labels 200"),
    ("who wins, say people", "rlhf-gym label runs/demo --compare ppo sft"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0; 2 where something given is not as expected; 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        overview(Console())
        return 0
    if given[0] == "--version":
        print(f"rlhf-gym {__version__}")
        return 0
    command, *rest = given
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return fail(f"expected one of {', '.join(COMMANDS)}, got {command!r}{hint}")
    if command == "label":
        from rlhf_gym.cli.label_command import label

        return label(rest)
    if command == "collect" and any(word.partition("=")[0] == "--against" for word in rest):
        command, rest = "adversarial", [word.removeprefix("--against=") for word in rest if word != "--against"]
    if command == "adversarial":
        from rlhf_gym.cli.adversarial_command import adversarial_command

        return adversarial_command(rest)
    if command == "diagnose":
        from rlhf_gym.cli.diagnose_command import diagnose

        return diagnose(rest)
    if command == "preferences":
        from rlhf_gym.cli.preferences_command import preferences

        return preferences(rest)
    if command == "report" and not any(word.replace("_", "-").startswith("--run-dir") for word in rest):
        from rlhf_gym.cli.report_command import report

        return report(rest)
    from rlhf_gym.cli.commands import go  # torch and all that, which an overview does without

    if command == "evaluate" and "--human" in rest:
        from rlhf_gym.cli.label_command import evaluate_by_people

        return evaluate_by_people([word for word in rest if word != "--human"])
    return go(command, [spell_out(word) for word in rest])


def spell_out(word: str) -> str:
    """An argument by its full name."""
    name, equals, value = word.partition("=")
    return SHORT.get(name.replace("_", "-"), name) + equals + value


def overview(console: Console) -> None:
    """What there is."""
    console.print(f"[bold]rlhf-gym[/bold]: {CIRCLE}")
    console.print()
    console.print(_two_columns([(f"rlhf-gym {name}", text) for name, text in COMMANDS.items()]))
    everywhere = "--run-dir FOLDER[/bold], where everything goes, and lists its settings with [bold]--help[/bold]"
    console.print(f"\nEvery command takes [bold]{everywhere}.\n", highlight=False)
    for text, line in EXAMPLES:
        console.print(f"  [dim]# {escape(text)}[/dim]\n  {escape(line)}", highlight=False, soft_wrap=True)


def fail(message: str) -> int:
    """One message on standard error; the exit code of bad input."""
    Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(message)}", highlight=False, soft_wrap=True)
    return 2


def _two_columns(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="dim")
    for name, text in rows:
        table.add_row("  " + name, escape(text))
    return table
