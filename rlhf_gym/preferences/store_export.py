"""From the store of judgements to preferences that a reward model learns from, and from preferences into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from rlhf_gym.preferences.pairing import pairs_from_ranking, pairs_from_ratings
from rlhf_gym.preferences.records import Candidate, Preference
from rlhf_gym.preferences.store import LabelStore
from rlhf_gym.preferences.store_records import Item, Judgement

Ties = Literal["drop", "half"]


@dataclass(frozen=True)
class Labelled:
    """Preferences out of judgements, and what gave none."""

    preferences: list[Preference]
    """In the order in which they were said."""
    judgements: int
    """Judgements that stand, skips among them."""
    ties: int
    """Comparisons that ended in a tie."""
    skips: int
    """Items that somebody skipped."""
    left_out: int
    """Judgements that give no preference: ties where they are dropped, rankings and ratings that are equal throughout,
    or of one response alone."""

    def __str__(self) -> str:
        return (
            f"{self.judgements - self.skips:,} labels, {self.ties:,} of them ties → {len(self.preferences):,} "
            f"preferences; {self.left_out:,} gave none, {self.skips:,} skipped"
        )


def labelled_preferences(store: LabelStore, batch: str | None = None, *, ties: Ties = "drop") -> Labelled:
    """The preferences that the judgements of a batch, or all of them, amount to.

    A comparison gives one; a ranking or ratings of K all pairs of unequal ones, each with weight 1/(number of pairs);
    several annotators of one item each give theirs. Ties: "drop" leaves them out, "half" makes of each the two opposite
    preferences with weight ½, whose loss −½·log σ(Δ) − ½·log σ(−Δ) is least at Δ = 0.

    Args:
        store: the store.
        batch: which judgements; None for all.
        ties: what becomes of ties.

    Raises:
        ValueError: ties is neither.
    """
    if ties not in get_args(Ties):
        raise ValueError(f"expected ties to be one of {', '.join(get_args(Ties))}, got {ties!r}")
    known = {item.id: item for item in store.items(batch)}
    judgements = store.judgements(batch)
    found: list[Preference] = []
    tied = skipped = left_out = 0
    for judgement in judgements:
        if judgement.action == "skip":
            skipped += 1
            continue
        tied += judgement.action == "tie"
        pairs = _preferences(judgement, known[judgement.item], ties)
        left_out += not pairs
        found += pairs
    return Labelled(found, len(judgements), tied, skipped, left_out)


def _preferences(judgement: Judgement, item: Item, ties: Ties) -> list[Preference]:
    who, values = judgement.annotator, judgement.value
    if judgement.action == "chosen":
        return [_pair(item, int(values[0]), who)]
    if judgement.action == "tie":
        group = f"tie-{judgement.id}"
        both = [replace(_pair(item, i, who), weight=0.5, group=group) for i in (0, 1)]
        return both if ties == "half" and item.responses[0] != item.responses[1] else []
    if len(item.candidates) < 2:
        return []
    if judgement.action == "ranking":
        pairs = pairs_from_ranking(item.prompt, item.responses, [int(rank) for rank in values], annotator=who)
    else:
        pairs = pairs_from_ratings(item.prompt, item.responses, values, annotator=who)
    source = {candidate.response: candidate.label for candidate in item.candidates}
    return [replace(p, round=item.round, chosen_source=source[p.chosen], rejected_source=source[p.rejected])
            for p in pairs]  # fmt: skip


def _pair(item: Item, chosen: int, annotator: str) -> Preference:
    better, worse = item.candidates[chosen], item.candidates[1 - chosen]
    return Preference(item.prompt, better.response, worse.response, annotator, item.round,
                      chosen_source=better.label, rejected_source=worse.label)  # fmt: skip


def add_preferences(store: LabelStore, preferences: Sequence[Preference], batch: str) -> tuple[int, int]:
    """Put preferences from elsewhere into the store, as comparisons that are labelled already.

    The same preferences again add nothing. A preference stands in the store as one comparison, rankings as their pairs:
    margins and weights are not kept.

    Returns:
        (labels that were new, labels that were there already)
    """
    items = [_stored_item(p, batch) for p in preferences]
    store.add(items)
    numbers = {item.key: item.id for item in store.items(batch)}
    judgements = []
    seen: dict[str, int] = {}
    for preference, item in zip(preferences, items, strict=True):
        who = preference.annotator or "imported"
        chosen = item.responses.index(preference.chosen)
        said = json.dumps([item.key, who, chosen])
        copy = seen[said] = (
            seen.get(said, -1) + 1
        )  # a file may say the same twice: both are in the log, the last stands
        identity = hashlib.sha256(f"{said}{copy}".encode()).hexdigest()[:32]
        judgements.append(Judgement(identity, numbers[item.key], who, "chosen", (chosen,)))
    new = sum(store.record_all(judgements))
    return new, len(preferences) - new


def _stored_item(preference: Preference, batch: str) -> Item:
    """The comparison it comes from, in an order that does not depend on who was chosen."""
    both = [
        Candidate(preference.prompt, preference.chosen, preference.chosen_source),
        Candidate(preference.prompt, preference.rejected, preference.rejected_source),
    ]
    both.sort(key=lambda candidate: (candidate.response, candidate.source))
    return Item("comparison", tuple(both), batch, preference.round)


def write_log(path: str | Path, store: LabelStore) -> int:
    """Everything that was ever said, one JSON object a line with the texts it is about, undos and undone ones too.

    Returns:
        How many records.
    """
    items = {item.id: item for item in store.items()}
    lines = []
    for judgement in store.log():
        item = items[judgement.item]
        about = {"kind": item.kind, "batch": item.batch, "round": item.round, "prompt": item.prompt,
                 "responses": list(item.responses), "sources": [c.source for c in item.candidates]}  # fmt: skip
        lines.append(json.dumps(asdict(judgement) | about, ensure_ascii=True) + "\n")
    Path(path).expanduser().write_text("".join(lines))
    return len(lines)
