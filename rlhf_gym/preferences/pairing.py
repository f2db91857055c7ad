"""Pairs of responses: from rankings, from ratings, and from candidates that nobody has judged."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from rlhf_gym.lm.chat import Prompt, Response, prompt_key
from rlhf_gym.preferences.reader import is_finite_number, short
from rlhf_gym.preferences.records import Candidate, CandidatePair, Preference
from rlhf_gym.ranges import check_arguments

PairingStrategy = Literal["random", "all", "tournament"]


def pairs_from_ranking(
    prompt: Prompt, responses: Sequence[Response], ranking: Sequence[int], *, annotator: str = ""
) -> list[Preference]:
    """All pairs of a ranking, the better one chosen, each with weight 1/(number of pairs): 1/C(K,2) without ties.

    Args:
        prompt: the prompt.
        responses: the K responses.
        ranking: the *rank* of each response, in the order of `responses`. 1 is the best; equal ranks make no pair.
            An order of indices contains a 0, which is refused.
        annotator: the annotator's name.

    Raises:
        ValueError: fewer than two responses, another number of ranks, or a rank below 1.
    """
    for rank in ranking:
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank < 2**31:
            raise ValueError(
                f"expected ranking to give each response's rank as a whole number, 1 for the best, got {short(rank)}"
            )
    pairs = _pairs("ranking", prompt, responses, [-rank for rank in ranking], annotator)
    return [replace(pair, margin=None) for pair in pairs]


def pairs_from_ratings(
    prompt: Prompt, responses: Sequence[Response], ratings: Sequence[float], *, annotator: str = ""
) -> list[Preference]:
    """All pairs of unequal ratings, the higher one chosen; margin: the difference; weight: 1/(number of pairs).

    Args:
        prompt: the prompt.
        responses: the K responses.
        ratings: how good each response is, in the order of `responses`; higher is better.
        annotator: the annotator's name.

    Raises:
        ValueError: fewer than two responses, another number of ratings, or a rating that is no finite number.
    """
    for rating in ratings:
        if not is_finite_number(rating):
            raise ValueError(f"expected ratings to be finite numbers, got {short(rating)}")
    return _pairs("ratings", prompt, responses, ratings, annotator)


def _pairs(
    name: str, prompt: Prompt, responses: Sequence[Response], goodness: Sequence[float], annotator: str
) -> list[Preference]:
    if len(responses) < 2:
        raise ValueError(f"expected at least 2 responses to compare, got {len(responses)}")
    if len(goodness) != len(responses):
        raise ValueError(f"expected {name} to hold {len(responses)}, one for each response, got {len(goodness)}")
    group = hashlib.sha256(prompt_key(prompt).encode(errors="surrogatepass")).hexdigest()[:16]
    wins = []
    for i, j in combinations(range(len(responses)), 2):
        better, worse = (i, j) if goodness[i] > goodness[j] else (j, i)
        if goodness[i] != goodness[j] and responses[i] != responses[j]:
            wins.append((responses[better], responses[worse], float(goodness[better] - goodness[worse])))
    return [
        Preference(prompt, chosen, rejected, annotator, margin=margin, weight=1 / len(wins), group=group)
        for chosen, rejected, margin in wins
    ]


@check_arguments
def choose_pairs(
    candidates: Sequence[Candidate], strategy: PairingStrategy = "random", *, seed: int = 0
) -> list[CandidatePair]:
    """Choose which candidates of a prompt an annotator is to compare.

    Responses that repeat another one of their prompt are left out first, so K counts distinct ones. A prompt with one
    distinct response gives no pair. Which of a pair comes first is random.

    - "random": ⌊K/2⌋ pairs, no response in two of them. These comparisons are the least correlated.
    - "all": each of the C(K,2) pairs.
    - "tournament": the first ⌈log₂ K⌉ rounds of a round robin. Each response meets one it has not met, or sits out
      where K is odd. That makes about K/2·log₂ K pairs, as many as sorting needs.

    Args:
        candidates: candidates of any number of prompts, in any order.
        strategy: one of the three.
        seed: the same seed gives the same pairs.

    Raises:
        ValueError: an unknown strategy.
    """
    by_prompt: dict[Prompt, dict[Response, Candidate]] = {}
    for candidate in candidates:
        by_prompt.setdefault(candidate.prompt, {}).setdefault(candidate.response, candidate)
    rng = np.random.default_rng(seed)
    pairs = []
    for distinct in by_prompt.values():
        k = len(distinct)
        order = rng.permutation(k)  # (K,)
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
    """The first rounds of a round robin of k by the circle method: one stays, the others move on by one seat."""
    seats = list(range(k + k % 2))  # an odd k gets an empty seat; whoever is opposite it sits out
    pairs = []
    for _ in range(rounds):
        met = [(seats[i], seats[-1 - i]) for i in range(len(seats) // 2)]
        pairs += [pair for pair in met if max(pair) < k]
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return pairs


def score_differences(
    score: Callable[[list[Prompt], list[Response]], ArrayLike], pairs: Sequence[CandidatePair]
) -> np.ndarray:
    """s(first) − s(second) of each pair, (…, pairs). Each distinct text is scored once.

    Args:
        score: (prompts, responses) -> scores (B,), or (members, B).
        pairs: the pairs, at least one.
    """
    texts = list(dict.fromkeys((c.prompt, c.response) for pair in pairs for c in pair))
    place = {text: i for i, text in enumerate(texts)}
    scores = np.asarray(score([prompt for prompt, _ in texts], [response for _, response in texts]), dtype=np.float64)
    first = [place[a.prompt, a.response] for a, _ in pairs]
    second = [place[b.prompt, b.response] for _, b in pairs]
    return scores[..., first] - scores[..., second]  # (…, pairs)
