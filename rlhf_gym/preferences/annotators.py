"""Who compares: the interface every annotator has, and simulated ones with known faults, alone or several together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from rlhf_gym.preferences.choice_models import draw_ranking, draw_ratings, rao_kupper
from rlhf_gym.preferences.pairing import pairs_from_ranking
from rlhf_gym.preferences.records import Candidate, CandidatePair, Preference
from rlhf_gym.rewards import RewardFunction, check_scores, keyword_reward, length_reward, sum_rewards

CONFIDENT_WORDS = ("absolutely", "always", "certainly", "clearly", "definitely", "never", "obviously", "undoubtedly")
"""For an annotator who takes assertiveness for quality (Hosking et al. 2023, arXiv 2309.16349, on people who do)."""


class Annotator(Protocol):
    """Anyone who says which of two responses is the better one."""

    def label(self, pairs: Sequence[CandidatePair], *, round: int = 0) -> list[Preference]:
        """One preference for each pair, in order; pairs that are called a tie are left out."""
        ...


class BradleyTerryAnnotator:
    """Prefers y1 with P(y1 ≻ y2) = σ((s(y1) − s(y2))/temperature), then errs with `mistake_rate`; s = gold + bias.

    The Bradley–Terry model, as people are simulated in AlpacaFarm (Dubois et al. 2023, arXiv 2305.14387) and in Gao et
    al. 2022 (arXiv 2210.10760). The faults differ: the temperature blurs close calls; a mistake turns any call round
    and is recorded as `clean=False`; a bias is no slip but a taste, the same every time, which a reward model learns
    with the rest. With a `tie_threshold` η, responses that seem less than η apart are called a tie (Rao & Kupper 1967):
    P(y1 ≻ y2) = σ((s(y1) − s(y2) − η)/temperature).

    Two numbers are drawn for each pair, whatever the settings, so that with one seed the choices under another mistake
    rate are the same ones, some of them flipped.
    """

    def __init__(
        self,
        gold: RewardFunction,
        temperature: float = 1.0,
        mistake_rate: float = 0.0,
        seed: int | Sequence[int] = 0,
        name: str = "simulated",
        *,
        bias: RewardFunction | None = None,
        tie_threshold: float = 0.0,
    ) -> None:
        """Set up the annotator.

        Args:
            gold: (prompts, responses) -> scores (B,), higher is better.
            temperature: 0 always prefers the higher score, and tosses a coin between equal ones.
            mistake_rate: share of labels that are turned round, in [0, 1].
            seed: of the draws; they go on from call to call.
            name: recorded as the annotator of each preference.
            bias: (prompts, responses) -> what is added to gold, (B,): `length_reward(scale=.1)`,
                `keyword_reward(CONFIDENT_WORDS)`, or anything else callable.
            tie_threshold: η, in gold's unit.

        Raises:
            ValueError: a negative temperature or threshold, or a mistake rate outside [0, 1].
        """
        if not temperature >= 0:
            raise ValueError(f"expected temperature >= 0, got {temperature}")
        if not 0 <= mistake_rate <= 1:
            raise ValueError(f"expected mistake_rate in [0, 1], got {mistake_rate}")
        if not tie_threshold >= 0:
            raise ValueError(f"expected tie_threshold >= 0, got {tie_threshold}")
        self.gold = gold
        self.bias = bias
        self.temperature = temperature
        self.mistake_rate = mistake_rate
        self.tie_threshold = tie_threshold
        self.name = name
        self._rng = np.random.default_rng(seed)

    def probabilities(self, pairs: Sequence[CandidatePair]) -> np.ndarray:
        """P(first ≻ second) of each pair before any mistake, shape (pairs,). Asks gold once, for each text once.

        Raises:
            ValueError: the two of a pair answer different prompts, or gold returns something else than finite scores.
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
        preferences: list[Preference | None] = []
        for pair, wins, mistake, undecided in zip(pairs, first_wins, mistaken, tied, strict=True):
            chosen, rejected = pair if wins else pair[::-1]
            said = Preference(
                prompt=chosen.prompt,
                chosen=chosen.response,
                rejected=rejected.response,
                annotator=self.name,
                round=round,
                clean=not mistake,
                chosen_source=chosen.label,
                rejected_source=rejected.label,
            )
            preferences.append(None if undecided else said)
        return preferences

    def rank(self, candidates: Sequence[Candidate], *, round: int = 0) -> list[Preference]:
        """All pairs of a ranking of responses to one prompt, drawn from Plackett–Luce with this annotator's scores.

        Nobody errs in a ranking as a whole: the mistake rate and ties are for pairs alone.
        """
        ranks = draw_ranking(self._scores([(c.prompt, c.response) for c in candidates]), self._rng, self.temperature)
        source = {c.response: c.label for c in candidates}
        pairs = pairs_from_ranking(candidates[0].prompt, [c.response for c in candidates], ranks, annotator=self.name)
        return [
            replace(p, round=round, chosen_source=source[p.chosen], rejected_source=source[p.rejected]) for p in pairs
        ]

    def rate(self, candidates: Sequence[Candidate], thresholds: Sequence[float]) -> list[int]:
        """A rating 1 … C+1 of each response, the cumulative logit with C thresholds in gold's unit."""
        scores = self._scores([(c.prompt, c.response) for c in candidates])
        return draw_ratings(scores, thresholds, self._rng, self.temperature)

    def _differences(self, pairs: Sequence[CandidatePair]) -> np.ndarray:
        """s(first) − s(second) of each pair, (pairs,)."""
        for index, (first, second) in enumerate(pairs):
            if first.prompt != second.prompt:
                raise ValueError(
                    f"expected two responses to one prompt, got {first.prompt!r} and {second.prompt!r} in pair {index}"
                )
        texts = list(dict.fromkeys((c.prompt, c.response) for pair in pairs for c in pair))
        if not texts:
            return np.zeros(0)
        score = dict(zip(texts, self._scores(texts).tolist(), strict=True))
        return np.array([score[a.prompt, a.response] - score[b.prompt, b.response] for a, b in pairs])  # (pairs,)

    def _scores(self, texts: Sequence[tuple[str, str]]) -> np.ndarray:
        """gold + bias of each text, (texts,)."""
        prompts, responses = [prompt for prompt, _ in texts], [response for _, response in texts]
        source = f"the gold reward of annotator {self.name!r}"
        scores = check_scores(self.gold(prompts, responses), len(texts), source=source).astype(np.float64)
        if self.bias is not None:
            source = f"the bias of annotator {self.name!r}"
            scores = scores + check_scores(self.bias(prompts, responses), len(texts), source=source)
        return scores


class AnnotatorPanel:
    """Several annotators, each pair judged by `judges` of them, drawn anew for each pair.

    All their answers are kept, contradictory ones too, each with weight 1/judges, so that pairs count alike: to the
    Bradley–Terry loss that is the share of the votes as a soft label. `majority` makes one answer of them instead.
    """

    def __init__(self, annotators: Sequence[BradleyTerryAnnotator], judges: int = 1, seed: int = 0) -> None:
        """
        Args:
            annotators: at least as many as `judges`, with names that differ.
            judges: how many of them judge each pair.
            seed: of who judges which; goes on from call to call.
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
        """`judges` preferences for each pair, in the pairs' order; where one calls it a tie, one less."""
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

    z ~ N(0, 1), another for each annotator and each fault, fixed by `seed`: the same people come again in every round.
    A mistake rate is at most ½.

    Args:
        gold: what all of them would say without faults.
        count: how many; one alone is called "simulated", several "simulated-1" and so on.
        temperature: see `BradleyTerryAnnotator`; so for the mistake rate and the tie threshold.
        mistake_rate: as above.
        length_bias: how much better a response seems for each word.
        bias_words: words that make a response seem better, `CONFIDENT_WORDS` for instance.
        word_bias: by how much, for each of them.
        tie_threshold: as above.
        spread: 0 for annotators who differ in nothing but their chance.
        seed: who they are.
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


def majority(preferences: Sequence[Preference]) -> list[Preference]:
    """One preference for each pair of responses, as most of its judgements say; even votes decide nothing.

    Weight 1, margin the share of the votes it won less the share it lost, the annotators' names joined; `clean` only
    if a judgement that says the same was.
    """
    votes: dict[tuple[str, frozenset[str]], list[Preference]] = {}
    for p in preferences:
        votes.setdefault((p.prompt, frozenset((p.chosen, p.rejected))), []).append(p)
    found = []
    for said in votes.values():
        for_first = sum(p.chosen == said[0].chosen for p in said)
        if 2 * for_first == len(said):
            continue
        winners = [p for p in said if (p.chosen == said[0].chosen) == (2 * for_first > len(said))]
        names = "+".join(sorted({p.annotator for p in said} - {""}))
        margin = 2 * len(winners) / len(said) - 1
        clean = any(p.clean for p in winners)
        found.append(replace(winners[0], annotator=names, weight=1.0, margin=margin, clean=clean))
    return found
