"""From several responses to a prompt to pairs of two: of rankings and ratings, and of candidates nobody has judged."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

import numpy as np

from rlhf_gym.preferences.records import Candidate, CandidatePair, Preference

PairingStrategy = Literal["random", "all", "tournament"]


def pairs_from_ranking(
    prompt: str, responses: Sequence[str], ranking: Sequence[int], *, annotator: str = ""
) -> list[Preference]:
    """All pairs of a ranking, the better one chosen, each with weight 1/(number of pairs): 1/C(K,2) without ties.

    Args:
        prompt: the prompt.
        responses: the K responses.
        ranking: the *rank* of each response, in the order of `responses`: 1 is the best, equal ranks make no pair.
            Not the order of their indices: that contains a 0, which is refused.
        annotator: who ranked.

    Raises:
        ValueError: fewer than two responses, another number of ranks, or a rank below 1.
    """
    _check_count("ranking", responses, ranking)
    for rank in ranking:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(
                f"expected ranking to give each response's rank as a whole number, 1 for the best, got {rank!r}"
            )
    pairs = _pairs(prompt, responses, [-rank for rank in ranking], annotator)
    return [replace(pair, margin=None) for pair in pairs]


def pairs_from_ratings(
    prompt: str, responses: Sequence[str], ratings: Sequence[float], *, annotator: str = ""
) -> list[Preference]:
    """All pairs of unequal ratings, the higher one chosen; margin: the difference; weight: 1/(number of pairs).

    Args:
        prompt: the prompt.
        responses: the K responses.
        ratings: how good each response is, in the order of `responses`, higher is better.
        annotator: who rated.

    Raises:
        ValueError: fewer than two responses, another number of ratings, or one that is no finite number.
    """
    _check_count("ratings", responses, ratings)
    for rating in ratings:
        if isinstance(rating, bool) or not isinstance(rating, int | float) or not math.isfinite(rating):
            raise ValueError(f"expected ratings to be finite numbers, got {rating!r}")
    return _pairs(prompt, responses, ratings, annotator)


def _check_count(name: str, responses: Sequence[str], judgements: Sequence[float]) -> None:
    if len(responses) < 2:
        raise ValueError(f"expected at least 2 responses to compare, got {len(responses)}")
    if len(judgements) != len(responses):
        raise ValueError(f"expected {name} to hold {len(responses)}, one for each response, got {len(judgements)}")


def _pairs(prompt: str, responses: Sequence[str], goodness: Sequence[float], annotator: str) -> list[Preference]:
    group = hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()[:16]
    wins = []
    for i, j in combinations(range(len(responses)), 2):
        better, worse = (i, j) if goodness[i] > goodness[j] else (j, i)
        if goodness[i] != goodness[j] and responses[i] != responses[j]:
            wins.append((responses[better], responses[worse], float(goodness[better] - goodness[worse])))
    return [
        Preference(prompt, chosen, rejected, annotator, margin=margin, weight=1 / len(wins), group=group)
        for chosen, rejected, margin in wins
    ]


def choose_pairs(
    candidates: Sequence[Candidate], strategy: PairingStrategy = "random", *, seed: int = 0
) -> list[CandidatePair]:
    """Which candidates of a prompt an annotator is to compare.

    Responses that repeat another one of their prompt are left out first, so K counts distinct ones; a prompt with one
    distinct response gives no pair. Which of a pair comes first is drawn, so that it tells nothing.

    - "random": ⌊K/2⌋ pairs, no response in two of them. The least correlated comparisons for the money.
    - "all": each of the C(K,2) pairs.
    - "tournament": ⌈log₂ K⌉ rounds, in each of which a response meets one it has not met (or sits out, K being odd):
      about K/2·log₂ K pairs, as many as sorting asks for. The rounds are those of a round robin, laid out beforehand,
      so that many people can label them at once.

    Args:
        candidates: of any number of prompts, in any order.
        strategy: one of the three.
        seed: same seed, same pairs.

    Raises:
        ValueError: an unknown strategy.
    """
    if strategy not in ("random", "all", "tournament"):
        raise ValueError(f'expected the strategy "random", "all" or "tournament", got {strategy!r}')
    by_prompt: dict[str, dict[str, Candidate]] = {}
    for candidate in candidates:
        by_prompt.setdefault(candidate.prompt, {}).setdefault(candidate.response, candidate)
    rng = np.random.default_rng(seed)
    pairs = []
    for distinct in by_prompt.values():
        k = len(distinct)
        order = rng.permutation(k)
        if strategy == "all":
            chosen = list(combinations(range(k), 2))
        else:
            chosen = _round_robin(k, rounds=1 if strategy == "random" else math.ceil(math.log2(k)))
        entries = list(distinct.values())
        for i, j in chosen:
            first, second = (i, j) if rng.random() < 0.5 else (j, i)
            pairs.append(CandidatePair(entries[order[first]], entries[order[second]]))
    return pairs


def _round_robin(k: int, *, rounds: int) -> list[tuple[int, int]]:
    """The first rounds of a round robin of k by the circle method: one stays, the others move on by a place."""
    seats = list(range(k + k % 2))  # an odd k gets an empty seat, opposite which one sits out
    pairs = []
    for _ in range(rounds):
        met = [(seats[i], seats[-1 - i]) for i in range(len(seats) // 2)]
        pairs += [pair for pair in met if max(pair) < k]
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return pairs
