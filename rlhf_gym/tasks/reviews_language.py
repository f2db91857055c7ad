"""The language of restaurant reviews: its words, and a grammar that gives every text an exact probability.

A prompt names a dish, an aspect and a place (`review of the soup and the service at the harbour cafe :`); a text has a
few short sentences (`the soup was very tasty . the service was kind and quick . i would come back .`). A `Style` says
how often what happens: `REVIEW` is the style of the demonstrations, and the others are those of the other registers that
a small language model is pretrained on. All styles write the same kinds of sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from rlhf_gym.tasks.automaton import END, Arc, Arcs, sample

ITEMS = ("soup", "bread", "salad", "pasta", "fish", "curry", "cake", "pie", "stew", "rice", "tea", "coffee")
ASPECTS = ("service", "price", "room", "music", "view", "portion")
NAMES = ("harbour", "garden", "market", "station", "castle", "mill", "bridge", "corner")
KINDS = ("cafe", "inn", "diner")
HEADINGS = ("review of", "advert for", "complaint about", "chat about")
"""What a prompt begins with. Only the first is a task's; the language model has read the others too."""

PRAISE = {
    "any": ("good", "nice", "lovely", "great"),
    "dish": ("tasty", "fresh", "rich"),
    "service": ("kind", "quick", "friendly"),
    "price": ("fair", "modest", "sensible"),
    "room": ("cosy", "bright", "clean"),
    "music": ("soft", "cheerful", "gentle"),
    "view": ("pretty", "wide", "calm"),
    "portion": ("generous", "hearty", "ample"),
}
COMPLAINTS = {
    "any": ("bad", "poor", "dull", "awful"),
    "dish": ("bland", "cold", "stale"),
    "service": ("slow", "rude", "careless"),
    "price": ("high", "silly", "unfair"),
    "room": ("dark", "cramped", "dirty"),
    "music": ("loud", "harsh", "tinny"),
    "view": ("grey", "ugly", "blocked"),
    "portion": ("tiny", "mean", "measly"),
}
PLAIN = ("fine", "plain", "usual", "ordinary", "average")
GUSHING = ("amazing", "perfect", "divine", "heavenly", "stunning", "flawless")
PRAISING_VERBS = ("liked", "enjoyed", "loved")
COMPLAINING_VERBS = ("disliked", "regretted")
PLAIN_VERBS = ("had", "tried", "ordered")
DEGREES = ("very", "quite", "rather", "really")
OPENERS = ("well", "anyway", "basically", "honestly")
FILLER_SENTENCES = ("you know how it goes .", "so that was that .")
FILLERS = (*OPENERS, "you", "know", "how", "goes", "so", "that")
DAYS = ("monday", "wednesday", "saturday", "sunday")
FUNCTION_WORDS = (
    *("review", "advert", "complaint", "chat", "of", "for", "about", "at", ":"),
    *("the", "and", "was", "seemed", "tasted", "it", "i", "we", "a", "what", "came", "to", "on"),
    *("would", "not", "come", "back", ".", "!"),
)

VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        word
        for group in (
            FUNCTION_WORDS,
            *(ITEMS, ASPECTS, NAMES, KINDS, DAYS),
            *PRAISE.values(),
            *COMPLAINTS.values(),
            *(PLAIN, GUSHING, PRAISING_VERBS, COMPLAINING_VERBS, PLAIN_VERBS, DEGREES, FILLERS),
        )
        for word in group
    )
)
"""Every word of prompts and texts, each once."""


@dataclass(frozen=True)
class Topic:
    """What a prompt asks about."""

    item: str
    """A dish, one of `ITEMS`."""
    aspect: str
    """One of `ASPECTS`."""
    name: str
    """The place's name, one of `NAMES`."""
    kind: str
    """The place's kind, one of `KINDS`."""

    def prompt(self, heading: str = HEADINGS[0]) -> str:
        """The prompt that asks for a text about this."""
        return f"{heading} the {self.item} and the {self.aspect} at the {self.name} {self.kind} :"

    @classmethod
    def from_prompt(cls, prompt: str) -> Topic:
        """The topic of a prompt, whatever its heading.

        Raises:
            ValueError: the text is not a prompt of this language.
        """
        words = prompt.split()
        if len(words) == 12:
            topic = cls(item=words[3], aspect=words[6], name=words[9], kind=words[10])
            if prompt.split() == topic.prompt(" ".join(words[:2])).split() and topic._is_known(" ".join(words[:2])):
                return topic
        raise ValueError(
            f"expected a prompt like {cls(ITEMS[0], ASPECTS[0], NAMES[0], KINDS[0]).prompt()!r}, got {prompt!r}"
        )

    def _is_known(self, heading: str) -> bool:
        return (
            heading in HEADINGS
            and self.item in ITEMS
            and self.aspect in ASPECTS
            and self.name in NAMES
            and self.kind in KINDS
        )


@dataclass(frozen=True)
class Style:
    """How often what happens in a text. Weights of one choice are relative to one another."""

    tones: tuple[float, float, float]
    """Probabilities of complaint, plain statement and praise, where nothing has set a tone yet."""
    persistence: float
    """Probability that a judgement keeps the tone of the one before, over and above what `tones` gives."""
    stop: tuple[float, ...]
    """Probability of ending after one, two, … sentences. The last is 1."""
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
    tones=(0.33, 0.27, 0.40),
    persistence=0.45,
    stop=(0.10, 0.45, 1.0),
    subjects=(0.50, 0.26, 0.12, 0.12),
    again=0.3,
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


class _State(NamedTuple):
    slot: str = "sentence"
    """The place in the sentence that comes next."""
    sentence: int = 0
    """Sentences finished."""
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


@lru_cache(maxsize=256)
def arcs(topic: Topic, style: Style = REVIEW) -> Arcs:
    """The texts about `topic` in `style`, as the automaton whose start is `START`."""
    language = _Language(topic, style)

    @cache
    def arcs_of(state: _State) -> tuple[Arc, ...]:
        choices = language.choices(state)
        total = sum(weight for _, weight, _ in choices)
        return tuple(Arc(word, weight / total, target) for word, weight, target in choices if weight > 0)

    return arcs_of  # type: ignore[return-value]


def sample_words(topic: Topic, style: Style, rng: np.random.Generator) -> list[str]:
    """The words of one text about `topic`."""
    return sample(arcs(topic, style), START, rng)


class _Language:
    """The grammar's rules: for every slot, the words that can stand there, with relative weights."""

    def __init__(self, topic: Topic, style: Style) -> None:
        self.topic = topic
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
        stop = self.style.stop[state.sentence - 1] if state.sentence else 0.0
        go_on = 1.0 - stop
        choices: _Choices = [(END, stop, state)]
        choices += [(word, go_on * self.style.opener / len(OPENERS), state._replace(slot="opened")) for word in OPENERS]
        plain = go_on * (1.0 - self.style.opener)
        total = sum(weight for _, weight, _ in self.opening(state))
        return choices + [(word, plain * weight / total, target) for word, weight, target in self.opening(state)]

    def opening(self, state: _State) -> _Choices:
        """The first word of a sentence proper."""
        style, praise = self.style, self.tone_probabilities(state)[1]
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
        return self.nouns(state, "verb")

    def nouns(self, state: _State, next_slot: str) -> _Choices:
        """A dish or an aspect: the one asked about, or another."""
        item, aspect, other_item, other_aspect = self.style.subjects
        item *= self.style.again if state.item_named else 1.0
        aspect *= self.style.again if state.aspect_named else 1.0
        choices: _Choices = []
        for word in ITEMS:
            asked = word == self.topic.item
            target = state._replace(slot=next_slot, subject="dish", item_named=state.item_named or asked)
            choices.append((word, item if asked else other_item / (len(ITEMS) - 1), target))
        for word in ASPECTS:
            asked = word == self.topic.aspect
            target = state._replace(slot=next_slot, subject=word, aspect_named=state.aspect_named or asked)
            choices.append((word, aspect if asked else other_aspect / (len(ASPECTS) - 1), target))
        return choices

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
            choices += [(word, weight, state._replace(slot="rest: the NOUN .", tone=tone)) for word in words]
        weight = self.style.return_visit if state.sentence else 0.0
        return [*choices, ("would", weight, state._replace(slot="rest: VISIT"))]

    def we_verb(self, state: _State) -> _Choices:
        each = self.style.ordering / len(PLAIN_VERBS)
        choices: _Choices = [(word, each, state._replace(slot="rest: the NOUN .")) for word in PLAIN_VERBS]
        return [*choices, ("came", self.style.arrival, state._replace(slot="rest: WHERE"))]

    def gush(self, state: _State) -> _Choices:
        return [(word, 1.0, state._replace(slot="rest: NOUN !")) for word in GUSHING]

    def rest(self, state: _State) -> _Choices:
        """What is left of a sentence that was settled earlier; capitals stand for another choice."""
        word, _, rest = state.slot.removeprefix("rest: ").partition(" ")
        following = f"rest: {rest}"
        if word in (".", "!"):
            return [(word, 1.0, self.end(state))]
        if word == "NOUN":
            return self.nouns(state, following)
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
                ("to", 0.5, state._replace(slot=f"rest: the {self.topic.name} {self.topic.kind} .")),
                ("on", 0.5, state._replace(slot="rest: a DAY .")),
            ]
        if word == "DAY":
            return [(day, 1.0, state._replace(slot=following)) for day in DAYS]
        if word == "a" and not rest:
            return [("a", 1.0, state._replace(slot="gush"))]
        return [(word, 1.0, state._replace(slot=following))]

    def end(self, state: _State) -> _State:
        """After the full stop."""
        subject = "dish" if state.subject == "dish" else ""
        return state._replace(slot="sentence", sentence=state.sentence + 1, subject=subject, adjective="")
