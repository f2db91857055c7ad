"""Comparing pairs of a run's candidates: by the simulated annotator."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_gym.pipeline.preparation import Run
from rlhf_gym.preferences import BradleyTerryAnnotator, CandidatePair, Preference


def annotate(run: Run, round: int, pairs: Sequence[CandidatePair], *, part: int = 0) -> list[Preference]:
    """The round's preferences between these pairs, one for each, in order, as `collect.labeler` says who compares.

    Args:
        run: the run.
        round: its round, recorded in each preference.
        pairs: what is compared; a round that chooses its pairs actively asks several times, for a batch each.
        part: which batch of the round this is; the simulated annotator's chance is another in each.

    Raises:
        ValueError: nobody is there to compare.
    """
    config = run.config.collect
    if config.labeler != "simulated" or run.task.gold is None:
        raise ValueError(
            f"expected a gold reward to simulate an annotator with, got the labeler {config.labeler!r} and a task "
            f"{run.task.name!r} {'without' if run.task.gold is None else 'with'} one"
        )
    seed = run.config.seed + 1000 * round + 100_000 * part
    annotator = BradleyTerryAnnotator(run.task.gold, config.annotator_temperature, config.mistake_rate, seed=seed)
    return annotator.label(pairs, round=round)
