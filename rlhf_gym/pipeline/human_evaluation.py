"""Two policies before people who do not know which is which: who wins, how surely, and how much more it would take."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from rlhf_gym.preferences.records import Candidate
from rlhf_gym.preferences.store_records import Item, Judgement
from rlhf_gym.runs.folder import RunFolder

# --- the maths --------------------------------------------------------------------------------------------------------


def z_value(confidence: float) -> float:
    """z with P(|Z| ≤ z) = confidence for a standard normal Z: 1.960 for .95.

    Raises:
        ValueError: confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"expected confidence in (0, 1), got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson_interval(rate: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share p of n: (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n) (Wilson 1927).

    With ties counted half, p(1 − p) is more than the variance there is: the interval is, if anything, too wide.

    Args:
        rate: p, in [0, 1].
        count: n ≥ 1.
        confidence: how often it holds the truth.

    Raises:
        ValueError: a rate or count out of range.
    """
    if not 0 <= rate <= 1 or count < 1:
        raise ValueError(f"expected a rate in [0, 1] of at least 1, got {rate} of {count}")
    z2 = z_value(confidence) ** 2
    middle, spread = rate + z2 / (2 * count), math.sqrt(z2 * (rate * (1 - rate) / count + z2 / (4 * count**2)))
    return max(0.0, (middle - spread) / (1 + z2 / count)), min(1.0, (middle + spread) / (1 + z2 / count))


def judgements_for_margin(margin: float, rate: float = 0.5, confidence: float = 0.95) -> int:
    """The least n whose Wilson interval is at most p ± margin wide, i.e. half its width ≤ margin.

    For p = ½ it is ⌈z²/4m² − z²⌉: half the width is z/(2√(n + z²)). Other rates need fewer.

    Args:
        margin: m, in (0, ½).
        rate: p, what it is expected to be; ½ asks for the most.
        confidence: of the interval.

    Raises:
        ValueError: a margin out of range.
    """
    if not 0 < margin < 0.5:
        raise ValueError(f"expected a margin in (0, 0.5), got {margin}")
    low, high = 0, max(1, math.ceil(z_value(confidence) ** 2 / (4 * margin**2)))  # enough for any rate
    while high - low > 1:  # half the width falls as n grows
        middle = (low + high) // 2
        bottom, top = wilson_interval(rate, middle, confidence)
        low, high = (low, middle) if (top - bottom) / 2 <= margin else (middle, high)
    return high


def judgements_to_decide(rate: float, confidence: float = 0.95) -> int | None:
    """The least n whose Wilson interval leaves ½ out, were p to stay: n > z²/(4(p − ½)²). None for p = ½."""
    if rate == 0.5:
        return None
    return math.floor(z_value(confidence) ** 2 / (4 * (rate - 0.5) ** 2)) + 1


# --- the comparison ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HumanWinRate:
    """How a policy fares against another, say people."""

    ours: str
    """The policy."""
    theirs: str
    """The one it is compared with."""
    rate: float
    """Share of prompts won, ties counting half; a prompt judged several times counts once, with its mean."""
    low: float
    """Lower end of Wilson's 95 % interval."""
    high: float
    """Its upper end."""
    prompts: int
    """Prompts it rests on, those with one and the same response among them, which count as ties."""
    judgements: int
    """Judgements it rests on."""
    wins: int
    """Those for `ours`."""
    ties: int
    """Those for neither."""
    losses: int
    """Those for `theirs`."""
    same: int
    """Prompts to which both gave the same response: nobody was asked about these."""
    shown_first: float
    """Share of the judgements in which `ours` was shown first; ½ once all is judged."""

    def more_for(self, margin: float) -> int:
        """How many more prompts must be judged for an interval of ± margin, were the rate to stay."""
        return max(0, judgements_for_margin(margin, self.rate) - self.prompts)

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
        judgements: what stands.
        items: comparisons as `comparison_items` makes them.
        ours: a name for candidate 0.
        theirs: a name for candidate 1.
        same: prompts both answered alike.
    """
    known = {item.id for item in items}
    said = [j for j in judgements if j.item in known and j.action in ("chosen", "tie")]
    if not said:
        return None
    credit: dict[int, list[float]] = defaultdict(list)
    for judgement in said:
        credit[judgement.item].append(0.5 if judgement.action == "tie" else 1.0 - judgement.value[0])
    prompts = len(credit) + same
    rate = (sum(sum(c) / len(c) for c in credit.values()) + 0.5 * same) / prompts
    low, high = wilson_interval(rate, prompts)
    ties = sum(j.action == "tie" for j in said)
    wins = sum(j.action == "chosen" and j.value[0] == 0 for j in said)
    first = [j.shown[0] == 0 for j in said if j.shown]
    return HumanWinRate(ours, theirs, rate, low, high, prompts, len(said), wins, ties, len(said) - wins - ties, same,
                        sum(first) / len(first) if first else math.nan)  # fmt: skip


def comparison_items(
    folder: RunFolder, ours: str, theirs: str, *, count: int | None = None, labels: int = 1
) -> tuple[list[Item], int]:
    """(comparisons of two policies' responses to the held-out prompts, prompts that both answered alike).

    The responses are those of the evaluate stage, one of each policy to each prompt.

    Args:
        folder: the run.
        ours: "ppo" for the last round's PPO (the seed that is its median), or a name in evaluate/samples, such as
            sft, best_of, ppo-round-1-seed-0.
        theirs: likewise.
        count: prompts, the first ones; None for all.
        labels: annotators for each.

    Raises:
        ValueError: no such policy, or nothing to compare.
    """
    first, second = (_samples(folder, name) for name in (ours, theirs))
    batch = compare_batch(ours, theirs)
    items, same = [], 0
    for prompt in list(first)[:count]:
        if prompt not in second:
            continue
        if first[prompt].strip() == second[prompt].strip():
            same += 1
            continue
        pair = (Candidate(prompt, first[prompt], ours), Candidate(prompt, second[prompt], theirs))
        items.append(Item("comparison", pair, batch, labels_wanted=labels))
    if not items:
        raise ValueError(f"expected {ours} and {theirs} to differ on some prompt, got {same} prompts answered alike")
    return items, same


def compare_batch(ours: str, theirs: str) -> str:
    """The store's batch of such a comparison."""
    return f"compare {ours} {theirs}"


def write_human_evaluation(folder: RunFolder, result: HumanWinRate) -> Path:
    """Keep a result in the run's folder, one line for each, the last at the end."""
    path = folder.root / "human_evaluation.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")
    return path


def resolve_policy(folder: RunFolder, name: str) -> str:
    """The file's name of a policy: "ppo" is the median seed of the last round.

    Raises:
        ValueError: the evaluate stage is not complete, or there is no such policy.
    """
    metrics = folder.metrics("evaluate")
    if metrics is None:
        raise ValueError(f"expected a run whose evaluate stage is complete in {folder.root}, got none: run "
                         f"`rlhf-gym run --run-dir {folder.root}` first")  # fmt: skip
    if name == "ppo":
        name = [row["name"] for row in metrics["summary"] if row["kind"] == "ppo"][-1]
    there = sorted(path.stem for path in (folder.stage("evaluate") / "samples").glob("*.jsonl"))
    if name not in there:
        raise ValueError(f"expected one of the policies ppo, {', '.join(there)}, got {name!r}")
    return name


def _samples(folder: RunFolder, name: str) -> dict[str, str]:
    """Responses by prompt."""
    path = folder.stage("evaluate") / "samples" / f"{resolve_policy(folder, name)}.jsonl"
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["prompt"]: row["response"] for row in rows}
