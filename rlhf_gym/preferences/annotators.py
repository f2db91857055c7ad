"""Who compares: the interface every annotator has, and a simulated one with known faults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from rlhf_gym.preferences.records import CandidatePair, Preference
from rlhf_gym.rewards import RewardFunction, check_scores


class Annotator(Protocol):
    """Anyone who says which of two responses is the better one."""

    def label(self, pairs: Sequence[CandidatePair], *, round: int = 0) -> list[Preference]:
        """One preference for each pair, in order."""
        ...


class BradleyTerryAnnotator:
    """Prefers y1 with P(y1 ≻ y2) = σ((gold(y1) − gold(y2))/temperature), then errs with `mistake_rate`.

    The Bradley–Terry model, as people are simulated in AlpacaFarm (Dubois et al. 2023, arXiv 2305.14387) and in Gao et
    al. 2022 (arXiv 2210.10760). The two faults differ: the temperature blurs close calls, a mistake turns any call
    round and is recorded as `clean=False`.

    Two numbers are drawn for each pair, whatever the settings, so that with one seed the choices under another mistake
    rate are the same ones, some of them flipped.
    """

    def __init__(
        self,
        gold: RewardFunction,
        temperature: float = 1.0,
        mistake_rate: float = 0.0,
        seed: int = 0,
        name: str = "simulated",
    ) -> None:
        """Set up the annotator.

        Args:
            gold: (prompts, responses) -> scores (B,), higher is better.
            temperature: 0 always prefers the higher score, and tosses a coin between equal ones.
            mistake_rate: share of labels that are turned round, in [0, 1].
            seed: of the draws; they go on from call to call.
            name: recorded as the annotator of each preference.

        Raises:
            ValueError: a negative temperature, or a mistake rate outside [0, 1].
        """
        if not temperature >= 0:
            raise ValueError(f"expected temperature >= 0, got {temperature}")
        if not 0 <= mistake_rate <= 1:
            raise ValueError(f"expected mistake_rate in [0, 1], got {mistake_rate}")
        self.gold = gold
        self.temperature = temperature
        self.mistake_rate = mistake_rate
        self.name = name
        self._rng = np.random.default_rng(seed)

    def probabilities(self, pairs: Sequence[CandidatePair]) -> np.ndarray:
        """P(first ≻ second) of each pair before any mistake, shape (pairs,). Asks gold once, for each text once.

        Raises:
            ValueError: the two of a pair answer different prompts, or gold returns something else than finite scores.
        """
        for index, (first, second) in enumerate(pairs):
            if first.prompt != second.prompt:
                raise ValueError(
                    f"expected two responses to one prompt, got {first.prompt!r} and {second.prompt!r} in pair {index}"
                )
        texts = list(dict.fromkeys((c.prompt, c.response) for pair in pairs for c in pair))
        if not texts:
            return np.zeros(0)
        scores = check_scores(
            self.gold([prompt for prompt, _ in texts], [response for _, response in texts]),
            len(texts),
            source=f"the gold reward of annotator {self.name!r}",
        )
        score = dict(zip(texts, scores.astype(np.float64), strict=True))
        delta = np.array([score[a.prompt, a.response] - score[b.prompt, b.response] for a, b in pairs])  # (pairs,)
        if self.temperature == 0:
            return 0.5 * (1 + np.sign(delta))
        return 0.5 * (1 + np.tanh(delta / (2 * self.temperature)))  # σ, without overflow

    def label(self, pairs: Sequence[CandidatePair], *, round: int = 0) -> list[Preference]:
        """One preference for each pair, in order."""
        probabilities = self.probabilities(pairs)  # (pairs,)
        choice, slip = self._rng.random((len(pairs), 2)).T  # (pairs,), (pairs,)
        mistaken = slip < self.mistake_rate
        first_wins = (choice < probabilities) ^ mistaken
        preferences = []
        for (first, second), wins, mistake in zip(pairs, first_wins, mistaken, strict=True):
            chosen, rejected = (first, second) if wins else (second, first)
            preferences.append(
                Preference(
                    prompt=first.prompt,
                    chosen=chosen.response,
                    rejected=rejected.response,
                    annotator=self.name,
                    round=round,
                    clean=not mistake,
                    chosen_source=chosen.source,
                    rejected_source=rejected.source,
                )
            )
        return preferences
