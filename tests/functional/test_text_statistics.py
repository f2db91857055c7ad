"""Repetition, correlation and shares of a sum, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from rlhf_gym.functional import distinct_n, longest_repeat, ngrams, repetition, spearman, token_shares


def test_ngrams_and_distinct_n():
    assert ngrams("abca", 2) == [("a", "b"), ("b", "c"), ("c", "a")]
    assert ngrams([1, 2], 3) == []
    # a b a b | b a: pairs ab ba ab ba, two distinct of four; single tokens 2 of 6
    assert distinct_n([list("abab"), list("ba")], 2) == 2 / 4
    assert distinct_n([list("abab"), list("ba")], 1) == 2 / 6
    assert distinct_n([], 2) == distinct_n([["a"]], 2) == 0
    with pytest.raises(ValueError, match="expected n >= 1, got 0"):
        ngrams("abc", 0)


def test_repetition():
    # the the the cat: pairs (the the) (the the) (the cat): one of three was there before
    assert repetition(["the", "the", "the", "cat"], 2) == pytest.approx(1 / 3)
    assert repetition([7] * 9, 3) == pytest.approx(6 / 7)
    assert repetition([1, 2, 3], 2) == repetition([1], 2) == repetition([], 1) == 0


def test_longest_repeat():
    assert longest_repeat(["the", "cat", "and", "the", "cat", "sat"]) == 2
    assert longest_repeat([1, 1, 1, 1]) == 3  # overlapping
    assert longest_repeat([1, 2, 3]) == longest_repeat([]) == longest_repeat([5]) == 0
    assert longest_repeat([4, 1, 2, 3, 9, 1, 2, 3, 8, 2, 3]) == 3
    rng = np.random.default_rng(0)
    for _ in range(30):
        tokens = rng.integers(0, 3, rng.integers(2, 20)).tolist()
        repeated = [k for k in range(1, len(tokens)) if len(set(ngrams(tokens, k))) < len(tokens) - k + 1]
        by_trying = max(repeated, default=0)
        assert longest_repeat(tokens) == by_trying


def test_rank_correlation():
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3])) and math.isnan(spearman([1], [1]))
    with pytest.raises(ValueError, match=r"one shape \(n,\), got \(2,\) and \(3,\)"):
        spearman([1, 2], [1, 2, 3])
    assert spearman([1, 2, 3, 4], [1, 8, 27, 1000]) == pytest.approx(1)
    # ranks 1 2 3 4 and, with the tie at its mean, 1.5 1.5 3 4: covariance 4.5, variances 5 and 4.5
    assert spearman([1, 2, 3, 4], [5, 5, 6, 7]) == pytest.approx(4.5 / math.sqrt(5 * 4.5))


def test_token_shares():
    shares = token_shares([7, 3, 7, 5], [0.5, 1.5, 1.5, -0.5])
    assert [(s.token, s.occurrences, s.total) for s in shares] == [(7, 2, 2.0), (3, 1, 1.5), (5, 1, -0.5)]
    assert [s.share for s in shares] == pytest.approx([2 / 3, 0.5, -1 / 6])
    assert math.isnan(token_shares([1, 2], [1.0, -1.0])[0].share)
    with pytest.raises(ValueError, match="tokens and values of one shape"):
        token_shares([1, 2], [1.0])
