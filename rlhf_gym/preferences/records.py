"""Records: demonstrations, candidate responses, pairs of them, and preferences between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from rlhf_gym.lm.chat import Prompt, Response


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a response worth imitating, for supervised fine-tuning."""

    prompt: Prompt
    """What the response answers or continues."""
    response: str
    """The response. Behind a text it begins with a space where a byte-level tokenizer wants one."""


@dataclass(frozen=True)
class LabelledSteps:
    """A response in steps, each of them labelled good or bad, for a reward at tokens."""

    prompt: Prompt
    """What the response answers."""
    steps: tuple[str, ...]
    """The texts of its steps in their order, without what separates them."""
    labels: tuple[bool, ...]
    """Whether each step is good, (S,)."""

    def __post_init__(self) -> None:
        if not self.steps or len(self.steps) != len(self.labels):
            raise ValueError(f"expected a label for each step, got {len(self.steps)} steps, {len(self.labels)} labels")


@dataclass(frozen=True)
class Candidate:
    """A response drawn for a prompt, and how it was drawn."""

    prompt: Prompt
    """The prompt."""
    response: Response
    """The response: a text, or a dialogue of several turns."""
    source: str = ""
    """Name of the policy that wrote it."""
    temperature: float = 1.0
    """The sampling temperature."""
    top_k: int = 0
    """The top-k of sampling; 0 for none."""
    top_p: float = 1.0
    """The top-p of sampling."""
    decoding: str = "sample"
    """How it was drawn: "sample", "greedy", "best-of-4" by a reward model, "beam-4" …"""

    @property
    def label(self) -> str:
        """The source of a preference: who wrote the response, and how where it was not plain sampling."""
        return self.source if self.decoding == "sample" else f"{self.source}, {self.decoding}"


class CandidatePair(NamedTuple):
    """Two different responses to one prompt, in the order in which an annotator sees them."""

    first: Candidate
    """The response y1, on the left."""
    second: Candidate
    """The response y2, on the right."""


@dataclass(frozen=True)
class Preference:
    """One comparison: to `prompt`, `annotator` preferred `chosen` to `rejected`."""

    prompt: Prompt
    """The prompt that both responses answer."""
    chosen: Response
    """The preferred response: a text, or a dialogue of several turns."""
    rejected: Response
    """The other response."""
    annotator: str = ""
    """The annotator's name."""
    round: int = 0
    """The round of collecting."""
    margin: float | None = None
    """Difference of the ratings it comes from; None where there were no ratings."""
    weight: float = 1.0
    """Weight in the loss; 1/(number of pairs) for the pairs of one ranking, so that prompts count alike."""
    group: str = ""
    """Shared by pairs that belong in one batch, such as those of one ranking; empty for a pair of its own."""
    clean: bool = True
    """False where a simulated annotator made a mistake."""
    chosen_source: str = ""
    """Name of the policy that wrote the chosen response."""
    rejected_source: str = ""
    """Name of the policy that wrote the rejected response."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"expected a finite weight > 0 of a preference, got {self.weight}")
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise ValueError(f"expected a finite margin >= 0 of a preference or None, got {self.margin}")

    @classmethod
    def between(
        cls, chosen: Candidate, rejected: Candidate, annotator: str, round: int, *, clean: bool = True
    ) -> Preference:
        """The preference of one candidate to another one."""
        return cls(
            chosen.prompt,
            chosen.response,
            rejected.response,
            annotator,
            round,
            clean=clean,
            chosen_source=chosen.label,
            rejected_source=rejected.label,
        )
