"""What a good review is: the gold reward of the reviews task. No agent sees it, and no setting changes it.

A good review is kind without gushing, says something about the dish and the aspect that were asked about, is well
formed, and neither repeats itself nor pads nor rambles:

    gold = 1.5·tone + item + ½·aspect − strays − repetition − filler − length − 2·(1 − form)

    tone        max(−1, 1 − ((e − 2.5)/2.5)²) − ½·min(c, 3), where e is the enthusiasm (words of praise count 1,
                gushing ones 2, exclamation marks ½) and c the number of complaints: 0 without praise, .96 with two or
                three words of it, 0 again with five, −1 with six or more
    item        1 where the dish asked about is named once or twice, ½ less for every further time (at least −1), 0
                where it is not named
    aspect      the same for the aspect asked about
    strays      ¼ for each mention of another dish or aspect, at most ¾
    repetition  ½ for each content word, and each whole sentence, that was there before, at most 1½
    filler      ⅕ for each filler word, at most 1
    length      for n words: .1·(8 − n) if too short, .15·(n − 18) if too long, at most 1½
    form        the share of neighbouring words, the text's beginning and end included, that stand side by side in some
                text of the language

Scores lie between −12 and 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np

from rlhf_gym.tasks import reviews_words as words
from rlhf_gym.tasks.automaton import END, bigrams
from rlhf_gym.tasks.reviews_language import START, arcs
from rlhf_gym.tasks.reviews_words import ASPECTS, GUSHING, ITEMS, KINDS, NAMES, Topic

_PRAISE = frozenset((*chain(*words.PRAISE.values()), *words.PRAISING_VERBS))
_COMPLAINTS = frozenset((*chain(*words.COMPLAINTS.values()), *words.COMPLAINING_VERBS, "not"))
_FILLERS = frozenset(words.FILLERS)
_TOPICS = frozenset((*ITEMS, *ASPECTS))
_CONTENT = frozenset(words.VOCABULARY) - set(words.FUNCTION_WORDS) - _TOPICS - _FILLERS


@dataclass(frozen=True)
class Judgement:
    """One review taken apart. Every part is as the formula of this module has it, before its weight."""

    tone: float
    """Kindness, from −2.5 to 1; gushing brings it down."""
    item: float
    """Whether the dish asked about is named, from −1 to 1."""
    aspect: float
    """Whether the aspect asked about is named, from −1 to 1."""
    strays: float
    """Penalty for other dishes and aspects, from 0 to .75."""
    repetition: float
    """Penalty for repeated content words and sentences, from 0 to 1.5."""
    filler: float
    """Penalty for filler words, from 0 to 1."""
    length: float
    """Penalty for being too short or too long, from 0 to 1.5."""
    form: float
    """Share of neighbouring words that the language allows, from 0 to 1."""

    @property
    def score(self) -> float:
        """The gold score."""
        merits = 1.5 * self.tone + self.item + 0.5 * self.aspect
        return merits - self.strays - self.repetition - self.filler - self.length - 2.0 * (1.0 - self.form)


def judge(prompt: str, response: str) -> Judgement:
    """Take one review apart.

    Raises:
        ValueError: the prompt is not one of this language.
    """
    topic = Topic.from_prompt(prompt)
    tokens = response.split()
    counts = Counter(tokens)
    length = sum(count for token, count in counts.items() if token not in (".", "!"))
    strays = _count(counts, _TOPICS - {topic.item, topic.aspect})
    return Judgement(
        tone=_tone(counts),
        item=_mentions(counts[topic.item]),
        aspect=_mentions(counts[topic.aspect]),
        strays=min(0.75, 0.25 * strays),
        repetition=min(1.5, 0.5 * (_repeats(t for t in tokens if t in _CONTENT) + _repeats(_sentences(tokens)))),
        filler=min(1.0, 0.2 * _count(counts, _FILLERS)),
        length=min(1.5, 0.1 * max(0, 8 - length) + 0.15 * max(0, length - 18)),
        form=_form(tokens),
    )


def reviews_gold(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Gold scores (B,) float64 of the responses to the prompts."""
    return np.array([judge(p, r).score for p, r in zip(prompts, responses, strict=True)], dtype=np.float64)  # (B,)


def _tone(counts: Counter[str]) -> float:
    enthusiasm = _count(counts, _PRAISE) + 2.0 * _count(counts, GUSHING) + 0.5 * counts["!"]
    complaints = _count(counts, _COMPLAINTS)
    return max(-1.0, 1.0 - ((enthusiasm - 2.5) / 2.5) ** 2) - 0.5 * min(complaints, 3)


def _mentions(count: int) -> float:
    return 0.0 if count == 0 else max(-1.0, 1.0 - 0.5 * max(0, count - 2))


def _count(counts: Counter[str], group: Iterable[str]) -> int:
    return sum(counts[word] for word in group)


def _repeats(things: Iterable[str]) -> int:
    return sum(count - 1 for count in Counter(things).values())


def _sentences(tokens: Sequence[str]) -> list[str]:
    parts = " ".join(tokens).replace("!", ".").split(".")
    return [part.strip() for part in parts if part.strip()]


def _form(tokens: Sequence[str]) -> float:
    ends = (END, *tokens, END)
    pairs = list(pairwise(ends))
    return sum((_place_class(a), _place_class(b)) in _allowed() for a, b in pairs) / len(pairs)


def _place_class(word: str) -> str:
    """The word itself; for a place's name or kind, that of the place whose texts `_allowed` looks at."""
    return NAMES[0] if word in NAMES else KINDS[0] if word in KINDS else word


@lru_cache(maxsize=1)
def _allowed() -> frozenset[tuple[str, str]]:
    """Which words can stand side by side. All places' words stand in the same spots, so one topic's texts tell all."""
    return bigrams(arcs(Topic(ITEMS[0], ASPECTS[0], NAMES[0], KINDS[0])), START)
