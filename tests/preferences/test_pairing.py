"""Rankings and ratings to pairs; which candidates meet."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from rlhf_gym.functional import bradley_terry_loss
from rlhf_gym.preferences import Candidate, CandidatePair, choose_pairs, pairs_from_ranking, pairs_from_ratings
from rlhf_gym.preferences.pairing import PairingStrategy
from tests.toy import kwise_loss

STRATEGIES: tuple[PairingStrategy, ...] = ("random", "all", "tournament")


def candidates(prompt: str, k: int) -> list[Candidate]:
    return [Candidate(prompt, f"{prompt}{i}", source="sft") for i in range(k)]


def met(pairs: list[CandidatePair]) -> Counter[frozenset[str]]:
    return Counter(frozenset((a.response, b.response)) for a, b in pairs)


@pytest.mark.parametrize("k", [2, 3, 5, 9])
def test_all_pairs_of_a_ranking_weigh_one_together(k: int) -> None:
    pairs = pairs_from_ranking("p", [str(i) for i in range(k)], list(range(1, k + 1)))
    assert len(pairs) == math.comb(k, 2)
    assert all(int(p.chosen) < int(p.rejected) for p in pairs)
    assert sum(p.weight for p in pairs) == pytest.approx(1, abs=1e-12)
    assert {p.weight for p in pairs} == {1 / math.comb(k, 2)}


def test_weighted_pairs_have_the_k_wise_loss() -> None:
    scores, ranking = torch.randn(4, dtype=torch.float64), [3, 1, 4, 1]
    pairs = pairs_from_ranking("p", ["0", "1", "2", "3"], ranking)
    loss = bradley_terry_loss(
        torch.stack([scores[int(p.chosen)] for p in pairs]),
        torch.stack([scores[int(p.rejected)] for p in pairs]),
        weight=torch.tensor([p.weight for p in pairs], dtype=torch.float64),
    )
    assert loss.item() == pytest.approx(kwise_loss(scores, torch.tensor(ranking)).item(), abs=1e-12)


def test_equal_ranks_and_equal_texts_make_no_pair() -> None:
    pairs = pairs_from_ranking("p", ["a", "b", "a"], [1, 1, 2])
    assert [(p.chosen, p.rejected, p.weight) for p in pairs] == [("b", "a", 1.0)]
    assert pairs_from_ratings("p", ["a", "b"], [2.0, 2.0]) == []


def test_prompts_share_a_group_with_themselves_alone() -> None:
    first, again, other = (pairs_from_ratings(prompt, ["a", "b"], [1, 2])[0].group for prompt in ("p", "p", "q"))
    assert first == again != other


@pytest.mark.parametrize("ranking", [[1, 2.5], [1, True], [1, -1], [1, "2"]])
def test_ranks_are_whole_numbers_from_1(ranking: list[int]) -> None:
    with pytest.raises(ValueError, match="1 for the best, got"):
        pairs_from_ranking("p", ["a", "b"], ranking)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pairs_are_of_one_prompt_and_of_different_responses(strategy: PairingStrategy) -> None:
    mixed = [c for pair in zip(candidates("p", 6), candidates("q", 6), strict=True) for c in pair]
    pairs = choose_pairs(mixed + candidates("p", 6), strategy)
    assert {a.prompt for a, _ in pairs} == {"p", "q"}
    assert all(a.prompt == b.prompt and a.response != b.response and a.source == "sft" for a, b in pairs)
    assert set(met(pairs).values()) == {1}


@pytest.mark.parametrize("k", range(2, 12))
def test_numbers_of_pairs(k: int) -> None:
    pool, rounds = candidates("p", k), math.ceil(math.log2(k))
    assert len(choose_pairs(pool, "all")) == math.comb(k, 2)
    random = choose_pairs(pool, "random")
    assert len(random) == k // 2
    assert len({c.response for pair in random for c in pair}) == 2 * (k // 2)
    tournament = choose_pairs(pool, "tournament")
    assert len(tournament) == rounds * (k // 2)
    matches = Counter(c.response for pair in tournament for c in pair)
    assert set(matches.values()) <= ({rounds} if k % 2 == 0 else {rounds - 1, rounds})


def test_repeated_responses_are_left_out_and_a_lone_one_gives_no_pair() -> None:
    repeated = [Candidate("p", "a", "x"), Candidate("p", "a", "y"), Candidate("p", "b")]
    ((first, second),) = choose_pairs(repeated, "all")
    assert {first, second} == {Candidate("p", "a", "x"), Candidate("p", "b")}
    assert all(choose_pairs(repeated[:2], strategy) == [] for strategy in STRATEGIES)
    assert all(choose_pairs([], strategy) == [] for strategy in STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_seeds(strategy: PairingStrategy) -> None:
    pool = candidates("p", 8)
    assert choose_pairs(pool, strategy, seed=3) == choose_pairs(pool, strategy, seed=3)
    assert choose_pairs(pool, strategy, seed=3) != choose_pairs(pool, strategy, seed=4)


def test_who_comes_first_tells_nothing() -> None:
    """Of 4,950 pairs about half have the earlier candidate first; within 4 standard errors."""
    pairs = choose_pairs(candidates("p", 100), "all")
    earlier_first = sum(int(a.response[1:]) < int(b.response[1:]) for a, b in pairs)
    assert abs(earlier_first - len(pairs) / 2) < 4 * math.sqrt(len(pairs)) / 2


def test_unknown_strategy() -> None:
    with pytest.raises(ValueError, match="got 'best'"):
        choose_pairs([], "best")  # type: ignore[arg-type]
