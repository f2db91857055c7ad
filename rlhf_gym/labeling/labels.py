"""Labels in a store: their preferences, their summary, and how preferences and the log go in and out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from rlhf_gym.files import expanded, write_jsonl
from rlhf_gym.labeling.agreement import agreement, opinions_of
from rlhf_gym.labeling.store import Item, Judgement, LabelStore
from rlhf_gym.lm.chat import prompt_key, to_json
from rlhf_gym.preferences.pairing import pairs_from_ranking, pairs_from_ratings
from rlhf_gym.preferences.records import Candidate, Preference
from rlhf_gym.settings.stages import Ties


@dataclass(frozen=True)
class LabelledPreferences:
    """The preferences that judgements amount to, and counts of the judgements that gave none."""

    preferences: list[Preference]
    """The preferences, in the order in which the judgements came."""
    judgements: int
    """Standing judgements, skips included."""
    ties: int
    """Comparisons that were called a tie."""
    skips: int
    """Items that somebody skipped."""
    left_out: int
    """Judgements other than skips that give no preference: dropped ties, and rankings or ratings without a winner."""

    def __str__(self) -> str:
        return (
            f"{self.judgements - self.skips:,} labels ({self.ties:,} ties), {self.skips:,} skipped → "
            f"{len(self.preferences):,} preferences; {self.left_out:,} labels gave none"
        )


def labelled_preferences(store: LabelStore, batch: str | None = None, *, ties: Ties = "drop") -> LabelledPreferences:
    """The preferences that the judgements of a batch amount to.

    A comparison gives one preference. A ranking or ratings of K give all pairs of unequal responses, each with weight
    1/(number of pairs). Several annotators of one item each give theirs.

    Args:
        store: the store.
        batch: the batch; None for all.
        ties: "drop" leaves ties out. "half" makes each tie two opposite preferences of weight ½, whose loss
            −½·log σ(Δ) − ½·log σ(−Δ) is least at Δ = 0.

    Raises:
        ValueError: `ties` is neither.
    """
    if ties not in get_args(Ties):
        raise ValueError(f"expected ties to be one of {', '.join(get_args(Ties))}, got {ties!r}")
    items = {item.id: item for item in store.items(batch)}
    judgements = store.judgements(batch)
    said = [judgement for judgement in judgements if judgement.action != "skip"]
    found = [_preferences(judgement, items[judgement.item], ties) for judgement in said]
    return LabelledPreferences(
        preferences=[preference for each in found for preference in each],
        judgements=len(judgements),
        ties=sum(judgement.action == "tie" for judgement in said),
        skips=len(judgements) - len(said),
        left_out=sum(not each for each in found),
    )


def _preferences(judgement: Judgement, item: Item, ties: Ties) -> list[Preference]:
    if judgement.action == "chosen":
        return [_comparison(item, int(judgement.value[0]), judgement.annotator)]
    if judgement.action == "tie":
        if ties == "drop" or item.responses[0] == item.responses[1]:
            return []
        both = [_comparison(item, place, judgement.annotator) for place in (0, 1)]
        return [replace(p, weight=0.5, group=f"tie-{judgement.id}") for p in both]
    if len(item.candidates) < 2:
        return []
    if judgement.action == "ranking":
        pairs = pairs_from_ranking(item.prompt, item.responses, [int(rank) for rank in judgement.value])
    else:
        pairs = pairs_from_ratings(item.prompt, item.responses, judgement.value)
    source = {candidate.response: candidate.label for candidate in item.candidates}
    return [
        replace(
            pair,
            annotator=judgement.annotator,
            round=item.round,
            chosen_source=source[pair.chosen],
            rejected_source=source[pair.rejected],
        )
        for pair in pairs
    ]


def _comparison(item: Item, chosen: int, annotator: str) -> Preference:
    return Preference.between(item.candidates[chosen], item.candidates[1 - chosen], annotator, item.round)


def label_summary(store: LabelStore, batch: str) -> str:
    """Lines that say who labelled how much, how far annotators agree, and whether a side was favoured."""
    judgements = store.judgements(batch)
    said = [judgement for judgement in judgements if judgement.action != "skip"]
    lines = [str(labelled_preferences(store, batch))]
    if said:
        counts = Counter(judgement.annotator for judgement in said).most_common()
        lines.append("by " + ", ".join(f"{name} {count:,}" for name, count in counts))
    sides = [j.shown.index(int(j.value[0])) for j in said if j.action == "chosen" and j.shown]
    if sides:
        lines.append(
            f"the first response won {1 - sum(sides) / len(sides):.0%} of {len(sides):,} comparisons without a tie "
            "(50% where sides do not matter)"
        )
    found = agreement(opinions_of(judgements, store.items(batch)))
    if found is not None:
        lines.append(str(found))
    return "\n".join(f"  {line}" for line in lines)


def add_preferences(store: LabelStore, preferences: Sequence[Preference], batch: str) -> tuple[int, int]:
    """Put preferences from elsewhere into the store, as comparisons that are labelled already.

    Adding the same preferences again changes nothing. Rankings stand in the store as their pairs; margins and weights
    are not kept.

    Returns:
        (labels that were new, labels that were there already).
    """
    items = [_stored_item(preference, batch) for preference in preferences]
    store.add(items)
    numbers = {item.key: item.id for item in store.items(batch)}
    judgements = []
    copies: dict[str, int] = {}  # a file may say the same twice: both are in the log, and the last stands
    for preference, item in zip(preferences, items, strict=True):
        annotator = preference.annotator or "imported"
        chosen = item.responses.index(preference.chosen)
        said = json.dumps([item.key, annotator, chosen])
        copy = copies.get(said, 0)
        copies[said] = copy + 1
        identity = hashlib.sha256(f"{said}{copy}".encode()).hexdigest()[:32]
        judgements.append(Judgement(identity, numbers[item.key], annotator, "chosen", (chosen,)))
    new = sum(store.record_all(judgements))
    return new, len(preferences) - new


def _stored_item(preference: Preference, batch: str) -> Item:
    """The comparison that a preference comes from, in an order that does not depend on which response was chosen."""
    both = [
        Candidate(preference.prompt, preference.chosen, preference.chosen_source),
        Candidate(preference.prompt, preference.rejected, preference.rejected_source),
    ]
    both.sort(key=lambda candidate: (prompt_key(candidate.response), candidate.source))
    return Item("comparison", tuple(both), batch, preference.round)


def write_log(path: str | Path, store: LabelStore) -> int:
    """Write every record of the log, undos included, as one JSON object a line with the texts it is about.

    Returns:
        How many records there are.
    """
    items = {item.id: item for item in store.items()}
    records = []
    for judgement in store.log():
        item = items[judgement.item]
        about = {
            "kind": item.kind,
            "batch": item.batch,
            "round": item.round,
            "prompt": to_json(item.prompt),
            "responses": [to_json(response) for response in item.responses],
            "sources": [candidate.source for candidate in item.candidates],
        }
        records.append(asdict(judgement) | about)
    write_jsonl(expanded(path), records)
    return len(records)
