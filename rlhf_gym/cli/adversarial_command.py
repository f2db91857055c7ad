"""`rlhf-gym adversarial RUN`: look for responses that the run's reward model overrates, have them labelled, retrain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlhf_gym.cli.options import AdversarialOptions
from rlhf_gym.lm import quiet_transformers
from rlhf_gym.pipeline import prepare
from rlhf_gym.pipeline.adversarial import add_adversarial_pairs, check_round
from rlhf_gym.pipeline.context import use_threads
from rlhf_gym.pipeline.reward import adversarial_folder
from rlhf_gym.settings import read_config


def adversarial_command(options: AdversarialOptions) -> int:
    """Search, label, train, and print what came of it. Returns the exit code.

    Raises:
        ValueError, OSError: the folder is no run's, or the round has no reward model of its own.
        BusyFolderError: another process is at work in the folder.
    """
    console = Console()
    saved = read_config(options.folder)
    if saved is None:
        raise ValueError(f"expected the folder of a run, got {options.folder} without one")
    run = prepare(replace(saved, run_dir=options.folder), console=console)
    if options.labeler is not None:
        collect = replace(run.config.collect, labeler=options.labeler)
        run = replace(run, config=replace(run.config, collect=collect))
    check_round(run, options.search.round)
    use_threads(run)
    with run.folder.occupied(), quiet_transformers():
        metrics = add_adversarial_pairs(run, options.search)
    print_adversarial(console, metrics)
    where = adversarial_folder(run, options.search.round)
    console.print(
        f"\n  {escape(str(where))} holds the pairs, and in model/ the reward model trained with them. Later rounds "
        f"train on them\n  too; this one again: rlhf-gym run --run-dir {escape(str(options.folder))} --redo reward",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def print_adversarial(console: Console, metrics: dict[str, Any]) -> None:
    """Print the metrics before and after, on pairs and prompts that nothing was trained on."""
    kinds = ", ".join(f"{count} by {kind}" for kind, count in sorted(metrics["kinds"].items()))
    console.print(f"[bold]{metrics['pairs']} pairs[/bold] that r_φ overrates, labelled: {kinds}", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for heading in ("accuracy of r_φ on held-out pairs", "before", "after", "pairs"):
        table.add_column(heading, justify="left" if heading.startswith("acc") else "right")
    before = metrics["before"]
    after = metrics["after"]
    for name in ("normal", "adversarial"):
        table.add_row(name, f"{before[name]:.1%}", f"{after[name]:.1%}", str(after["pairs"][name]))
    for kind, (value, n) in sorted(after["by_kind"].items()):
        table.add_row(f"  {kind}", f"{before['by_kind'][kind][0]:.1%}", f"{value:.1%}", str(n))
    table.add_row("[dim]share of tries that raise the score[/dim]")
    for kind, value in sorted(after["raised"].items()):
        table.add_row(f"  {kind}", f"{before['raised'][kind]:.1%}", f"{value:.1%}", "")
    console.print(table)
