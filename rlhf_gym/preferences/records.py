"""What is collected: candidates, pairs of them, and who preferred which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a response worth imitating: what supervised fine-tuning learns from."""

    prompt: str
    """The text the response answers or goes on from."""
    response: str
    """The response. For byte-level tokenizers it begins with its own leading space."""


@dataclass(frozen=True)
class Candidate:
    """A response drawn for a prompt, and how it was drawn."""

    prompt: str
    """The prompt."""
    response: str
    """The response."""
    source: str = ""
    """Name of the policy that wrote it."""
    temperature: float = 1.0
    """Its sampling temperature."""
    top_k: int = 0
    """Its top-k; 0 for none."""
    top_p: float = 1.0
    """Its top-p."""
    decoding: str = "sample"
    """How: "sample", "greedy", "best-of-4" by a reward model, "beam-4" …"""

    @property
    def label(self) -> str:
        """Who wrote it, and how where that was not plain sampling: what a preference records as its source."""
        return self.source if self.decoding == "sample" else f"{self.source}, {self.decoding}"


class CandidatePair(NamedTuple):
    """Two different responses to one prompt, in the order in which an annotator sees them."""

    first: Candidate
    """y1."""
    second: Candidate
    """y2."""


@dataclass(frozen=True)
class Preference:
    """One comparison: to `prompt`, `annotator` preferred `chosen` to `rejected`."""

    prompt: str
    """The prompt both answer."""
    chosen: str
    """The response preferred."""
    rejected: str
    """The other one."""
    annotator: str = ""
    """Who said so."""
    round: int = 0
    """In which round of collecting."""
    margin: float | None = None
    """By how much, in the units of the ratings it comes from; None where nobody said."""
    weight: float = 1.0
    """Weight in the loss: 1/(number of pairs) for the pairs of one ranking, so that prompts count alike."""
    group: str = ""
    """Shared by the pairs of rankings of one prompt, which belong in one batch; empty for a pair of its own."""
    clean: bool = True
    """False where a simulated annotator is known to have said the opposite of what it meant."""
    chosen_source: str = ""
    """Name of the policy that wrote the chosen response."""
    rejected_source: str = ""
    """Name of the policy that wrote the rejected response."""
