"""Annotators: the interface of whoever compares responses, and simulated people with known faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from rlhf_gym.lm.chat import Prompt, Response
from rlhf_gym.preferences.pairing import score_differences
from rlhf_gym.preferences.records import CandidatePair, Preference
from rlhf_gym.ranges import NonNegative, Share, Whole, check_arguments
from rlhf_gym.rewards import RewardFunction, function_scores, keyword_reward, length_reward, sum_rewards


class Annotator(Protocol):
    """Anyone who says which of two responses is the better one."""

    def label(self, pairs: Sequence[CandidatePair], *, round: int = 0) -> list[Preference]:
        """One preference for each pair, in order; pairs that are called a tie are left out."""
        ...


def rao_kupper(delta: ArrayLike, threshold: float, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(P(y1 ≻ y2), P(tie)): responses that are less than η apart, noise included, are a tie (Rao & Kupper 1967).

    P(y1 ≻ y2) = σ((Δ − η)/τ), P(y2 ≻ y1) = σ((−Δ − η)/τ), and the rest is P(tie). With η = 0 it is the model of
    Bradley & Terry (1952). With τ = 0 the probabilities are 0 or 1, but ½ where Δ = η = 0.

    Args:
        delta: differences of scores Δ = s(y1) − s(y2), (n,).
        threshold: η ≥ 0, in the unit of the scores.
        temperature: τ ≥ 0.

    Returns:
        Two arrays (n,).
    """
    delta = np.asarray(delta, dtype=np.float64)  # (n,)
    ahead = [delta - threshold, -delta - threshold]
    if temperature > 0:
        first, second = (expit(by / temperature) for by in ahead)
    elif threshold > 0:
        first, second = (1.0 * (by > 0) for by in ahead)
    else:
        first, second = (0.5 * (1 + np.sign(by)) for by in ahead)
    return first, np.clip(1 - first - second, 0, 1)


class BradleyTerryAnnotator:
    """Prefers y1 with P(y1 ≻ y2) = σ((s(y1) − s(y2))/temperature), then errs with `mistake_rate`; s = gold + bias.

    People are simulated by this model in AlpacaFarm (Dubois et al. 2023, arXiv 2305.14387) and in Gao et al. 2022
    (arXiv 2210.10760). The faults differ in kind:

    - The temperature makes close calls uncertain.
    - A mistake reverses any call, and is recorded as `clean=False`.
    - A bias is the same every time, so a reward model learns it.
    - A `tie_threshold` calls responses that are less than η apart a tie, see `rao_kupper`.

    Two numbers are drawn for each pair, whatever the settings. With one seed, another mistake rate therefore flips some
    of the same choices.
    """

    @check_arguments
    def __init__(
        self,
        gold: RewardFunction,
        temperature: NonNegative = 1.0,
        mistake_rate: Share = 0.0,
        seed: Whole | Sequence[int] = 0,
        name: str = "simulated",
        *,
        bias: RewardFunction | None = None,
        tie_threshold: NonNegative = 0.0,
    ) -> None:
        """Set up the annotator.

        Args:
            gold: (prompts, responses) -> scores (B,), higher is better.
            temperature: τ; 0 always prefers the higher score, and tosses a coin between equal ones.
            mistake_rate: share of labels that are reversed, in [0, 1].
            seed: seed of the draws, which go on from call to call.
            name: recorded as the annotator of each preference.
            bias: (prompts, responses) -> what is added to gold, (B,): `length_reward(scale=.1)`,
                `keyword_reward(CONFIDENT_WORDS)`, or any other function.
            tie_threshold: η, in gold's unit.

        Raises:
            ValueError: a negative temperature or threshold, or a mistake rate outside [0, 1].
        """
        self.gold = gold
        self.bias = bias
        self.temperature = temperature
        self.mistake_rate = mistake_rate
        self.tie_threshold = tie_threshold
        self.name = name
        self._rng = np.random.default_rng(seed)

    def probabilities(self, pairs: Sequence[CandidatePair]) -> np.ndarray:
        """P(first ≻ second) of each pair before any mistake, (pairs,). Gold scores each text once.

        Raises:
            ValueError: the two of a pair answer different prompts, or gold's scores are not finite.
        """
        return rao_kupper(self._differences(pairs), self.tie_threshold, self.temperature)[0]

    def label(self, pairs: Sequence[CandidatePair], *, round: int = 0) -> list[Preference]:
        """One preference for each pair, in order; pairs that are called a tie are left out."""
        return [preference for preference in self.judge(pairs, round=round) if preference is not None]

    def judge(self, pairs: Sequence[CandidatePair], *, round: int = 0) -> list[Preference | None]:
        """One preference for each pair, in order; None where it is called a tie."""
        first, tie = rao_kupper(self._differences(pairs), self.tie_threshold, self.temperature)  # (pairs,), (pairs,)
        choice, slip = self._rng.random((len(pairs), 2)).T  # (pairs,), (pairs,)
        mistaken = slip < self.mistake_rate
        first_wins = (choice < first) ^ mistaken
        tied = (choice >= first) & (choice < first + tie)
        judged: list[Preference | None] = []
        for i, pair in enumerate(pairs):
            chosen, rejected = pair if first_wins[i] else pair[::-1]
            said = Preference.between(chosen, rejected, self.name, round, clean=not mistaken[i])
            judged.append(None if tied[i] else said)
        return judged

    def _differences(self, pairs: Sequence[CandidatePair]) -> np.ndarray:
        """s(first) − s(second) of each pair, (pairs,)."""
        for index, (first, second) in enumerate(pairs):
            if first.prompt != second.prompt:
                raise ValueError(
                    f"expected two responses to one prompt, got {first.prompt!r} and {second.prompt!r} in pair {index}"
                )
        return score_differences(self._scores, pairs) if pairs else np.zeros(0)

    def _scores(self, prompts: list[Prompt], responses: list[Response]) -> np.ndarray:
        """The gold score plus the bias of each text, (texts,)."""
        source = f"the gold reward of annotator {self.name!r}"
        scores = function_scores(self.gold, prompts, responses, source=source).astype(np.float64)
        if self.bias is None:
            return scores
        source = f"the bias of annotator {self.name!r}"
        return scores + function_scores(self.bias, prompts, responses, source=source)


class AnnotatorPanel:
    """Several annotators, of whom `judges` judge each pair, drawn anew for each pair.

    All their answers are kept, contradictory ones too, each with weight 1/judges, so that pairs count alike. To the
    Bradley–Terry loss the share of the votes is then a soft label.
    """

    def __init__(self, annotators: Sequence[BradleyTerryAnnotator], judges: int = 1, seed: int = 0) -> None:
        """
        Args:
            annotators: at least as many as `judges`, with different names.
            judges: how many of them judge each pair.
            seed: seed of who judges which pair; the draws go on from call to call.
        """
        if not 1 <= judges <= len(annotators):
            raise ValueError(f"expected 1 to {len(annotators)} judges, as many as annotators at most, got {judges}")
        names = [annotator.name for annotator in annotators]
        if len(set(names)) < len(names):
            raise ValueError(f"expected annotators with names that differ, got {names}")
        self.annotators = tuple(annotators)
        self.judges = judges
        self._rng = np.random.default_rng(seed)

    def label(self, pairs: Sequence[CandidatePair], *, round: int = 0) -> list[Preference]:
        """`judges` preferences for each pair, in the pairs' order; one less for each judge who calls it a tie."""
        order = self._rng.random((len(pairs), len(self.annotators))).argsort(axis=1)  # (pairs, annotators)
        asked = order[:, : self.judges]  # (pairs, judges)
        said: list[list[Preference]] = [[] for _ in pairs]
        for i, annotator in enumerate(self.annotators):
            mine = np.flatnonzero((asked == i).any(axis=1)).tolist()
            for index, answer in zip(mine, annotator.judge([pairs[n] for n in mine], round=round), strict=True):
                if answer is not None:
                    said[index].append(replace(answer, weight=1 / self.judges))
        return [answer for answers in said for answer in answers]


def simulated_annotators(
    gold: RewardFunction,
    count: int = 1,
    *,
    temperature: float = 1.0,
    mistake_rate: float = 0.0,
    length_bias: float = 0.0,
    bias_words: Sequence[str] = (),
    word_bias: float = 0.0,
    tie_threshold: float = 0.0,
    spread: float = 0.0,
    seed: int = 0,
    chance: int = 0,
) -> list[BradleyTerryAnnotator]:
    """Annotators who differ: each one's temperature, mistake rate and biases are the given ones times e^{spread·z}.

    z ~ N(0, 1) is another number for each annotator and each fault. It is fixed by `seed`, so that the same people come
    again in every round. A mistake rate is at most ½.

    Args:
        gold: the score that all of them would go by without faults.
        count: how many; one alone is called "simulated", several "simulated-1" and so on.
        temperature: see `BradleyTerryAnnotator`, as for the mistake rate and the tie threshold.
        mistake_rate: share of labels that are reversed.
        length_bias: how much better a response seems for each word.
        bias_words: words that make a response seem better, `CONFIDENT_WORDS` for instance.
        word_bias: how much better it seems for each of them.
        tie_threshold: η, in gold's unit.
        spread: 0 for annotators who differ in nothing but their draws.
        seed: seed of who they are.
        chance: seed of their draws.
    """
    found = []
    for i in range(count):
        z = np.random.default_rng((seed, i, count)).standard_normal(4)  # (4,)
        noise, slips, long, words = np.exp(spread * z).tolist()
        terms: list[tuple[float, RewardFunction]] = []
        if length_bias:
            terms.append((length_bias * long, length_reward()))
        if word_bias and bias_words:
            terms.append((word_bias * words, keyword_reward(bias_words)))
        annotator = BradleyTerryAnnotator(
            gold,
            temperature * noise,
            min(mistake_rate * slips, max(0.5, mistake_rate)),
            seed=chance if count == 1 else (chance, i),
            name="simulated" if count == 1 else f"simulated-{i + 1}",
            bias=sum_rewards(*terms) if terms else None,
            tie_threshold=tie_threshold,
        )
        found.append(annotator)
    return found
