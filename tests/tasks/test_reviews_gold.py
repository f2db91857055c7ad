"""The gold reward of the reviews task, one dimension at a time."""

import numpy as np
import pytest

from rlhf_gym.tasks import reviews_language as language
from rlhf_gym.tasks import reviews_words
from rlhf_gym.tasks.reviews_gold import judge, reviews_gold

PROMPT = "review of the soup and the service at the harbour cafe :"
GOOD = "the soup was very tasty . the service was kind and quick ."


def score(response: str) -> float:
    return float(reviews_gold([PROMPT], [response])[0])


def test_a_good_review_by_hand():
    """Three words of praise: tone 1 − (.5/2.5)² = .96; both topics, eleven words, all in order: 1.44 + 1 + ½."""
    assert score(GOOD) == pytest.approx(2.94)


def test_a_poor_review_by_hand():
    """e=0, c=2: tone −1; a stray; 7 words: −.1; `cold` twice: −½. −1.5 − .25 − .5 − .1 = −2.35."""
    assert score("the tea was cold . it was cold .") == pytest.approx(-2.35)


def test_tone_rises_and_falls_with_praise():
    tones = [judge(PROMPT, " ".join(reviews_words.PRAISE["any"][:n])).tone for n in range(5)]
    assert tones == pytest.approx([0.0, 0.64, 0.96, 0.96, 0.64])
    more = [judge(PROMPT, "good " * n).tone for n in (5, 6, 7, 20)]
    assert more == pytest.approx([0.0, -0.96, -1.0, -1.0])


@pytest.mark.parametrize(
    ("worse", "part"),
    [
        (GOOD.replace("tasty", "superb").replace("kind and quick", "perfect and divine"), "tone"),
        (GOOD.replace("tasty", "bland"), "tone"),
        (GOOD.replace("tasty", "fine").replace("kind and quick", "average"), "tone"),
        (GOOD.replace("soup", "cake"), "item"),
        (GOOD + " the soup was fine . we had the soup .", "item"),
        (GOOD.replace("service", "price"), "aspect"),
        (GOOD + " we had the pasta .", "strays"),
        (GOOD.replace("kind", "tasty"), "repetition"),
        (GOOD + " the service was kind and quick .", "repetition"),
        ("well " + GOOD, "filler"),
        (GOOD + " you know how it goes .", "filler"),
        ("the soup was good .", "length"),
        (GOOD + " we came on a sunday . we had the soup . i would come back .", "length"),
        (GOOD.replace("the soup was", "soup the was"), "form"),
        (GOOD.removesuffix(" ."), "form"),
    ],
)
def test_each_fault_lowers_its_part_and_the_score(worse, part):
    good, bad = judge(PROMPT, GOOD), judge(PROMPT, worse)
    penalty = part in ("strays", "repetition", "filler", "length")
    assert getattr(bad, part) > getattr(good, part) if penalty else getattr(bad, part) < getattr(good, part)
    assert bad.score < good.score


def test_too_much_praise_is_worse_than_none():
    plain = "the soup was fine . the service was average ."
    for extreme in ("tasty " * 30, "what a perfect soup ! " * 6, "superb divine perfect heavenly stunning flawless"):
        assert score(extreme) < score(plain) - 2


def test_score_is_bounded():
    rng = np.random.default_rng(0)
    words = np.array(reviews_words.VOCABULARY)
    texts = [" ".join(rng.choice(words, size=n)) for n in rng.integers(0, 60, size=300)]
    texts += ["", "the " * 40, "awful " * 40, "soup service " * 20, "<unk> <unk>"]
    scores = reviews_gold([PROMPT] * len(texts), texts)
    assert scores.shape == (len(texts),)
    assert np.isfinite(scores).all()
    assert scores.min() >= -12
    assert scores.max() <= 3


def test_every_text_of_the_language_is_well_formed():
    rng = np.random.default_rng(0)
    for item, aspect, name, kind in (("soup", "service", "harbour", "cafe"), ("cake", "view", "mill", "inn")):
        topic = reviews_words.Topic(item, aspect, name, kind)
        for _ in range(200):
            text = " ".join(language.sample_words(topic, language.REVIEW, rng))
            assert judge(topic.prompt(), text).form == 1.0


def test_the_place_does_not_matter():
    other = PROMPT.replace("harbour cafe", "mill inn")
    assert judge(other, GOOD) == judge(PROMPT, GOOD)


def test_a_strange_prompt():
    with pytest.raises(ValueError, match=r"expected a prompt like .*, got 'tell me'"):
        reviews_gold(["tell me"], [GOOD])
    with pytest.raises(ValueError, match="zip"):
        reviews_gold([PROMPT], [GOOD, GOOD])
