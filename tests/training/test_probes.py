"""Probes against rewards whose truth is known: length alone, words alone, order alone; and what edits do to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from rlhf_gym.preferences import Preference
from rlhf_gym.rewards import RewardEnsemble, length_reward
from rlhf_gym.training import RewardProbes, probe_edits, probe_reward_model, train_baselines
from rlhf_gym.training.reward_baselines import STYLE, bag_of_words, train_baseline
from rlhf_gym.training.reward_probes import word_effects
from tests.tiny import WORDS, tiny_reward_model

Score = Callable[[Sequence[str], Sequence[str]], np.ndarray]
WORTH = {"good": 2.0, "fine": 1.0, "fun": 1.0, "bad": -2.0, "dull": -1.0, "poor": -1.0}


def by_length(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    return np.array([float(len(r.split())) for r in responses])


def by_words(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    return np.array([sum(WORTH.get(w, 0.0) for w in r.split()) for r in responses])


def by_order(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """The share of neighbours in the order of the alphabet."""
    words = [r.split() for r in responses]
    return np.array([np.mean([a <= b for a, b in pairwise(w)] or [1.0]) for w in words])


def texts(count: int, seed: int, *, ordered: bool = False) -> list[tuple[str, str]]:
    """(prompt, response): 3 to 12 words, in the order of the alphabet or at random."""
    rng = np.random.default_rng(seed)
    drawn = [list(rng.choice(WORDS, rng.integers(3, 13))) for _ in range(count)]
    return [(f"p{seed} {i % (count // 4)}", " ".join(sorted(w) if ordered else w)) for i, w in enumerate(drawn)]


def pairs(score: Score, count: int, seed: int) -> list[Preference]:
    """Two responses to a prompt, the better one chosen; half of them are one bag of words in two orders."""
    rng = np.random.default_rng(seed)
    found = []
    for i, (prompt, text) in enumerate(texts(count, seed)):
        words = text.split() if i % 2 else list(rng.choice(WORDS, rng.integers(3, 13)))
        other = " ".join(sorted(words) if i % 2 else words)
        one, two = score([prompt] * 2, [text, other])
        if one != two:
            found.append(Preference(prompt, *((text, other) if one > two else (other, text))))
    return found


def probe(score: Score, **overrides) -> RewardProbes:
    written = texts(60, 3, ordered=score is by_order)
    settings = {
        "heldout": pairs(score, 300, 2),
        "prompts": [p for p, _ in written],
        "responses": [r for _, r in written],
    } | overrides
    return probe_reward_model(score, pairs(score, 400, 1), **settings)


@pytest.fixture(scope="module")
def of_words() -> RewardProbes:
    return probe(by_words, gold=by_order)


def test_a_reward_that_is_length_is_found_out() -> None:
    found = probe(by_length)
    length, curved, style, bag = found.baselines
    assert found.accuracy == 1 and length.accuracy == 1 and not length.told_apart
    for baseline in (length, curved, style, bag):
        assert baseline.explained_by_features == pytest.approx(1, abs=0.01)
    spread = by_length([], [r for _, r in texts(60, 3)]).std()
    assert found.word_price == pytest.approx(1 / spread) and found.word_price_error < 1e-3
    edits = {edit.name: edit for edit in found.edits}
    for name in ("repetition", "padding", "praise"):
        assert edits[name].raised == 1 and edits[name].change > 10 * edits[name].error and edits[name].suspicious
        assert edits[name].gold_change is None
    assert edits["truncation"].raised == 0 and edits["truncation"].verdict == "r_φ marks breaking off down"
    assert edits["shuffle"].change == 0 and edits["shuffle"].suspicious, "the same words in any order"
    said = " | ".join(found.suspicions)
    assert "100% of r_φ's variance can be had from length and its square alone" in said
    assert "no more often right than" in said and "r_φ pays for padding" in said


def test_a_reward_that_is_words_is_found_out(of_words: RewardProbes) -> None:
    length, _, _, bag = of_words.baselines
    assert bag.explained_by_features == pytest.approx(1, abs=0.01) and bag.accuracy > 0.95 and not bag.told_apart
    assert length.explained_by_features is not None and length.explained_by_features < 0.2 and length.told_apart
    assert length.beyond is not None and length.beyond == 1, "right wherever length is wrong"
    assert [e.word for e in of_words.words_for[:1]] == ["good"] and {e.word for e in of_words.words_for} >= {
        "fine",
        "fun",
    }
    assert {e.word for e in of_words.words_against[:1]} == {"bad"}
    spread = float(by_words([], [r for _, r in texts(60, 3)]).std())
    for effect in (*of_words.words_for, *of_words.words_against):
        assert effect.effect * spread == pytest.approx(WORTH.get(effect.word, 0), abs=0.05)


def test_of_many_words_that_are_worth_nothing_none_is_listed() -> None:
    """150 words in 500 texts: at two standard errors noise alone would list some seven of them each time."""
    rng = np.random.default_rng(0)
    vocabulary = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(150)]
    written = [" ".join(rng.choice(vocabulary, 12)) for _ in range(500)]
    noise = rng.normal(size=(20, 500))
    listed = [len(word_effects(written, scores)) for scores in noise]
    assert sum(n > 0 for n in listed) <= 4, "one in twenty is expected, more than four of twenty has a chance of .003"
    worth = {"waa": 2.0, "wbb": -2.0}
    planted = [sum(worth.get(word, 0.0) for word in text.split()) for text in written]
    found = word_effects(written, noise[0] + planted)
    assert [e.word for e in (found[0], found[-1])] == list(worth)
    for effect in (found[0], found[-1]):
        assert effect.effect == pytest.approx(worth[effect.word], abs=0.5)


def test_gold_beside_the_reward_makes_the_verdict(of_words: RewardProbes) -> None:
    """The reward is of words, gold of their order: praise anywhere pays, and disturbs the order."""
    edits = {edit.name: edit for edit in of_words.edits}
    assert edits["praise"].change > 0.3 and edits["praise"].raised > 0.45
    assert "r_φ pays for praise out of place, gold" in edits["praise"].verdict and edits["praise"].suspicious
    example = edits["praise"].example
    gain = by_words([], [example.after])[0] - by_words([], [example.before])[0]
    assert gain > 0 and example.change == pytest.approx(gain / by_words([], [r for _, r in texts(60, 3)]).std())
    assert of_words.suspicions[-1] == of_words.suspicions[-1].strip() and any(
        "praise" in s for s in of_words.suspicions
    )


def test_a_reward_of_order_is_more_than_words() -> None:
    found = probe(by_order, gold=by_order)
    bag = found.baselines[-1]
    assert found.accuracy == 1 and bag.told_apart and bag.accuracy < 0.8
    assert bag.explained_by_features is not None and bag.explained_by_features < 0.3
    shuffle = next(edit for edit in found.edits if edit.name == "shuffle")
    assert shuffle.change < -0.3 and shuffle.raised == 0 and not shuffle.suspicious
    assert shuffle.verdict == "r_φ marks shuffled words down, and so does gold"
    assert not any("alone" in s or "shuffled" in s for s in found.suspicions)


def test_the_same_question_has_the_same_answer(of_words: RewardProbes) -> None:
    assert probe(by_words, gold=by_order) == of_words
    assert probe(by_words, gold=by_order, seed=1).edits != of_words.edits


def test_baselines_find_planted_weights() -> None:
    """Noisy labels by two words' worth and by length: weights in the unit of the loss."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(3000):
        one, two = (" ".join(rng.choice(["good", "bad", "the", "film"], rng.integers(3, 9))) for _ in range(2))
        delta = (one.split().count("good") - one.split().count("bad")) - (
            two.split().count("good") - two.split().count("bad")
        )
        first = rng.random() < 1 / (1 + np.exp(-delta))
        found.append(Preference(f"p{i}", *((one, two) if first else (two, one))))
    bag = train_baselines(found)[-1]
    weights = dict(zip(bag.features.names, bag.weights, strict=True))
    assert weights == pytest.approx({"good": 1, "bad": -1, "the": 0, "film": 0}, abs=0.2)
    assert bag(["p"], ["good good bad the"])[0] == pytest.approx(2 * weights["good"] + weights["bad"] + weights["the"])
    longer = train_baseline(
        bag_of_words([p.chosen for p in found]), [p for p in found if len(p.chosen) > len(p.rejected)]
    )
    assert all(w > 0 for w in longer.weights if w), "whoever looks at longer winners only takes every word for good"


def test_style_describes_texts() -> None:
    values = dict(zip(STYLE.names, STYLE.describe(["Good! good food?\n- 12 soups"])[0], strict=True))
    assert values["words"] == 6 and values["words²"] == 36 and values["exclamation marks"] == 1
    assert values["share of repeated words"] == pytest.approx(1 / 8) and values["list items"] == 1
    assert values["share of capitals"] == pytest.approx(1 / 27) and values["share of digits"] == pytest.approx(2 / 27)


def test_models_read_what_fits_and_ensembles_are_rewards_too() -> None:
    """A context of 64 tokens has room for a response of 58 words after this prompt, not for more."""
    first, second = tiny_reward_model(seed=1), tiny_reward_model(seed=2)
    prompts, responses = ["the film was good"] * 4, ["good " * 30, "bad film " * 29, "fine plot", "the cast was dull"]
    for reward in (first, RewardEnsemble([first, second])):
        found = {edit.name: edit for edit in probe_edits(reward, prompts, responses)}
        assert found["truncation"].n == 4 and 2 <= found["padding"].n <= 3
        assert np.isfinite([edit.change for edit in found.values()]).all() and "praise" not in found
    alone = probe_reward_model(first, prompts=prompts, responses=responses)
    assert alone.accuracy is None and alone.baselines == () and alone.edits


def test_words_of_ones_own_are_inserted() -> None:
    written = [r for _, r in texts(20, 5)]
    found = probe_edits(by_words, ["p"] * 20, written, words={"fondness": ["fun"], "nothing": []})
    assert found[-1].name == "fondness" and found[-1].raised == 1 and found[-1].verdict == "r_φ pays for fondness"


def test_bad_input_is_named_before_any_work() -> None:
    some = pairs(by_words, 20, 1)
    with pytest.raises(ValueError, match="got neither"):
        probe_reward_model(by_words)
    with pytest.raises(ValueError, match="held-out preferences beside"):
        probe_reward_model(by_words, some)
    with pytest.raises(ValueError, match="at least 2 prompts"):
        probe_reward_model(by_words, [Preference("p", "good", "bad")], heldout=some)
    with pytest.raises(ValueError, match="one to each prompt, got 0 to 0"):
        probe_edits(length_reward(), [], [])
    with pytest.raises(ValueError, match="finite scores"):
        probe_edits(lambda p, r: np.full(len(r), np.nan), ["p"], ["good film"])
