"""`rlhf-gym preferences check | import | export | agreement`: files of preferences, and the labels of a run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from rlhf_gym.cli.options import Agreement, Check, Export, Import
from rlhf_gym.functional import rightness
from rlhf_gym.labeling.agreement import agreement, preference_opinions
from rlhf_gym.labeling.labels import add_preferences, label_summary, labelled_preferences, write_log
from rlhf_gym.labeling.store import STORE_FILE, LabelStore
from rlhf_gym.lm.chat import choose_template, prompt_text
from rlhf_gym.lm.loading import load_tokenizer
from rlhf_gym.preferences import Preference, Records, check_preferences, load_preferences, write_preferences
from rlhf_gym.preferences.files import load_hub_preferences
from rlhf_gym.rewards import load_reward
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import check_format

HUB = "hub:"


def _read(options: Check | Import, *, skip_bad: bool) -> Records[Preference]:
    source = options.source
    attribute = options.attribute
    if source.startswith(HUB):
        name = source.removeprefix(HUB)
        return load_hub_preferences(name, options.split, skip_bad=skip_bad, attribute=attribute)
    return load_preferences(source, skip_bad=skip_bad, attribute=attribute)


def preferences_command(options: Check | Import | Export | Agreement) -> int:
    """Run one of the commands about preferences. Returns the exit code."""
    match options:
        case Check():
            check(options)
        case Import():
            import_labels(options)
        case Export():
            export_labels(options)
        case Agreement():
            print_agreement(options)
    return 0


def check(options: Check) -> None:
    """Report on a file of preferences."""
    console = Console()
    read = _read(options, skip_bad=True)
    found = read.records
    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer)
    if tokenizer is not None:
        choose_template(tokenizer, options.chat_template)
    report = check_preferences(found, tokenizer=tokenizer, max_length=options.max_length)
    console.print(str(report), highlight=False)
    for name, indices in report.kinds.items():
        for index in indices[: options.shown]:
            place = read.places[index].removeprefix(f"{read.source}, ")
            console.print(f"  {name}: {place}, {escape(_short(prompt_text(found[index].prompt)))}", highlight=False)
        if len(indices) > options.shown:
            console.print(f"  {name}: and {len(indices) - options.shown:,} more", style="dim", highlight=False)
    for fault in read.bad[: options.shown]:
        console.print(f"  bad: {escape(fault)}", highlight=False, soft_wrap=True)
    for note in read.summary():
        console.print(f"  {escape(note)}", style="dim", highlight=False, soft_wrap=True)
    agreed = agreement(preference_opinions(found))
    if agreed is not None:
        console.print(str(agreed), highlight=False)


def import_labels(options: Import) -> None:
    """Put preferences into a run's labels."""
    console = Console()
    check_format(options.folder)
    read = _read(options, skip_bad=options.skip_bad)
    found = read.records
    console.print(str(check_preferences(found)), highlight=False)
    for note in read.summary():
        console.print(f"  {escape(note)}", style="dim", highlight=False, soft_wrap=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    with LabelStore(options.folder / STORE_FILE) as store:
        new, known = add_preferences(store, found, f"import {Path(options.source).name}")
    console.print(f"{new:,} labels are new in {options.folder / STORE_FILE}, {known:,} were there", highlight=False)


def export_labels(options: Export) -> None:
    """Write a run's labels as preferences."""
    console = Console()
    with _open(options.folder) as store:
        if options.log:
            count = write_log(options.file, store)
            console.print(f"{count:,} records of the log → {options.file}", highlight=False)
            return
        found = labelled_preferences(store, options.batch, ties=options.ties)
    if not found.preferences:
        raise ValueError(f"expected labels that give preferences in {options.folder}, got: {found}")
    write_preferences(options.file, found.preferences)
    console.print(f"{found} → {options.file}", highlight=False)


def print_agreement(options: Agreement) -> None:
    """Print how far annotators agree."""
    console = Console()
    with _open(options.folder) as store:
        for batch in store.batches():
            console.print(f"[bold]{escape(batch)}[/bold]", highlight=False)
            console.print(escape(label_summary(store, batch)), highlight=False, soft_wrap=True)
        found = labelled_preferences(store).preferences
    folder = RunFolder(options.folder)
    rounds = [int(path.parts[-3].removeprefix("round-")) for path in folder.root.glob("round-*/reward/metrics.json")]
    if not rounds or not found:
        return
    reward = load_reward(folder.stage("reward", max(rounds)) / "model", "cpu")
    prompts = [p.prompt for p in found]
    chosen = reward.score_texts(prompts, [p.chosen for p in found])
    rejected = reward.score_texts(prompts, [p.rejected for p in found])
    share = rightness(chosen - rejected).mean()
    console.print(
        f"[bold]r_φ[/bold] (round {max(rounds)}) prefers what people preferred in {share:.1%} of {len(found):,} "
        "preferences",
        highlight=False,
    )


def _open(folder: Path) -> LabelStore:
    path = folder / STORE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"expected labels in {path}, but there is no such file")
    return LabelStore(path)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 70 else line[:69] + "…")
