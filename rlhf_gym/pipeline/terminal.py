"""What a run says: where it is and what it does, a line a stage, a table at the end."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rlhf_gym.lm.chat import template_notes
from rlhf_gym.pipeline.context import Run, learning_rates, model_config
from rlhf_gym.runs.summaries import agent_label, is_bound, row_label
from rlhf_gym.settings.defaults import far

WIDTH = 11


def say_header(run: Run, threads: int) -> None:
    """What is run, on what, and where it goes."""
    config = run.config
    task = run.task
    where = f"{run.device}, {threads} thread{'s' * (threads != 1)}" if run.device == "cpu" else run.device
    judge = "a gold reward judges" if task.gold is not None else "no gold reward: r_φ itself judges"
    kind = (
        "the SFT policy"
        if config.reference == "sft"
        else ("the pretrained model" if config.reference == "pretrained" else "the policy that a round begins with")
    )
    out = run.console
    out.print(Text.assemble(("rlhf-gym", "bold"), f"  {task.name} → {run.folder.root}"))
    out.print(
        f"  {len(task.prompts):,} prompts, {len(task.heldout_prompts):,} held out; {judge}; π_ref is {kind}; {where}",
        style="dim",
        highlight=False,
    )
    read = [*task.prompts, *task.heldout_prompts, *(p.prompt for p in run.preferences or ())]
    if config.task.demonstrations is not None:
        read += [d.prompt for shown in (task.demonstrations, task.heldout_demonstrations) for d in shown]
    for note in template_notes(task.tokenizer, config.task.chat_template, read):
        out.print(f"  {note}", style="dim", highlight=False, markup=False, soft_wrap=True)
    say_learning_rates(run)
    for note in (*run.notes, *run.memory_notes):
        out.print(Text(f"  {note}", style="dim"), soft_wrap=True)
    out.print()


def say_learning_rates(run: Run) -> None:
    """The learning rates of a run that begins with a pretrained model, and of any run those that are far too high or
    low."""
    width = getattr(model_config(run).get_text_config(), "hidden_size", None)  # not every configuration has the field
    rates = learning_rates(run)
    if run.task.model_config is None and rates:
        said = ", ".join(f"{name.removesuffix('.learning_rate')} {rate:g}" for name, rate, _ in rates)
        run.console.print(f"  learning rates: {said}", style="dim", highlight=False)
    for name, rate, row in rates:
        sentence = far(rate, row, width)
        if sentence is not None:
            line = f"  [bold yellow]warning:[/bold yellow] {name}: {escape(sentence)} (docs/settings.md)"
            run.console.print(line, highlight=False, soft_wrap=True)


def say_stage(console: Console, name: str, took: str, line: str) -> None:
    """Print the line of one stage."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=WIDTH, no_wrap=True)
    table.add_column(width=6, justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    skipped = line.startswith("skipped")
    name_style, line_style = ("dim", "dim") if skipped else ("bold", "")
    table.add_row(Text(name, style=name_style), Text(took, style="dim"), Text(line, style=line_style))
    console.print(table)


def say_table(console: Console, metrics: dict[str, Any]) -> None:
    """Print the figures of every kind of policy, a row each."""
    gold = metrics["judge"] == "gold"
    seeds = max(row["seeds"] for row in metrics["summary"])
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("", no_wrap=True)
    best = f"vs best\nof {metrics['best_of']}"
    headings = [
        "wins\nvs SFT",
        "\n95 %",
        best,
        *(["\ngold", "rise\nin σ"] if gold else []),
        "\nr_φ",
        "KL\nnats",
        "H\nnats",
    ]
    for heading in [*headings, "\nlength", "dis-\ntinct"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in metrics["summary"]:
        table.add_row(
            Text(row_label(metrics, row), "bold"),
            *_cells(row, gold=gold),
        )
    console.print()
    console.print(table)
    judge = "gold" if gold else "r_φ itself (there is no gold reward)"
    middle = f"; {agent_label(metrics)}: the median of {seeds} seeds" if seeds > 1 else ""
    legend = "; σ: SFT's standard deviation of gold; H: entropy a token; distinct: pairs of words" if gold else ""
    note = f"judged by {judge} on {metrics['prompts']} held-out prompts, ties half{middle}{legend}"
    console.print(note, style="dim", highlight=False)


def _cells(row: dict[str, Any], *, gold: bool) -> list[str]:
    wins = row.get("wins_sft")
    best = row.get("wins_best_of")
    at_most = "≤ " if is_bound(row) else ""
    return [
        "" if wins is None else f"{wins[0]:.1%}",
        "" if wins is None else f"{100 * wins[1]:.0f}–{100 * wins[2]:.0f}",
        "" if best is None else f"{best[0]:.1%}",
        *([f"{row['gold'][0]:+.2f}", "" if row["kind"] == "sft" else f"{row['gold_rise']:+.2f}"] if gold else []),
        f"{row['proxy'][0]:+.2f}",
        "0" if row["kind"] == "sft" else f"{at_most}{row['kl'][0]:.2f}",
        f"{row['entropy']:.2f}",
        f"{row['length']:.1f}",
        f"{row['distinct_2']:.3f}",
    ]
