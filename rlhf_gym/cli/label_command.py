"""`rlhf-gym label RUN`: serve the page on which people judge, until all is labelled or Ctrl-C."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from rlhf_gym.cli.options import LabelOptions
from rlhf_gym.labeling import check_installed
from rlhf_gym.labeling.labels import label_summary
from rlhf_gym.labeling.store import STORE_FILE, Item, LabelStore, comparisons
from rlhf_gym.lm.chat import Prompt, Response
from rlhf_gym.pipeline.human_evaluation import (
    compare_batch,
    comparison_items,
    human_win_rate,
    write_human_evaluation,
)
from rlhf_gym.preferences import Candidate, choose_pairs
from rlhf_gym.preferences.files import read_candidates
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import check_format


def label(options: LabelOptions) -> int:
    """Serve the page. Returns the exit code.

    Raises:
        ValueError, OSError: there is nothing to judge, or nothing to serve the page with.
    """
    check_format(options.folder)  # labels for a run that this version cannot go on with would be given in vain
    check_installed()
    if options.items is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    if not options.folder.is_dir():
        raise FileNotFoundError(f"expected a run's folder, got {options.folder}, which does not exist")
    with LabelStore(options.folder / STORE_FILE) as store:
        return _label(options, store, Console())


def _label(options: LabelOptions, store: LabelStore, console: Console) -> int:
    from rlhf_gym.labeling.server import serve  # FastAPI and uvicorn are extras

    batch, same = fill(options, store)
    target = "" if options.num_labels is None else f", {options.num_labels:,} labels asked for"
    count = store.progress(batch).items
    console.print(f"[bold]{escape(batch)}[/bold]: {count:,} item{'s' * (count != 1)}{target}", highlight=False)
    code = 0
    try:
        serve(
            store,
            batch,
            options.folder,
            console,
            settings=options.page,
            target=options.num_labels,
            title=str(options.folder),
        )
    except KeyboardInterrupt:
        code = 130
    console.print(escape(label_summary(store, batch)), highlight=False, soft_wrap=True)
    if options.compare is None:
        export = f"  rlhf-gym preferences export {options.folder} labels.jsonl writes them as preferences"
        console.print(export, style="dim", highlight=False, soft_wrap=True)
        return code
    result = human_win_rate(store.judgements(batch), store.items(batch), *options.compare, same=same)
    if result is not None:
        path = write_human_evaluation(RunFolder(options.folder), result)
        console.print(f"  [bold]{escape(str(result))}[/bold]", highlight=False)
        console.print(
            f"  shown first in {result.shown_first:.0%} of the judgements; for an interval of ± 5 points "
            f"{result.more_for(0.05):,} more prompts, for ± 10 points {result.more_for(0.1):,} more; {path}",
            highlight=False,
            soft_wrap=True,
        )
    return code


def fill(options: LabelOptions, store: LabelStore) -> tuple[str, int]:
    """Put what is to be judged into the store.

    Returns:
        (the batch, how many prompts of a comparison both policies answered alike).

    Raises:
        ValueError, OSError: there is nothing to judge.
    """
    if options.compare is not None:
        items, same = comparison_items(
            RunFolder(options.folder), *options.compare, count=options.num_items, labels=options.labels_per_item
        )
        store.add(items)
        return compare_batch(*options.compare), same
    if options.batch is not None:
        if options.batch not in store.batches():
            raise ValueError(f"expected one of the batches {store.batches()} of {store.path}, got {options.batch!r}")
        return options.batch, 0
    if options.items is not None:
        path = options.items
        batch = path.stem
        round = 0
    else:
        rounds = {
            int(path.parts[-3].removeprefix("round-")): path
            for path in options.folder.glob("round-*/collect/candidates.jsonl")
        }
        if not rounds and store.batches():
            return store.batches()[-1], 0
        if not rounds:
            raise ValueError(
                f"expected responses to judge, got {options.folder} without any: complete the collect stage (rlhf-gym "
                "run), or give --items FILE"
            )
        round = max(rounds)
        path = rounds[round]
        batch = f"round {round}"
    if options.kind != "comparison":
        batch += f", {options.kind} of {options.k}"
    candidates = read_candidates(path, skip_bad=options.skip_bad)
    if batch not in store.batches():
        store.add(_items(candidates, options, batch, round))
    return batch, 0


def _items(candidates: Sequence[Candidate], options: LabelOptions, batch: str, round: int) -> list[Item]:
    """Pairs, or groups of K, of the different responses to each prompt."""
    if options.kind == "comparison":
        items = comparisons(choose_pairs(candidates), batch=batch, round=round, labels=options.labels_per_item)
    else:
        by_prompt: dict[Prompt, dict[Response, Candidate]] = defaultdict(dict)
        for candidate in candidates:
            by_prompt[candidate.prompt].setdefault(candidate.response, candidate)
        groups = [tuple(different.values())[: options.k] for different in by_prompt.values()]
        least = 1 if options.kind == "rating" else 2
        items = [
            Item(options.kind, group, batch, round, options.labels_per_item) for group in groups if len(group) >= least
        ]
    if not items:
        raise ValueError(f"expected different responses to a prompt, got none among {len(candidates)}")
    return items[: options.num_items]
