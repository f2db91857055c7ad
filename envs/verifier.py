"""A verifier's word added to the score of r_φ: what can be checked, beside what was learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_gym.envs.episode import Episode
from rlhf_gym.envs.shaping import ScoreTerm
from rlhf_gym.lm.tokens import decode
from rlhf_gym.rewards.programmatic import RewardFunction
from rlhf_gym.rewards.scoring import check_scores


@dataclass(frozen=True)
class AddVerifier:
    """score + coef · v(x, y), v anything callable as `(prompts, responses) -> (B,)`.

    A verifier says what a program can tell of a response: that it is well formed, that its sum is right, that it says
    nothing twice. Unlike r_φ it does not err where the policy goes, as far as it goes. It reads texts, without special
    tokens; r_φ goes on reading tokens, and `raw_score` stays r_φ's own.
    """

    function: RewardFunction
    """v."""
    coef: float = 1.0
    """In units of the score."""
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, compare=False, repr=False)
    """What episodes are decoded by; None for the environment's own."""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"expected a verifier (prompts, responses) -> (B,), got {self.function!r}")
        if not math.isfinite(self.coef):
            raise ValueError(f"expected a finite coef, got {self.coef}")

    def __call__(self, episodes: Sequence[Episode], scores: np.ndarray) -> np.ndarray:
        if self.tokenizer is None:
            raise TypeError("expected AddVerifier in an environment's shaping=(…), or with a tokenizer of its own")
        prompts = decode(self.tokenizer, [e.prompt_ids.tolist() for e in episodes])
        responses = decode(self.tokenizer, [e.response_ids.tolist() for e in episodes])
        said = check_scores(self.function(prompts, responses), len(episodes), source=f"the verifier {self.function!r}")
        return scores + self.coef * said.astype(np.float64)


def with_tokenizer(terms: Sequence[ScoreTerm], tokenizer: PreTrainedTokenizerBase) -> Sequence[ScoreTerm]:
    """The terms, verifiers among them decoding by this tokenizer unless they have their own."""
    if not isinstance(terms, Sequence):
        return terms  # `Shaping` says what is wrong with them
    return [
        replace(term, tokenizer=tokenizer) if isinstance(term, AddVerifier) and term.tokenizer is None else term
        for term in terms
    ]
