"""The language of reviews: its probabilities are exact."""

import math
from dataclasses import replace

import numpy as np
import pytest

from rlhf_gym.tasks import automaton, reviews_task
from rlhf_gym.tasks.automaton import END, Arc, bigrams, extent, reachable, sample
from rlhf_gym.tasks.reviews_language import REVIEW, START, arcs
from rlhf_gym.tasks.reviews_words import (
    ASPECTS,
    COMPLAINTS,
    DAYS,
    GUSHING,
    HEADINGS,
    ITEMS,
    PLAIN,
    PRAISE,
    VOCABULARY,
    Topic,
)

SOUP = Topic("soup", "service", "harbour", "cafe")
CAKE = Topic("cake", "view", "mill", "inn")
ONE_SENTENCE = replace(REVIEW, stop=(1.0,), opener=0.0, degree=0.0)


def log_prob(arcs_of: automaton.Arcs, start: object, words: list[str]) -> float:
    """Log-probability of the text, its end included; −inf for a text that is not in the language."""
    total = 0.0
    state = start
    for word in (*words, END):
        arc = next((arc for arc in arcs_of(state) if arc.word == word), None)
        if arc is None or arc.probability == 0.0:
            return -math.inf
        total += math.log(arc.probability)
        state = arc.target
    return total


def texts(arcs_of: automaton.Arcs, state: object) -> list[tuple[list[str], float]]:
    """Every text from `state` on, with its probability, by brute force."""
    found = []
    for word, probability, target in arcs_of(state):
        if word == END:
            found.append(([], probability))
        else:
            found += [([word, *rest], probability * p) for rest, p in texts(arcs_of, target)]
    return found


def test_coin_automaton_by_hand():
    """Heads ends (¼); tails goes on (¾) and then must end: H = H(¼) = .5623, E[length] = ¼·2 + ¾·2."""

    def coin(state):
        return [Arc("heads", 0.25, 1), Arc("tails", 0.75, 1)] if state == 0 else [Arc(END, 1.0, 1)]

    assert extent(coin, 0) == pytest.approx((2.0, 0.5623351), abs=1e-6)
    assert log_prob(coin, 0, ["tails"]) == pytest.approx(math.log(0.75))
    assert log_prob(coin, 0, ["tails", "tails"]) == -math.inf
    assert log_prob(coin, 0, []) == -math.inf
    assert bigrams(coin, 0) == {(END, "heads"), (END, "tails"), ("heads", END), ("tails", END)}
    drawn = [sample(coin, 0, np.random.default_rng(seed)) for seed in range(400)]
    assert abs(sum(words == ["tails"] for words in drawn) / 400 - 0.75) < 0.08


@pytest.mark.parametrize("topic", [SOUP, CAKE])
def test_probabilities_of_all_texts_sum_to_one(topic):
    arcs_of = arcs(topic, ONE_SENTENCE)
    everything = texts(arcs_of, START)
    assert len({" ".join(words) for words, _ in everything}) == len(everything) > 1000  # one derivation each
    assert sum(p for _, p in everything) == pytest.approx(1.0, abs=1e-12)
    for words, p in everything[::97]:
        assert log_prob(arcs_of, START, words) == pytest.approx(math.log(p), abs=1e-9)
    length, entropy = extent(arcs_of, START)
    assert entropy == pytest.approx(-sum(p * math.log(p) for _, p in everything), abs=1e-9)
    assert length == pytest.approx(sum(p * (len(words) + 1) for words, p in everything), abs=1e-9)


def test_every_state_is_deterministic_and_normalised():
    for choices in reachable(arcs(SOUP), START).values():
        assert sum(arc.probability for arc in choices) == pytest.approx(1.0, abs=1e-9)
        assert len({arc.word for arc in choices}) == len(choices)


def test_samples_agree_with_entropy_and_length():
    rng = np.random.default_rng(1)
    arcs_of = arcs(CAKE)
    drawn = [sample(arcs_of, START, rng) for _ in range(2000)]
    surprise = np.array([-log_prob(arcs_of, START, words) for words in drawn])
    lengths = np.array([len(words) + 1 for words in drawn])
    length, entropy = extent(arcs_of, START)
    assert abs(surprise.mean() - entropy) < 4 * surprise.std() / math.sqrt(2000)
    assert abs(lengths.mean() - length) < 4 * lengths.std() / math.sqrt(2000)
    assert lengths.max() <= 28


def test_the_language_is_the_same_about_every_topic():
    expected = extent(arcs(SOUP), START)
    assert extent(arcs(CAKE), START) == pytest.approx(expected, abs=1e-9)


def test_texts_outside_the_language():
    arcs_of = arcs(SOUP)
    assert log_prob(arcs_of, START, ["the", "soup", "was", "tasty", "."]) > -20
    for text in (
        "the soup was tasty",
        "soup was tasty .",
        "the soup was friendly .",  # of a person, not of a dish
        "the soup was good and good .",
        "we came to the mill cafe .",  # not the place asked about
        "the soup was tasty . " * 4,
    ):
        assert log_prob(arcs_of, START, text.split()) == -math.inf, text


def test_every_demonstration_is_in_the_language():
    for demonstration in reviews_task(num_heldout_demonstrations=100).heldout_demonstrations:
        topic = Topic.from_prompt(demonstration.prompt)
        assert math.isfinite(log_prob(arcs(topic), START, demonstration.response.split()))


def test_every_tone_and_few_extremes():
    rng = np.random.default_rng(0)
    praise = {word for words in PRAISE.values() for word in words} | set(GUSHING)
    complaints = {word for words in COMPLAINTS.values() for word in words}
    drawn = [sample(arcs(SOUP), START, rng) for _ in range(1500)]
    count = np.array([sum(word in praise for word in words) for words in drawn])
    assert np.mean(count >= 1) > 0.3
    assert np.mean(count >= 5) < 0.01
    assert np.mean([any(word in complaints for word in words) for words in drawn]) > 0.25
    assert np.mean([any(word in PLAIN for word in words) for words in drawn]) > 0.2
    assert 0.4 < np.mean(["soup" in words for words in drawn]) < 0.9
    assert 0.2 < np.mean(["service" in words for words in drawn]) < 0.8
    assert any(day in words for words in drawn for day in DAYS)


def test_prompts_and_topics():
    for heading in HEADINGS:
        assert Topic.from_prompt(SOUP.prompt(heading)) == SOUP
    for prompt in ("", "review of the soup :", SOUP.prompt().replace("soup", "shoe"), SOUP.prompt("essay on")):
        with pytest.raises(ValueError, match="expected a prompt like 'review of the soup and the service"):
            Topic.from_prompt(prompt)


def test_vocabulary():
    assert len(VOCABULARY) == len(set(VOCABULARY))
    assert 120 <= len(VOCABULARY) <= 220
    known = set(VOCABULARY)
    assert {arc.word for choices in reachable(arcs(CAKE), START).values() for arc in choices} - {END} <= known
    assert {*ITEMS, *ASPECTS} <= known
    assert all(set(CAKE.prompt(heading).split()) <= known for heading in HEADINGS)
