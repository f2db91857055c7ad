"""A language with exact probabilities: a probabilistic automaton that is deterministic given the words.

In each state an arc is taken with its probability, its word is written, and the word alone says which arc it was. So a
text has at most one path, its log-probability is a sum along it, and the entropy of the whole language follows from
the chain rule: H(s) = Σ_arcs p·(−log p + H(s')). A language is given by its `arcs(state)` function alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

END = ""
"""The word of the arc that ends a text. It stands for the end-of-sequence token."""


class Arc(NamedTuple):
    """A transition out of a state."""

    word: str
    """The word it writes; `END` ends the text."""
    probability: float
    """Its probability given the state."""
    target: Hashable
    """The state it leads to."""


Arcs = Callable[[Hashable], Sequence[Arc]]


class Extent(NamedTuple):
    """Expected length and entropy of the texts from some state on."""

    length: float
    """Expected number of words still to come, the `END` included."""
    entropy: float
    """Entropy of what is still to come, in nats."""


def sample(arcs: Arcs, start: Hashable, rng: np.random.Generator) -> list[str]:
    """The words of one text, `END` left out."""
    words: list[str] = []
    state = start
    while True:
        choices = arcs(state)
        left = rng.random()
        for arc in choices:
            left -= arc.probability
            if left < 0:
                break
        if arc.word == END:
            return words
        words.append(arc.word)
        state = arc.target


def extent(arcs: Arcs, start: Hashable) -> Extent:
    """Expected length and entropy of the texts from `start` on, exactly. The automaton must have no cycles."""
    known: dict[Hashable, Extent] = {}
    pending = [start]
    while pending:
        state = pending[-1]
        choices = [arc for arc in arcs(state) if arc.probability > 0]
        missing = [arc.target for arc in choices if arc.word != END and arc.target not in known]
        if missing:
            pending.extend(missing)
            continue
        length = entropy = 0.0
        for arc in choices:
            rest = Extent(0.0, 0.0) if arc.word == END else known[arc.target]
            length += arc.probability * (1.0 + rest.length)
            entropy += arc.probability * (rest.entropy - math.log(arc.probability))
        known[pending.pop()] = Extent(length, entropy)
    return known[start]


def reachable(arcs: Arcs, start: Hashable) -> dict[Hashable, Sequence[Arc]]:
    """Every state that a text can pass through, with its arcs of positive probability."""
    found: dict[Hashable, Sequence[Arc]] = {}
    pending = [start]
    while pending:
        state = pending.pop()
        if state in found:
            continue
        found[state] = [arc for arc in arcs(state) if arc.probability > 0]
        pending.extend(arc.target for arc in found[state] if arc.word != END)
    return found


def bigrams(arcs: Arcs, start: Hashable) -> frozenset[tuple[str, str]]:
    """Every pair of neighbouring words a text can have; `END` stands both before the first word and after the last."""
    found = reachable(arcs, start)
    pairs = {(END, arc.word) for arc in found[start]}
    for choices in found.values():
        for arc in choices:
            if arc.word != END:
                pairs |= {(arc.word, following.word) for following in found[arc.target]}
    return frozenset(pairs)
