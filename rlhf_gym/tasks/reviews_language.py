"""The language of restaurant reviews: a grammar that gives every text an exact probability.

A text has a few short sentences (`the soup was very tasty . the service was kind and quick . i would come back .`).
A `Style` says how often what happens: `REVIEW` is the style of the demonstrations, the others are those of the other
registers that a small language model is pretrained on. All styles write the same kinds of sentences.

FROZEN: the shipped models (`data/reviews`) were trained on this language, and figures were measured with them. Whoever
changes a probability here runs `scripts/models/build_reviews.py` and measures everything again.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from rlhf_gym.tasks.automaton import END, Arc, Arcs, sample
from rlhf_gym.tasks.reviews_words import (
    ASPECTS,
    COMPLAINING_VERBS,
    COMPLAINTS,
    DAYS,
    DEGREES,
    FILLER_SENTENCES,
    GUSHING,
    HEADINGS,
    ITEMS,
    OPENERS,
    PLAIN,
    PLAIN_VERBS,
    PRAISE,
    PRAISING_VERBS,
    Topic,
)


@dataclass(frozen=True)
class Style:
    """How often each turn is taken in a text. Weights of one choice are relative to one another."""

    tones: tuple[float, float, float]
    """Probabilities of complaint, plain statement and praise, where nothing has set a tone yet."""
    persistence: float
    """Probability that a judgement keeps the tone of the one before, over and above what `tones` gives."""
    stop: tuple[float, ...]
    """Probability of ending after one, two, … sentences, while nothing asked about has been named. The last is 1."""
    unsaid: tuple[float, float, float]
    """Factors on the probability of going on, with none, one and both of what was asked about named."""
    subjects: tuple[float, float, float, float]
    """Weights of naming the dish asked about, the aspect asked about, some other dish, some other aspect."""
    again: float
    """Factor on the weight of what was asked about, once it has been named."""
    clause: float
    """Weight of `the soup was (very) tasty (and rich) .`, with `it` for a dish just named."""
    liking: float
    """Weight of `i enjoyed the soup .`"""
    ordering: float
    """Weight of `we had the soup .`"""
    arrival: float
    """Weight of `we came to the harbour cafe .` and `we came on a sunday .`"""
    exclamation: float
    """Weight of `what a perfect soup !`"""
    return_visit: float
    """Weight of `i would (not) come back .`, which ends a text; never its first sentence."""
    filler_sentence: float
    """Weight of `you know how it goes .` and its like."""
    opener: float
    """Probability that a sentence opens with `well`, `anyway`, …"""
    degree: float
    """Probability of `very`, `quite`, … before an adjective."""
    second_adjective: float
    """Probability of a second adjective of the same tone."""
    gushing: float
    """Probability that an adjective of praise is one of `GUSHING`."""


REVIEW = Style(
    tones=(0.40, 0.28, 0.32),
    persistence=0.45,
    stop=(0.05, 0.3, 1.0),
    unsaid=(1.0, 0.75, 0.15),
    subjects=(0.46, 0.28, 0.14, 0.12),
    again=0.1,
    clause=0.66,
    liking=0.10,
    ordering=0.06,
    arrival=0.09,
    exclamation=0.01,
    return_visit=0.12,
    filler_sentence=0.05,
    opener=0.08,
    degree=0.25,
    second_adjective=0.18,
    gushing=0.05,
)
"""The style of the demonstrations: short, mixed in tone, mostly to the point."""
ADVERT = replace(
    REVIEW,
    tones=(0.01, 0.09, 0.90),
    stop=(0.0, 0.15, 0.5, 1.0),
    liking=0.12,
    ordering=0.02,
    exclamation=0.25,
    filler_sentence=0.01,
    opener=0.02,
    second_adjective=0.35,
    gushing=0.45,
)
"""The style of adverts: all praise."""
COMPLAINT = replace(REVIEW, tones=(0.85, 0.14, 0.01), stop=(0.02, 0.2, 0.6, 1.0), liking=0.16, again=0.8, degree=0.45)
"""The style of complaints."""
CHAT = replace(
    REVIEW,
    subjects=(0.2, 0.1, 0.4, 0.3),
    stop=(0.05, 0.3, 0.5, 1.0),
    ordering=0.15,
    arrival=0.2,
    filler_sentence=0.3,
    opener=0.35,
)
"""The style of small talk: filler, and seldom to the point."""


class _State(NamedTuple):
    slot: str = "sentence"
    """The place in the sentence that comes next."""
    sentence: int = 0
    """How many sentences are finished."""
    tone: int | None = None
    """Tone of the last judgement: −1, 0, 1; None before the first."""
    item_named: bool = False
    aspect_named: bool = False
    subject: str = ""
    """Whose adjectives fit: `dish` or an aspect; empty where there is no subject."""
    adjective: str = ""
    """The sentence's first adjective, not to be used twice in it."""


START = _State()
"""The state in which every text begins."""

_Choices = list[tuple[str, float, _State]]


def arcs(topic: Topic, style: Style = REVIEW) -> Arcs:
    """The texts about `topic` in `style`, as the automaton whose start is `START`."""
    anywhere = _arcs_anywhere(topic.item, topic.aspect, style)
    place = {"NAME": topic.name, "KIND": topic.kind}

    def arcs_of(state: Hashable) -> Sequence[Arc]:
        choices = anywhere(state)
        if len(choices) == 1 and choices[0].word in place:
            return (choices[0]._replace(word=place[choices[0].word]),)
        return choices

    return arcs_of


@lru_cache(maxsize=len(ITEMS) * len(ASPECTS) * len(HEADINGS))
def _arcs_anywhere(item: str, aspect: str, style: Style) -> Arcs:
    """The same for every place at once: `NAME` and `KIND` stand for its words."""
    language = _Language(item, aspect, style)

    @cache
    def arcs_of(state: _State) -> tuple[Arc, ...]:
        choices = [choice for choice in language.choices(state) if choice[1] > 0]
        total = sum(weight for _, weight, _ in choices)
        return tuple(Arc(word, weight / total, target) for word, weight, target in choices)

    return arcs_of  # type: ignore[return-value]


def sample_words(topic: Topic, style: Style, rng: np.random.Generator) -> list[str]:
    """The words of one text about `topic`."""
    return sample(arcs(topic, style), START, rng)


class _Language:
    """The grammar's rules: for every slot, the words that can stand there, with relative weights."""

    def __init__(self, item: str, aspect: str, style: Style) -> None:
        self.item = item
        self.aspect = aspect
        self.style = style
        self.slots = {
            "sentence": self.sentence,
            "opened": self.opening,
            "subject": self.subject,
            "verb": self.verb,
            "degree": self.degree,
            "adjective": self.adjective,
            "after adjective": self.after_adjective,
            "second adjective": self.second_adjective,
            "i": self.i_verb,
            "we": self.we_verb,
            "gush": self.gush,
        }

    def choices(self, state: _State) -> _Choices:
        if state.slot.startswith("rest: "):
            return self.rest(state)
        return self.slots[state.slot](state)

    def tone_probabilities(self, state: _State) -> dict[int, float]:
        base = dict(zip((-1, 0, 1), self.style.tones, strict=True))
        if state.tone is None:
            return base
        keep = self.style.persistence
        return {tone: (1 - keep) * p + keep * (tone == state.tone) for tone, p in base.items()}

    def sentence(self, state: _State) -> _Choices:
        """A new sentence, or the end of the text."""
        named = state.item_named + state.aspect_named
        go_on = (1.0 - self.style.stop[state.sentence - 1]) * self.style.unsaid[named] if state.sentence else 1.0
        choices: _Choices = [(END, 1.0 - go_on, state)]
        choices += [(word, go_on * self.style.opener / len(OPENERS), state._replace(slot="opened")) for word in OPENERS]
        plain = self.opening(state)
        share = go_on * (1.0 - self.style.opener) / sum(weight for _, weight, _ in plain)
        return choices + [(word, share * weight, target) for word, weight, target in plain]

    def opening(self, state: _State) -> _Choices:
        """The first word of a sentence proper."""
        style = self.style
        praise = self.tone_probabilities(state)[1]
        it = 0.4 if state.subject == "dish" else 0.0  # "it" is the dish of the sentence before
        new = state._replace(subject="", adjective="")
        choices: _Choices = [
            ("the", style.clause * (1 - it), new._replace(slot="subject")),
            ("it", style.clause * it, state._replace(slot="verb", adjective="")),
            ("we", style.ordering + style.arrival, new._replace(slot="we")),
            ("what", style.exclamation * praise, new._replace(slot="rest: a", tone=1)),
        ]
        return_visit = style.return_visit if state.sentence else 0.0
        choices.append(("i", style.liking + return_visit, new._replace(slot="i")))
        for text in FILLER_SENTENCES:
            first, rest = text.split(" ", 1)
            weight = style.filler_sentence / len(FILLER_SENTENCES)
            choices.append((first, weight, new._replace(slot=f"rest: {rest}")))
        return choices

    def subject(self, state: _State) -> _Choices:
        """What a clause is about, after `the`."""
        return [*self.dishes(state, "verb"), *self.aspects(state, "verb")]

    def dishes(self, state: _State, next_slot: str) -> _Choices:
        """The dish asked about, or another."""
        asked_weight, _, other_weight, _ = self.style.subjects
        asked_weight *= self.style.again if state.item_named else 1.0
        target = state._replace(slot=next_slot, subject="dish")
        choices: _Choices = [(self.item, asked_weight, target._replace(item_named=True))]
        return choices + [(word, other_weight / (len(ITEMS) - 1), target) for word in ITEMS if word != self.item]

    def aspects(self, state: _State, next_slot: str) -> _Choices:
        """The aspect asked about, or another."""
        _, asked_weight, _, other_weight = self.style.subjects
        asked_weight *= self.style.again if state.aspect_named else 1.0
        asked = state._replace(slot=next_slot, subject=self.aspect, aspect_named=True)
        choices: _Choices = [(self.aspect, asked_weight, asked)]
        return choices + [
            (word, other_weight / (len(ASPECTS) - 1), state._replace(slot=next_slot, subject=word))
            for word in ASPECTS
            if word != self.aspect
        ]

    def verb(self, state: _State) -> _Choices:
        after = state._replace(slot="degree")
        third = ("tasted", 0.2, after) if state.subject == "dish" else ("seemed", 0.2, after)
        return [("was", 0.8, after), third]

    def degree(self, state: _State) -> _Choices:
        degree = self.style.degree
        choices: _Choices = [(word, degree / len(DEGREES), state._replace(slot="adjective")) for word in DEGREES]
        return choices + [(word, (1 - degree) * weight, target) for word, weight, target in self.adjective(state)]

    def adjective(self, state: _State) -> _Choices:
        """The judgement itself. Its tone shows in the adjective."""
        after = state._replace(slot="after adjective")
        choices: _Choices = []
        for tone, probability in self.tone_probabilities(state).items():
            for word, weight in self.adjectives(tone, state.subject).items():
                choices.append((word, probability * weight, after._replace(tone=tone, adjective=word)))
        return choices

    def adjectives(self, tone: int, subject: str) -> dict[str, float]:
        """Probabilities of the adjectives of one tone."""
        if tone == 0:
            return dict.fromkeys(PLAIN, 1 / len(PLAIN))
        words = (PRAISE if tone > 0 else COMPLAINTS)["any"] + (PRAISE if tone > 0 else COMPLAINTS)[subject]
        gushing = self.style.gushing if tone > 0 else 0.0
        return {
            **dict.fromkeys(words, (1 - gushing) / len(words)),
            **(dict.fromkeys(GUSHING, gushing / len(GUSHING)) if tone > 0 else {}),
        }

    def after_adjective(self, state: _State) -> _Choices:
        second = self.style.second_adjective
        return [("and", second, state._replace(slot="second adjective")), (".", 1 - second, self.end(state))]

    def second_adjective(self, state: _State) -> _Choices:
        assert state.tone is not None
        words = self.adjectives(state.tone, state.subject)
        after = state._replace(slot="rest: .")
        return [(word, weight, after) for word, weight in words.items() if word != state.adjective]

    def i_verb(self, state: _State) -> _Choices:
        tones = self.tone_probabilities(state)
        choices: _Choices = []
        for tone, words in ((-1, COMPLAINING_VERBS), (0, PLAIN_VERBS), (1, PRAISING_VERBS)):
            weight = self.style.liking * tones[tone] / len(words)
            target = state._replace(slot="rest: the NOUN ." if tone else "rest: the DISH .", tone=tone)
            choices += [(word, weight, target) for word in words]
        weight = self.style.return_visit if state.sentence else 0.0
        return [*choices, ("would", weight, state._replace(slot="rest: VISIT"))]

    def we_verb(self, state: _State) -> _Choices:
        each = self.style.ordering / len(PLAIN_VERBS)
        choices: _Choices = [(word, each, state._replace(slot="rest: the DISH .")) for word in PLAIN_VERBS]
        return [*choices, ("came", self.style.arrival, state._replace(slot="rest: WHERE"))]

    def gush(self, state: _State) -> _Choices:
        return [(word, 1.0, state._replace(slot="rest: NOUN !")) for word in GUSHING]

    def rest(self, state: _State) -> _Choices:
        """What is left of a sentence that was settled earlier; capitals stand for another choice."""
        word, _, rest = state.slot.removeprefix("rest: ").partition(" ")
        following = f"rest: {rest}"
        if word in (".", "!"):
            return [(word, 1.0, self.end(state))]
        if word == "DISH":
            return self.dishes(state, following)
        if word == "NOUN":
            return [*self.dishes(state, following), *self.aspects(state, following)]
        if word == "VISIT":
            tones = self.tone_probabilities(state)
            never = tones[-1] / (tones[-1] + tones[1])
            last = state._replace(sentence=len(self.style.stop) - 1)
            return [
                ("not", never, last._replace(slot="rest: come back .", tone=-1)),
                ("come", 1 - never, last._replace(slot="rest: back .", tone=1)),
            ]
        if word == "WHERE":
            return [
                ("to", 0.5, state._replace(slot="rest: the NAME KIND .")),
                ("on", 0.5, state._replace(slot="rest: a DAY .")),
            ]
        if word == "DAY":
            return [(day, 1.0, state._replace(slot=following)) for day in DAYS]
        if word == "a" and not rest:
            return [("a", 1.0, state._replace(slot="gush"))]
        return [(word, 1.0, state._replace(slot=following))]

    def end(self, state: _State) -> _State:
        """The state after a full stop."""
        subject = "dish" if state.subject == "dish" else ""
        return state._replace(slot="sentence", sentence=state.sentence + 1, subject=subject, adjective="")
