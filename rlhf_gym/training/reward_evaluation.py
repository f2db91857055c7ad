"""How good a reward is on held-out preferences: its accuracy, its calibration, its correlation with length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_gym.functional import confidence, expected_calibration_error, rightness
from rlhf_gym.lm.chat import Prompt, Response, response_text
from rlhf_gym.preferences import Preference
from rlhf_gym.progress import Progress
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import Reward, RewardFunction, as_reward, check_scores


@dataclass(frozen=True)
class RewardMetrics:
    """A reward on held-out preferences. Δ is the chosen score minus the rejected one, without normalisation."""

    accuracy: float
    """Share of pairs with Δ > 0; Δ = 0 counts half."""
    clean_accuracy: float
    """The same over the pairs whose annotator made no mistake; 0 if there are none."""
    margin: float
    """The mean of the differences Δ."""
    nll: float
    """Mean of −log σ(Δ), in nats: log 2 = .693 is chance."""
    ece: float
    """Expected calibration error: how far confidence and accuracy are apart, over 10 equal bins of confidence
    max(σ(Δ), 1 − σ(Δ)), weighed by their pairs (Guo et al. 2017, arXiv 1706.04599)."""
    length_correlation: float
    """Correlation of score with length in words, within pairs: Σ Δr·Δl / √(Σ Δr² · Σ Δl²). Which of a pair comes first
    is a convention, so no mean is taken out. The length of a dialogue is that of all its answers. (Singhal et al. 2023,
    arXiv 2310.03716, on why to look.)"""
    n: int
    """Number of pairs."""


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Preferences with a reward's scores, from which every figure about it is computed."""

    preferences: tuple[Preference, ...]
    """The comparisons, P of them."""
    delta: np.ndarray
    """Δ, the chosen score minus the rejected one, without normalisation, (P,)."""
    longer: np.ndarray
    """By how many words the chosen response is the longer one, (P,)."""
    scores: np.ndarray
    """The score of each distinct response, (texts,)."""

    @property
    def right(self) -> np.ndarray:
        """1 where Δ > 0, ½ where Δ = 0, 0 elsewhere, (P,)."""
        return rightness(self.delta)

    @property
    def clean(self) -> np.ndarray:
        """Where the annotator made no mistake, (P,)."""
        return np.array([p.clean for p in self.preferences])


def score_pairs(
    reward: Reward | RewardFunction,
    preferences: Sequence[Preference],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
    at_once: int | None = None,
) -> ScoredPairs:
    """Score each distinct response once; of one reward model the scores before normalisation.

    Args:
        reward: what scores.
        preferences: the pairs.
        batch_size: rows of a forward at most.
        progress: shows how many responses have been scored.
        at_once: responses that are scored between two steps of the progress; all by default.

    Raises:
        ValueError: no preferences, or scores that are not finite.
    """
    if not preferences:
        raise ValueError("expected at least one preference to evaluate on, got none")
    sides = [(p.prompt, response) for p in preferences for response in (p.chosen, p.rejected)]
    texts = {text: i for i, text in enumerate(dict.fromkeys(sides))}
    responses = [response for _, response in texts]
    scores = score_in_steps(reward, list(texts), batch_size=batch_size, progress=progress, at_once=at_once)  # (texts,)
    words = np.array([len(response_text(response).split()) for response in responses], dtype=np.float64)  # (texts,)
    chosen = np.array([texts[p.prompt, p.chosen] for p in preferences])  # (P,)
    rejected = np.array([texts[p.prompt, p.rejected] for p in preferences])  # (P,)
    return ScoredPairs(
        preferences=tuple(preferences),
        delta=scores[chosen] - scores[rejected],
        longer=words[chosen] - words[rejected],
        scores=scores,
    )


def score_in_steps(
    reward: Reward | RewardFunction,
    texts: Sequence[tuple[Prompt, Response]],
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
    at_once: int | None = None,
) -> np.ndarray:
    """Scores (n,) of n pairs of prompt and response, a model's before normalisation.

    Of several ranks all call it with the same pairs; each scores every N-th, and gets all scores.

    Args:
        reward: what scores.
        texts: the pairs.
        batch_size: rows of a forward at most.
        progress: shows how many have been scored.
        at_once: as many are scored between two steps of the progress; all by default.
    """
    ask = as_reward(reward).preference_scores

    def score(own: Sequence[tuple[Prompt, Response]]) -> list[float]:
        step = at_once or len(own)
        found: list[float] = []
        with (progress or Progress(None)).over(len(own)) as shown:
            for i in range(0, len(own), step):
                prompts, responses = map(list, zip(*own[i : i + step], strict=True))
                said = ask(prompts, responses, batch_size=batch_size)  # (step,)
                found += check_scores(said, len(prompts), source="the reward").tolist()
                shown.advance(len(prompts))
        return found

    return np.array(ranks().spread(texts, score, "scores of responses"), dtype=np.float64)


def evaluate_reward_model(
    reward: Reward | RewardFunction, preferences: Sequence[Preference], *, batch_size: int = 64
) -> RewardMetrics:
    """Metrics of a reward model, or of any `(prompts, responses) -> scores`, read as Bradley–Terry scores.

    Each distinct response is scored once; of one reward model the scores before normalisation.

    Raises:
        ValueError: no preferences, or scores that are not finite.
    """
    return reward_metrics(score_pairs(reward, preferences, batch_size=batch_size))


def reward_metrics(pairs: ScoredPairs) -> RewardMetrics:
    """The metrics of pairs that have been scored."""
    delta = pairs.delta  # (P,)
    longer = pairs.longer  # (P,)
    right = pairs.right  # (P,)
    clean = pairs.clean  # (P,)
    scale = float(np.sqrt((delta**2).sum() * (longer**2).sum()))
    return RewardMetrics(
        accuracy=float(right.mean()),
        clean_accuracy=float(right[clean].mean()) if clean.any() else 0.0,
        margin=float(delta.mean()),
        nll=float(np.logaddexp(0, -delta).mean()),
        ece=expected_calibration_error(confidence(delta), right),
        length_correlation=float((delta * longer).sum()) / scale if scale > 0 else 0.0,
        n=len(delta),
    )
