"""Blind comparison of two policies by people: who wins, how surely, and how many more prompts it would take."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf_gym.files import append_jsonl, read_jsonl, reading
from rlhf_gym.functional.intervals import share_interval
from rlhf_gym.labeling.store import Item, Judgement
from rlhf_gym.lm.chat import Prompt, Response, as_prompt, as_response, prompt_text
from rlhf_gym.preferences.records import Candidate
from rlhf_gym.runs.folder import RunFolder


def prompts_for_margin(margin: float, rate: float = 0.5) -> int:
    """The least n at which half the width of Wilson's 95 % interval of a share p is at most the margin m.

    Half the width is z·√(p(1 − p)/n + z²/4n²)/(1 + z²/n), so m²n² + z²(2m² − p(1 − p))n + z⁴(m² − ¼) ≥ 0. For p = ½
    that is n ≥ z²/4m² − z²; other shares need fewer.

    Args:
        margin: m, in (0, ½).
        rate: p, the expected share.

    Raises:
        ValueError: a margin out of range.
    """
    if not 0 < margin < 0.5:
        raise ValueError(f"expected a margin in (0, 0.5), got {margin}")
    z2 = 1.96**2
    half = z2 * (2 * margin**2 - rate * (1 - rate)) / 2
    root = math.sqrt(half**2 - margin**2 * z2**2 * (margin**2 - 0.25))
    return max(1, math.ceil((root - half) / margin**2))


@dataclass(frozen=True)
class HumanWinRate:
    """The win rate of one policy against another, as people judge them."""

    ours: str
    """Name of the policy that is measured."""
    theirs: str
    """The policy that it is compared with."""
    rate: float
    """Share of prompts won, ties counting half. A prompt that is judged several times counts once, with its mean."""
    low: float
    """Lower end of Wilson's 95 % interval. With ties counted half, the interval is rather too wide than too narrow."""
    high: float
    """Upper end of the interval."""
    prompts: int
    """All prompts; those that both policies answered alike count as ties."""
    judgements: int
    """How many judgements people gave."""
    wins: int
    """Judgements for `ours`."""
    ties: int
    """Judgements for neither."""
    losses: int
    """Judgements for `theirs`."""
    same: int
    """Prompts to which both policies gave the same response, so that nobody was asked."""
    shown_first: float
    """Share of the judgements in which `ours` was shown first; ½ once everything is judged."""

    def more_for(self, margin: float) -> int:
        """How many more prompts must be judged for an interval of ± margin, if the rate stays."""
        return max(0, prompts_for_margin(margin, self.rate) - self.prompts)

    def __str__(self) -> str:
        decided = "so it is better" if self.low > 0.5 else "so it is worse" if self.high < 0.5 else "nothing is decided"
        same = f" ({self.same} prompts with one and the same response count as ties)" if self.same else ""
        return (
            f"{self.ours} wins {self.rate:.1%} against {self.theirs}, 95 % interval {self.low:.1%} to {self.high:.1%}, "
            f"{decided}: {self.wins} won, {self.ties} tied (half), {self.losses} lost on {self.prompts} prompts{same}"
        )


def human_win_rate(
    judgements: Sequence[Judgement], items: Sequence[Item], ours: str, theirs: str, *, same: int = 0
) -> HumanWinRate | None:
    """The win rate of `ours`, candidate 0 of each item, over `theirs`, candidate 1; None before the first judgement.

    Args:
        judgements: the judgements that stand.
        items: comparisons as `comparison_items` makes them.
        ours: the name of candidate 0.
        theirs: the name of candidate 1.
        same: prompts that both answered alike.
    """
    known = {item.id for item in items}
    said = [j for j in judgements if j.item in known and j.action in ("chosen", "tie")]
    if not said:
        return None
    credit: dict[int, list[float]] = defaultdict(list)
    for judgement in said:
        credit[judgement.item].append(0.5 if judgement.action == "tie" else 1.0 - judgement.value[0])
    prompts = len(credit) + same
    share = share_interval((sum(sum(c) / len(c) for c in credit.values()) + 0.5 * same) / prompts, prompts)
    first = [j.shown[0] == 0 for j in said if j.shown]
    return HumanWinRate(
        ours,
        theirs,
        share.rate,
        share.low,
        share.high,
        prompts=prompts,
        judgements=len(said),
        wins=sum(j.value == (0,) for j in said),
        ties=sum(j.action == "tie" for j in said),
        losses=sum(j.value == (1,) for j in said),
        same=same,
        shown_first=sum(first) / len(first) if first else math.nan,
    )


def comparison_items(
    folder: RunFolder, ours: str, theirs: str, *, count: int | None = None, labels: int = 1
) -> tuple[list[Item], int]:
    """(comparisons of two policies' responses to held-out prompts, how many prompts both answered alike).

    The responses are those of the evaluate stage, one of each policy to each prompt.

    Args:
        folder: the run.
        ours: "train" for the median seed of the last round, or a name in evaluate/samples, such as sft, best_of or
            train-round-1-seed-0.
        theirs: likewise.
        count: how many prompts, the first ones; None for all.
        labels: annotators for each.

    Raises:
        ValueError: there is no such policy, or nothing to compare.
    """
    first = _responses(folder, ours)
    second = _responses(folder, theirs)
    prompts = [prompt for prompt in list(first)[:count] if prompt in second]
    different = [prompt for prompt in prompts if _stripped(first[prompt]) != _stripped(second[prompt])]
    same = len(prompts) - len(different)
    if not different:
        raise ValueError(f"expected {ours} and {theirs} to differ on some prompt, got {same} prompts answered alike")
    batch = compare_batch(ours, theirs)
    items = [
        Item(
            "comparison",
            (Candidate(prompt, first[prompt], ours), Candidate(prompt, second[prompt], theirs)),
            batch,
            labels_wanted=labels,
        )
        for prompt in different
    ]
    return items, same


def compare_batch(ours: str, theirs: str) -> str:
    """The name of the store's batch for a comparison of two policies."""
    return f"compare {ours} {theirs}"


def write_human_evaluation(folder: RunFolder, result: HumanWinRate) -> Path:
    """Append a result to the run's `human_evaluation.jsonl`."""
    path = folder.root / "human_evaluation.jsonl"
    append_jsonl(path, asdict(result))
    return path


def _stripped(response: Response) -> str:
    return prompt_text(response).strip()


def _responses(folder: RunFolder, name: str) -> dict[Prompt, Response]:
    """A policy's responses by prompt."""
    metrics = folder.metrics("evaluate")
    if metrics is None:
        raise ValueError(
            f"expected a run whose evaluate stage is complete in {folder.root}, got none: run "
            f"`rlhf-gym run --run-dir {folder.root}` first"
        )
    if name == "train":
        with reading("the metrics of evaluate", folder.root):
            name = [row["name"] for row in metrics["summary"] if row["kind"] == "train"][-1]
    samples = folder.stage("evaluate") / "samples"
    there = sorted(path.stem for path in samples.glob("*.jsonl"))
    if name not in there:
        raise ValueError(f"expected one of the policies train, {', '.join(there)}, got {name!r}")
    return {as_prompt(row["prompt"]): as_response(row["response"]) for row in read_jsonl(samples / f"{name}.jsonl")}
