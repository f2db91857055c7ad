"""What is done to the score of r_φ before it becomes a reward: penalties, verifiers, clipping, normalisation.

Terms are small frozen dataclasses, given to an environment in the order in which they are applied:

    shaping=(LengthPenalty(0.01, after=32), NormalizeScore(), ClipScore(-3.0, 3.0))

Each maps the scores (E,) of finished episodes to scores (E,); any callable of that kind is a term too. They belong to
the environment and not to a wrapper around it: deferred rewards are asked of the environment itself, and get the same
scores.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_gym.envs.episode import Episode, pad_actions, prompts_of
from rlhf_gym.functional.text_statistics import repetition
from rlhf_gym.lm.chat import Prompt
from rlhf_gym.lm.tokens import decode, decode_prompts, decode_responses, stop_token_ids
from rlhf_gym.ranges import Count, Threshold, Whole, check_ranges
from rlhf_gym.rewards import (
    DenseRewards,
    FunctionReward,
    Given,
    ResponseTokens,
    RewardFunction,
    check_rewards,
    check_scores,
    function_scores,
)


class ScoreTerm(Protocol):
    """A map from scores to scores, which may add rewards at tokens."""

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray | DenseRewards:
        """New scores (E,) of the episodes, from those of the term before, (E,).

        `DenseRewards` has rows besides, which are added to the rewards of each episode's actions, (T_e,) each.
        """
        ...


class EnvironmentTerm(ABC):
    """A term that needs something of its environment: the tokenizer, or statistics kept there."""

    @abstractmethod
    def in_environment(self, tokenizer: PreTrainedTokenizerBase) -> ScoreTerm:
        """The term as it is applied in an environment with this tokenizer."""


@dataclass(frozen=True)
class LengthPenalty:
    """score − coef · max(0, T − after), T the response's tokens, its stop token included.

    With coef = 1/m and after = `max_new_tokens` − m it is the "soft overlong punishment" of DAPO (Yu et al. 2025,
    arXiv:2503.14476, eq. 13): 0 up to the last m tokens, −1 at the horizon.
    """

    coef: float
    """The penalty of a token; a negative one rewards length."""
    after: Whole = 0
    """How many of the first tokens cost nothing."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        lengths = np.array([e.response_length for e in episodes])  # (E,)
        return scores - self.coef * np.maximum(lengths - self.after, 0)


@dataclass(frozen=True)
class RepetitionPenalty:
    """score − coef · (1 − distinct n-grams / n-grams) of the response's tokens; shorter responses lose nothing.

    The share is that of `rlhf_gym.functional.repetition`.
    """

    coef: float
    """The penalty of a response in which every n-gram stood before."""
    ngram: Count = 3
    """The n of the n-grams."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        return scores - self.coef * np.array([repetition(e.response_ids.tolist(), self.ngram) for e in episodes])


@dataclass(frozen=True)
class ClipScore:
    """A clipped score, min(max(score, low), high); rewards at tokens stay as they are."""

    low: Threshold
    high: Threshold

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low} and {self.high}")

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        return np.clip(scores, self.low, self.high)


@dataclass(frozen=True)
class AddVerifier(EnvironmentTerm):
    """score + coef · v(x, y), where the verifier v is any callable `(prompts, responses) -> (B,)`.

    What it gives at tokens is added there, coef times as well.

    A verifier is a program that checks a response: that it is well formed, or that its sum is right. It reads texts
    without special tokens, or what it asks for as a `FunctionReward`. r_φ goes on reading tokens, and `raw_score`
    stays r_φ's own.
    """

    function: RewardFunction
    """The verifier v."""
    coef: float = 1.0
    """The weight of the verifier, in units of the score."""
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, compare=False, repr=False)
    """The tokenizer that decodes episodes; None for the environment's own."""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"expected a verifier (prompts, responses) -> (B,), got {self.function!r}")
        check_ranges(self)

    def in_environment(self, tokenizer: PreTrainedTokenizerBase) -> ScoreTerm:
        return self if self.tokenizer is not None else replace(self, tokenizer=tokenizer)

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray | DenseRewards:
        if self.tokenizer is None:
            raise TypeError("expected AddVerifier in an environment's shaping=(…), or with a tokenizer of its own")
        given = function_rewards(self.function, episodes, self.tokenizer, source=f"the verifier {self.function!r}")
        said = scores + self.coef * given.scores.astype(np.float64)
        return said if given.rows is None else DenseRewards([self.coef * row for row in given.rows], said)


@dataclass(frozen=True)
class PotentialShaping(EnvironmentTerm):
    """F_t = Φ(s_{t+1}) − Φ(s_t) at each action, Φ = 0 at the end: what is good is told sooner, and no optimum changes.

    Ng, Harada and Russell 1999, "Policy Invariance Under Reward Transformations", with γ = 1. Its sum over an episode
    is −Φ(s_0), the same for every response to a prompt. So π* ∝ π_ref·e^{r/β} stays where it was.

    Φ reads what has been written so far, once an episode has ended, so it may be any function of prompt and prefix.
    """

    potential: RewardFunction
    """Φ: `(prompts, responses so far) -> (n,)`, texts as for a reward function."""
    coef: float = 1.0
    """The weight of Φ, in units of the score."""
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, compare=False, repr=False)
    """The tokenizer that decodes episodes; None for the environment's own."""

    def __post_init__(self) -> None:
        if not callable(self.potential):
            raise TypeError(f"expected Φ to be callable (prompts, responses) -> (n,), got {self.potential!r}")
        check_ranges(self)

    def in_environment(self, tokenizer: PreTrainedTokenizerBase) -> ScoreTerm:
        return self if self.tokenizer is not None else replace(self, tokenizer=tokenizer)

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> DenseRewards:
        if self.tokenizer is None:
            raise TypeError("expected PotentialShaping in an environment's shaping=(…), or with a tokenizer of its own")
        asked = self.potential if isinstance(self.potential, FunctionReward) else FunctionReward(self.potential)
        openings = decode_prompts(self.tokenizer, [e.prompt_ids.tolist() for e in episodes])
        prompts: list[Prompt] = []
        written: list[list[int]] = []  # what stands behind the prompt in each state
        for episode, opening in zip(episodes, openings, strict=True):
            first = len(episode.prompt_ids)
            states = np.flatnonzero(episode.action_mask)  # (T_e,): a state holds what stands before its action
            written += [episode.input_ids[first:place].tolist() for place in states]
            prompts += [opening if episode.prompt is None else episode.prompt] * len(states)
        if asked.special_tokens:
            texts = decode_responses(self.tokenizer, written, ())
        else:
            texts = decode(self.tokenizer, written)
        potentials = self.coef * function_scores(asked, prompts, texts, source=f"the potential {self.potential!r}")
        ends = np.cumsum([e.response_length for e in episodes])[:-1]
        each = np.split(potentials, ends)  # (T_e,) an episode
        return DenseRewards([np.append(phi[1:], 0.0) - phi for phi in each], scores)


@dataclass(frozen=True)
class NormalizeScore(EnvironmentTerm):
    """(score − mean) / std, by the running statistics of all scores of the *earlier* rollouts.

    Within a rollout (from one `reset` to the next) the statistics stand still. So an episode's score depends neither on
    the episodes beside it, nor on whether it is scored at once or deferred. In a loop that never resets they are
    renewed whenever `renew_after` episodes have ended. Until the first renewal scores stay as they are.

    The statistics are kept by the environment, and its `state_dict` has them.
    """

    center: bool = True
    """Subtract the mean; else only the unit changes."""
    renew_after: Count = 256
    """Episodes between two renewals, where nobody resets."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def in_environment(self, tokenizer: PreTrainedTokenizerBase) -> ScoreTerm:
        return RunningScores(self)

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        raise TypeError("expected NormalizeScore in an environment's shaping=(…): its statistics are kept there")


class RunningScores:
    """The statistics of a `NormalizeScore` in one environment, and the scores that will go into them next."""

    def __init__(self, term: NormalizeScore) -> None:
        self.term = term
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0
        """The sum Σ (score − mean)²."""
        self.seen: dict[int, float] = {}
        """The scores that are not yet in the statistics, by the episode's number."""
        self._endless = False

    @property
    def std(self) -> float:
        """Of the population; 1 while fewer than two scores are known, or where all are the same."""
        spread = math.sqrt(self.squares / self.count) if self.count > 1 else 0.0
        return spread if spread > 1e-6 * max(1.0, abs(self.mean)) else 1.0

    def begin(self, *, endless: bool) -> None:
        """A rollout begins; it is `endless` if nobody will reset."""
        self._endless = endless
        self.renew()

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        if self._endless and len(self.seen) >= self.term.renew_after:
            self.renew()
        self.seen.update(zip((e.number for e in episodes), scores.tolist(), strict=True))
        return (scores - (self.mean if self.term.center else 0.0)) / self.std

    def renew(self) -> None:
        """Take in the scores seen, in the order of the episodes' numbers: how they were batched leaves no trace.

        The moments of two samples from those of each: Chan, Golub & LeVeque 1979.
        """
        if not self.seen:
            return
        new = np.array([self.seen[number] for number in sorted(self.seen)])  # (n,) float64
        total = self.count + len(new)
        shift = float(new.mean()) - self.mean
        self.squares += float(((new - new.mean()) ** 2).sum()) + shift**2 * self.count * len(new) / total
        self.mean += shift * len(new) / total
        self.count = total
        self.seen = {}

    def state_dict(self) -> dict[str, Any]:
        """The statistics, for JSON."""
        seen = [[number, score] for number, score in self.seen.items()]
        return {"count": self.count, "mean": self.mean, "squares": self.squares, "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict()` gave."""
        self.count = int(state["count"])
        self.mean = float(state["mean"])
        self.squares = float(state["squares"])
        self.seen = {int(number): float(score) for number, score in state["seen"]}


def function_rewards(
    function: RewardFunction, episodes: Sequence[Episode], tokenizer: PreTrainedTokenizerBase, *, source: str
) -> Given:
    """What a function says of episodes, checked: it reads texts without special tokens, or as a `FunctionReward` asks.

    Raises:
        ScoreError: something else than scores or rewards at tokens; `source` names the function.
    """
    asked = function if isinstance(function, FunctionReward) else FunctionReward(function)
    answers = [e.answer_ids.tolist() for e in episodes]
    if asked.special_tokens:
        responses = decode_responses(tokenizer, answers, stop_token_ids(tokenizer))
    else:
        responses = decode(tokenizer, answers)
    masks = [e.action_mask[-len(answer) :].tolist() for e, answer in zip(episodes, answers, strict=True)]
    tokens = [
        ResponseTokens(text, tokenizer, tuple(answer), tuple(mask), asked.special_tokens)
        for text, answer, mask in zip(responses, answers, masks, strict=True)
    ]
    given = asked.rewards(prompts_of(episodes, tokenizer), responses, tokens, source=source)
    if given.rows is None:
        return given
    before = [e.response_length - len(row) for e, row in zip(episodes, given.rows, strict=True)]  # in earlier turns
    return Given(given.scores, [np.pad(row, (n, 0)) for row, n in zip(given.rows, before, strict=True)])


def _is_causal(term: ScoreTerm) -> bool:
    """Whether a term is a verifier that can be asked at every step."""
    return isinstance(term, AddVerifier) and isinstance(term.function, FunctionReward) and term.function.causal


class Shaping:
    """The terms of an environment, in their order, with the statistics of those that keep some.

    Args:
        terms: see `ScoreTerm`; with none, scores stay as they are.
        tokenizer: the environment's.
    """

    def __init__(self, terms: Sequence[ScoreTerm], tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(terms, Sequence) or isinstance(terms, str):
            raise TypeError(f"expected shaping to be a sequence of terms, got {terms!r}; one alone is written (term,)")
        for term in terms:
            if not callable(term) or isinstance(term, type):
                raise TypeError(f"expected terms (episodes, scores) -> scores in shaping, got {term!r}")
        self.terms = tuple(terms)
        self._applied = [t.in_environment(tokenizer) if isinstance(t, EnvironmentTerm) else t for t in self.terms]
        self.running = [term for term in self._applied if isinstance(term, RunningScores)]
        """The terms that keep statistics."""

    def __bool__(self) -> bool:
        return bool(self.terms)

    def begin(self, *, endless: bool) -> None:
        """A rollout begins; it is `endless` if nobody will reset."""
        for running in self.running:
            running.begin(endless=endless)

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        """The shaped scores (E,) float32 of `apply`, without what falls on tokens."""
        return self.apply(episodes, scores)[0]

    @property
    def at_tokens(self) -> bool:
        """Whether a term is one that gives rewards at tokens."""
        asking = [term.function for term in self.terms if isinstance(term, AddVerifier)]
        given = any(isinstance(function, FunctionReward) and function.at_tokens for function in asking)
        return given or any(isinstance(term, PotentialShaping) for term in self.terms)

    @property
    def causal(self) -> list[AddVerifier]:
        """The terms that can be asked at every step, as they are applied."""
        return [term for term in self._applied if _is_causal(term)]  # type: ignore[misc]

    def now(self, episodes: Sequence[Episode]) -> np.ndarray:
        """What the causal terms add at the last action of unfinished episodes, (E,) float32."""
        added = np.zeros(len(episodes), dtype=np.float32)  # (E,)
        for term in self.causal:
            assert term.tokenizer is not None
            given = function_rewards(term.function, episodes, term.tokenizer, source=f"the verifier {term.function!r}")
            if given.rows is not None:
                added += np.float32(term.coef) * np.array([row[-1] for row in given.rows], dtype=np.float32)
        return added

    def apply(
        self, episodes: Sequence[Episode], scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Shaped scores (E,) float32, from those of r_φ, (E,), and what terms add at tokens, (E, T), if any do.

        The last is what causal terms add, which is part of what all add.
        """
        lengths = [e.response_length for e in episodes]
        shaped = scores.astype(np.float64)  # (E,)
        added: list[np.ndarray] = []  # (E, T) each
        causal: list[np.ndarray] = []  # (E, T) each
        for term, applied in zip(self.terms, self._applied, strict=True):
            said = applied(episodes, shaped)
            if isinstance(said, DenseRewards):
                given = check_rewards(said, len(episodes), lengths, source=f"{term!r}")
                added.append(pad_actions(given.rows or ()))
                if _is_causal(applied):
                    causal.append(added[-1])
                said = given.scores
            shaped = check_scores(said, len(episodes), source=f"{term!r}").astype(np.float64)
        together = [sum(tables[1:], start=tables[0]) if tables else None for tables in (added, causal)]
        return shaped.astype(np.float32), together[0], together[1]

    def state_dict(self) -> list[dict[str, Any]]:
        """The statistics of all terms, for JSON."""
        return [running.state_dict() for running in self.running]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from `state_dict()`; where the terms are others, their statistics begin anew, with a warning."""
        if len(states) != len(self.running):
            warnings.warn(
                f"expected the statistics of {len(self.running)} NormalizeScore, got {len(states)}: they begin anew",
                stacklevel=2,
            )
            states = [RunningScores(running.term).state_dict() for running in self.running]
        for running, state in zip(self.running, states, strict=True):
            running.load_state_dict(state)
