"""The settings of collecting preferences, of the reward model, and of the evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval
from tyro.conf import arg

from rlhf_gym.ranges import Count, NonNegative, Positive, Seed, Several, Share, Whole, check_ranges
from rlhf_gym.settings.defaults import row
from rlhf_gym.settings.supervised import RewardModelingConfig, from_row

Pairing = Literal["random", "all", "tournament", "active"]
Acquisition = Literal["disagreement", "information", "uncertainty"]
Labeler = Literal["simulated", "web"]
Aggregate = Literal["mean", "min", "uwo"]
Trunk = Literal["separate", "shared"]
StepEnd = Literal["separator", "sentence", "turn", "token"]
ItemKind = Literal["comparison", "ranking", "rating"]
Ties = Literal["drop", "half"]

CONFIDENT_WORDS = ("absolutely", "always", "certainly", "clearly", "definitely", "never", "obviously", "undoubtedly")
"""Words of people who are sure of themselves."""


@dataclass(frozen=True)
class CollectConfig:
    """Which responses are compared, and by whom."""

    num_prompts: Several = 2000
    """Prompts that responses are drawn for; all of the task's where it has fewer."""
    samples_per_prompt: Several = 16
    """How many responses are drawn for each prompt."""
    sources: tuple[str, ...] = ("previous",)
    """Policies that write: "sft", "previous" (those of the round before, at first the SFT policy), "round-K" (those of
    round K, from the round after it on), or a folder or hub name. A prompt's responses take all ways of all in turn."""
    decodings: tuple[str, ...] = ("sample",)
    """How they write: "sample", "greedy", "beam-4", or "best-of-4" by r_φ (with other numbers too)."""
    temperatures: tuple[Positive, ...] = (1.0, 1.3)
    """Sampling temperatures, of "sample" and "best-of-n". Some heat shows r_φ what the agent may come to."""
    top_ps: tuple[Annotated[float, Interval(gt=0, le=1)], ...] = (1.0,)
    """Top-p, of "sample" and "best-of-n"; each with each temperature."""
    reward_model: str | None = None
    """Folder of the r_φ that the best of n is best by; by default that of the round before: none in the first."""
    pairing: Pairing = "random"
    """Which of a prompt's responses are compared: "random" pairs each once, "all" compares all, "tournament" some;
    "active" labels in batches and chooses each batch by what the labels so far leave open."""
    acquisition: Acquisition = "uncertainty"
    """What "active" looks for: "disagreement" of an ensemble, "information" on which of it is right (BALD), or
    "uncertainty", a preference near ½."""
    batches: Count = 4
    """Batches that "active" labels in; the first is drawn at random, where there is nothing to go by yet."""
    active_members: Several = 3
    """Reward models of the ensemble that "active" chooses by."""
    sharpness: NonNegative | None = None
    """A pair is chosen with probability ∝ (acquisition score)^sharpness, 0 being at random; None takes the best."""
    labeler: Annotated[Labeler, arg(aliases=("--labeler",))] = "simulated"
    """Who compares: "simulated", annotators that know gold, or "web", people at a labelling page."""
    num_labels: Annotated[Several | None, arg(aliases=("--num-labels",))] = None
    """Comparisons asked for in a round; None for all the pairs there are."""
    annotator_temperature: NonNegative = 0.25
    """The simulated annotator prefers y1 with σ((gold(y1) − gold(y2))/temperature); 0 never doubts."""
    mistake_rate: Share = 0.05
    """Share of its answers that are turned round."""
    annotator_length_bias: float = 0.0
    """How much better a response seems to it for each word, in gold's unit."""
    annotator_word_bias: float = 0.0
    """How much better for each of `annotator_bias_words`."""
    annotator_bias_words: tuple[str, ...] = CONFIDENT_WORDS
    """Words it is fond of; by default those of people who are sure of themselves."""
    annotator_tie_threshold: NonNegative = 0.0
    """It calls closer ones than this a tie, in gold's unit (Rao and Kupper); ties are not learned from."""
    annotators: Count = 1
    """How many simulated annotators there are."""
    annotator_spread: NonNegative = 0.0
    """How much they differ: temperature, mistake rate and biases of each are multiplied by e^{spread·z}, z normal."""
    judges_per_pair: Count = 1
    """How many of them (or of the people at the page) compare each pair; their answers weigh one together."""
    heldout_fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    """Share of the prompts whose pairs only measure the reward model."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.temperatures or not self.top_ps:
            raise ValueError(f"expected temperatures and top_ps, got {self.temperatures} and {self.top_ps}")
        _check_decodings(self)
        if self.labeler == "simulated" and self.judges_per_pair > self.annotators:
            raise ValueError(f"expected judges_per_pair <= annotators = {self.annotators}, got {self.judges_per_pair}")


def is_source_name(source: str) -> bool:
    """Whether an entry of `CollectConfig.sources` names policies of the run; otherwise it is a folder or hub name."""
    return re.fullmatch(r"sft|previous|round-\d+", source) is not None


def _check_decodings(config: CollectConfig) -> None:
    """The sources and decodings are some, and can be had.

    Raises:
        ValueError: they are not.
    """
    if not config.sources or not config.decodings:
        raise ValueError(f"expected sources and decodings, got {config.sources} and {config.decodings}")
    for text in config.decodings:
        if not re.fullmatch(r"sample|greedy|(best-of|beam)-([2-9]|[1-9]\d+)", text):
            raise ValueError(f'expected decodings "sample", "greedy", "best-of-4", "beam-4" or such, got {text!r}')
    if config.reward_model is None and all(text.startswith("best-of") for text in config.decodings):
        raise ValueError(
            f"expected reward_model, or a decoding for the first round, which has none yet, got {config.decodings}"
        )


@dataclass(frozen=True)
class RewardConfig:
    """The reward model r_φ: one, or several as an ensemble, on the SFT policy's trunk."""

    training: Annotated[RewardModelingConfig, arg(name="")] = field(
        default_factory=lambda: from_row(RewardModelingConfig, row("reward", "scratch"))
    )
    """How each reward model is trained."""
    members: Count = 1
    """Reward models that are trained; more than one make an ensemble."""
    trunk: Trunk = "separate"
    """Whether members have a trunk each, or "shared" one: k heads that cost what one model costs, and disagree less."""
    aggregate: Aggregate = "mean"
    """How members become one score: "mean", "min", or "uwo" (mean − λ·variance)."""
    uncertainty_weight: NonNegative = 0.1
    """λ of "uwo"."""
    step_separator: str = "\n"
    """The text that ends a step of a response, where r_φ learns from step labels."""
    reference_samples: Several = 1000
    """SFT responses over which scores are normalised to mean 0 and standard deviation 1."""
    probe_samples: Whole = 250
    """SFT responses to held-out prompts that are edited, to see what the scores are for; 0 leaves the probes out."""
    force: bool = False
    """Go on to the next stage even with a reward model that is no better than a coin on the held-out pairs."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.step_separator:
            raise ValueError("expected a step_separator, got an empty one")
        if self.trunk == "shared" and self.members < 2:
            raise ValueError(f"expected members >= 2 to share a trunk, got {self.members}")


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured at the end, on prompts nothing was trained on."""

    num_prompts: Several = 400
    """Held-out prompts; all of the task's where it has fewer."""
    best_of: Several = 4
    """n of the baseline: the best by r_φ of n responses of the SFT policy."""
    best_of_samples: Whole = 64
    """SFT responses to a prompt by which the best of n is measured, for every n up to that, where there is gold; 0 for
    none."""
    best_of_prompts: Count = 64
    """The first so many of the held-out prompts are asked for that; all where there are fewer."""
    shown: Whole = 6
    """Prompts whose responses are shown token by token in the report."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class AdversarialConfig:
    """How adversarial pairs are found."""

    round: Count = 1
    """The round whose reward model is tested."""
    pairs: Count = 400
    """Pairs that are labelled and trained on; half as many more are labelled to measure by."""
    num_prompts: Count = 400
    """Prompts that are searched for training pairs; half as many held-out prompts are searched to measure by."""
    tries: Count = 4
    """Edits of each kind that are tried on each normal response."""
    words: Count = 12
    """How many words of praise (the words most typical of chosen responses) and of filler (the most common ones)."""
    seed: Seed = 0
    """Seed of prompts, responses and edits."""

    def __post_init__(self) -> None:
        check_ranges(self)
