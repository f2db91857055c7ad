"""What is done to the score of r_φ before it becomes a reward: penalties, clipping, normalisation.

Terms are small frozen dataclasses, given to an environment in the order in which they are applied:

    shaping=(LengthPenalty(0.01, after=32), NormalizeScore(), ClipScore(-3.0, 3.0))

Each maps the scores (E,) of finished episodes to scores (E,); any callable of that kind is a term too. They stand
inside the environment, and not in a wrapper around it, because deferred rewards and the agents that ask for them read
the environment itself: all the ways to a reward get the same scores.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlhf_gym.envs.episode import Episode
from rlhf_gym.functional.text_statistics import repetition
from rlhf_gym.rewards.scoring import check_scores


class ScoreTerm(Protocol):
    """A step from scores to scores."""

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        """New scores (E,) of the episodes, from those of the term before, (E,)."""
        ...


@dataclass(frozen=True)
class LengthPenalty:
    """score − coef · max(0, T − after), T the response's tokens, its stop token included.

    With coef = 1/m and after = `max_new_tokens` − m it is the "soft overlong punishment" of DAPO (Yu et al. 2025,
    arXiv:2503.14476, eq. 13): 0 up to the last m tokens, −1 at the horizon.
    """

    coef: float
    """Per token; negative rewards length."""
    after: int = 0
    """The first tokens cost nothing."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coef) and self.after >= 0):
            raise ValueError(f"expected a finite coef and after >= 0, got coef={self.coef}, after={self.after}")

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        lengths = np.array([e.response_length for e in episodes])  # (E,)
        return scores - self.coef * np.maximum(lengths - self.after, 0)


@dataclass(frozen=True)
class RepetitionPenalty:
    """score − coef · (1 − distinct n-grams / n-grams) of the response's tokens; nothing if it is shorter than n.

    The share of n-grams that were there before: `rlhf_gym.functional.repetition`.
    """

    coef: float
    """The penalty of a response that says one thing for ever."""
    ngram: int = 3
    """n."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coef) and self.ngram >= 1):
            raise ValueError(f"expected a finite coef and ngram >= 1, got coef={self.coef}, ngram={self.ngram}")

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        return scores - self.coef * np.array([repetition(e.response_ids.tolist(), self.ngram) for e in episodes])


@dataclass(frozen=True)
class ClipScore:
    """min(max(score, low), high)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low} and {self.high}")

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        return np.clip(scores, self.low, self.high)


@dataclass(frozen=True)
class NormalizeScore:
    """(score − mean) / std, by the running statistics of all scores of the *earlier* rollouts.

    Within a rollout (from one `reset` to the next) the statistics stand still: an episode's score does not depend on
    which others end beside it or before it, nor on whether it is scored at once or deferred. In a loop that never
    resets they are renewed whenever `renew_after` episodes have ended. Until the first renewal scores stay as they
    are; a reward model that comes with a `RewardNormalizer` needs none before that.

    The statistics belong to the environment (`state_dict` has them); this object only asks for them.
    """

    center: bool = True
    """Subtract the mean; else only the unit changes."""
    renew_after: int = 256
    """Where nobody resets: episodes between two renewals."""

    def __post_init__(self) -> None:
        if self.renew_after < 1:
            raise ValueError(f"expected renew_after >= 1, got {self.renew_after}")

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        raise TypeError("expected NormalizeScore in an environment's shaping=(…): its statistics are kept there")


class RunningScores:
    """A `NormalizeScore` at work in one environment: its statistics, and the scores that will go into them next."""

    def __init__(self, term: NormalizeScore) -> None:
        self.term = term
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # Σ (score − mean)² in `squares`
        self.seen: dict[int, float] = {}  # score by the episode's number

    @property
    def std(self) -> float:
        """Of the population; 1 while fewer than two scores are known, or where all are the same."""
        spread = math.sqrt(self.squares / self.count) if self.count > 1 else 0.0
        return spread if spread > 1e-6 * max(1.0, abs(self.mean)) else 1.0

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        self.seen.update(zip((e.number for e in episodes), scores.tolist(), strict=True))
        return (scores - (self.mean if self.term.center else 0.0)) / self.std

    def renew(self) -> None:
        """Take in what was seen: in the order of the episodes' numbers, so that how they were grouped leaves no trace.

        Chan, Golub & LeVeque 1979: the moments of two samples from those of each.
        """
        if not self.seen:
            return
        new = np.array([self.seen[number] for number in sorted(self.seen)])  # (n,) float64
        total, shift = self.count + len(new), float(new.mean()) - self.mean
        self.squares += float(((new - new.mean()) ** 2).sum()) + shift**2 * self.count * len(new) / total
        self.mean += shift * len(new) / total
        self.count, self.seen = total, {}

    def state_dict(self) -> dict[str, Any]:
        """For JSON."""
        seen = [[number, score] for number, score in self.seen.items()]
        return {"count": self.count, "mean": self.mean, "squares": self.squares, "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.count, self.mean, self.squares = int(state["count"]), float(state["mean"]), float(state["squares"])
        self.seen = {int(number): float(score) for number, score in state["seen"]}


class Shaping:
    """An environment's terms, in order, with what the stateful ones remember there.

    Args:
        terms: see `ScoreTerm`; none leaves scores as they are.
    """

    def __init__(self, terms: Sequence[ScoreTerm] = ()) -> None:
        if not isinstance(terms, Sequence) or isinstance(terms, str):
            raise TypeError(f"expected shaping to be a sequence of terms, got {terms!r}; one alone is written (term,)")
        for term in terms:
            if not callable(term) or isinstance(term, type):
                raise TypeError(f"expected terms (episodes, scores) -> scores in shaping, got {term!r}")
        self.terms = tuple(terms)
        self._steps = [RunningScores(term) if isinstance(term, NormalizeScore) else term for term in self.terms]
        self._endless = False

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def running(self) -> list[RunningScores]:
        """The stateful terms at work."""
        return [step for step in self._steps if isinstance(step, RunningScores)]

    def begin(self, *, endless: bool) -> None:
        """A rollout begins; `endless` if it has no end of its own, because nobody will reset."""
        self._endless = endless
        for running in self.running:
            running.renew()

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        """Shaped scores (E,) float32, from those of r_φ, (E,)."""
        shaped = scores.astype(np.float64)  # (E,)
        for term, step in zip(self.terms, self._steps, strict=True):
            if isinstance(step, RunningScores) and self._endless and len(step.seen) >= step.term.renew_after:
                step.renew()
            shaped = check_scores(step(episodes, shaped), len(episodes), source=f"{term!r}").astype(np.float64)
        return shaped.astype(np.float32)

    def state_dict(self) -> list[dict[str, Any]]:
        """What the stateful terms remember, for JSON."""
        return [running.state_dict() for running in self.running]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from `state_dict()`; where the terms are others, their statistics begin anew, and that is said."""
        if len(states) != len(self.running):
            warnings.warn(
                f"expected the statistics of {len(self.running)} NormalizeScore, got {len(states)}: they begin anew",
                stacklevel=2,
            )
            states = [RunningScores(running.term).state_dict() for running in self.running]
        for running, state in zip(self.running, states, strict=True):
            running.load_state_dict(state)
