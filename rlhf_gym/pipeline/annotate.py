"""Comparing pairs of a run's candidates, by simulated annotators or by people on the labelling page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from rlhf_gym.files import StoppedError
from rlhf_gym.labeling import check_installed
from rlhf_gym.labeling.labels import label_summary, labelled_preferences
from rlhf_gym.labeling.store import STORE_FILE, LabelStore, comparisons
from rlhf_gym.pipeline.context import Run
from rlhf_gym.preferences import Annotator, AnnotatorPanel, CandidatePair, Preference, simulated_annotators
from rlhf_gym.ranks import PEOPLE, TIMEOUT, ranks


class LabellingError(StoppedError):
    """People cannot label, or said too little to learn from. What they said is kept."""


def annotate(run: Run, round: int, pairs: Sequence[CandidatePair], *, part: int = 0) -> list[Preference]:
    """The round's preferences between these pairs, in their order, from the annotators that `collect.labeler` names.

    There is one preference for each pair, or `collect.judges_per_pair` of several annotators. Ties are left out. Of
    several ranks rank 0 asks; the others wait for people up to a week.

    Args:
        run: the run.
        round: its round, which each preference records.
        pairs: what is compared. Active selection asks several times in a round, for a batch each.
        part: which batch of the round this is; simulated annotators have other random draws in each.

    Raises:
        ValueError: there are no annotators.
    """
    people = run.config.collect.labeler == "web"
    ask = annotate_on_page if people else _simulate
    what = f"the labels of round {round}{' that people give' if people else ''}"
    return ranks().from_first(lambda: ask(run, round, pairs, part=part), what, within=PEOPLE if people else TIMEOUT)


def _simulate(run: Run, round: int, pairs: Sequence[CandidatePair], *, part: int) -> list[Preference]:
    """What simulated annotators say.

    Raises:
        ValueError: there is no gold reward to simulate them with.
    """
    config = run.config.collect
    if config.labeler != "simulated" or run.task.gold is None:
        raise ValueError(
            f"expected a gold reward to simulate an annotator with, got the labeler {config.labeler!r} and a task "
            f"{run.task.name!r} {'without' if run.task.gold is None else 'with'} one"
        )
    people = simulated_annotators(
        run.task.gold,
        config.annotators,
        temperature=config.annotator_temperature,
        mistake_rate=config.mistake_rate,
        length_bias=config.annotator_length_bias,
        bias_words=config.annotator_bias_words,
        word_bias=config.annotator_word_bias,
        tie_threshold=config.annotator_tie_threshold,
        spread=config.annotator_spread,
        seed=run.config.seed,
        chance=run.config.seed + 1000 * round + 100_000 * part,
    )
    annotator: Annotator = people[0]
    if len(people) > 1:
        annotator = AnnotatorPanel(people, config.judges_per_pair, seed=run.config.seed + 1000 * round + part)
    return annotator.label(pairs, round=round)


def annotate_on_page(run: Run, round: int, pairs: Sequence[CandidatePair], *, part: int = 0) -> list[Preference]:
    """The round's preferences from people: the labelling page is served until all pairs are judged.

    Pairs that are labelled in the run's store already are not asked again, so an interrupted run goes on where it
    stopped. Pairs that everybody skipped are left out, and so are ties.

    Raises:
        LabellingError: the page cannot be served, or too little was said to learn from. What was said is kept.
    """
    batch = f"round {round}" + (f", part {part + 1}" if part else "")
    path = run.folder.root / STORE_FILE
    try:
        with LabelStore(path) as store:
            items = comparisons(pairs, batch=batch, round=round, labels=run.config.collect.judges_per_pair)
            store.add(items, seed=run.config.seed, exclusive=True)
            if store.has_pending(batch):
                check_installed()
                from rlhf_gym.labeling.server import serve  # FastAPI and uvicorn are extras

                serve(store, batch, run.folder.root, run.console, title=run.task.name)
                run.console.print(escape(label_summary(store, batch)), highlight=False, soft_wrap=True)
            found = labelled_preferences(store, batch)
    except (ValueError, OSError) as error:
        raise LabellingError(str(error)) from error
    if len({p.prompt for p in found.preferences}) < 2:
        raise LabellingError(f"expected preferences about at least 2 prompts, got: {found}; kept in {path}")
    return found.preferences
