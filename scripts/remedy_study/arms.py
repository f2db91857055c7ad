"""The remedies: each a name, the PPO settings that differ from no remedy, and the reward model it learns against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from rlhf_gym.rewards import Aggregate

Source = Literal["single", "separate", "shared"]

TARGET = 6.0
"""Nats that every remedy with a KL of its own is given: about where gold is highest without any remedy."""
SEPARATE_WEIGHT, SHARED_WEIGHT = 20.0, 100.0
"""λ of "uwo", chosen on the calibration seeds (`--calibrate`), which the table does not use."""
WEIGHTS = (1.0, 5.0, 20.0, 50.0, 100.0)
"""What it was chosen from."""


@dataclass(frozen=True, eq=False)
class Arm:
    """One row of the table."""

    name: str
    """In files and on the command line."""
    label: str
    """In the table."""
    family: str
    """Which picture it is in."""
    ppo: dict[str, Any] = field(default_factory=dict)
    """Fields of `PPOConfig` that differ from no remedy's, which is β = 0."""
    reward: Source = "single"
    """The reward model, or the ensemble."""
    aggregate: Aggregate = "mean"
    """How an ensemble's members become one score."""
    uncertainty_weight: float = 0.0
    """λ of "uwo"."""
    fresh: bool = False
    """Half the labels are spent on the policy's own responses."""


def stutters(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The verifier of the study: −1 for a response in which some word stands twice in a row, else 0.

    It knows nothing of what the review is about or of how kind it is, and is easily got around.
    """
    words = [response.split() for response in responses]
    return [-1.0 if any(a == b for a, b in pairwise(w)) else 0.0 for w in words]


def ensemble(name: str, label: str, reward: Source, aggregate: Aggregate, weight: float = 0.0) -> Arm:
    """An arm that learns against an ensemble, without a KL penalty."""
    return Arm(name, label, f"ensembles, {reward} trunks" if reward == "separate" else "ensembles, one trunk",
               reward=reward, aggregate=aggregate, uncertainty_weight=weight)  # fmt: skip


NONE = Arm("none", "no remedy (β = 0)", "")
KL, SCORE, AGENT, ONE = "KL to SFT", "what is done to the score", "the agent and its data", "mean − λ·var, one trunk"
ARMS = (
    NONE,
    Arm("beta-0.03", "β = 0.03", KL, {"kl_coef": 0.03}),
    Arm("beta-0.1", "β = 0.1", KL, {"kl_coef": 0.1}),
    Arm("beta-0.3", "β = 0.3", KL, {"kl_coef": 0.3}),
    Arm("adaptive", f"β adaptive, target {TARGET:g}", KL,
        {"kl_coef": 0.1, "kl_control": "adaptive", "kl_target": TARGET}),
    Arm("constraint", f"KL ≤ {TARGET:g}, dual ascent", KL,
        {"kl_coef": 0.1, "kl_control": "constraint", "kl_target": TARGET}),
    Arm("stop", f"early stop at KL {TARGET:g}", KL, {"stop_kl": TARGET}),
    ensemble("separate-mean", "4 separate, mean", "separate", "mean"),
    ensemble("separate-min", "4 separate, minimum", "separate", "min"),
    ensemble("separate-uwo-1", "4 separate, mean − 1·var", "separate", "uwo", 1.0),
    ensemble("separate-uwo", f"4 separate, mean − {SEPARATE_WEIGHT:g}·var", "separate", "uwo", SEPARATE_WEIGHT),
    ensemble("shared-mean", "4 heads on one trunk, mean", "shared", "mean"),
    ensemble("shared-min", "4 heads on one trunk, minimum", "shared", "min"),
    ensemble("shared-uwo-1", "4 heads on one trunk, mean − 1·var", "shared", "uwo", 1.0),
    ensemble("shared-uwo", f"4 heads on one trunk, mean − {SHARED_WEIGHT:g}·var", "shared", "uwo", SHARED_WEIGHT),
    Arm("clip", "scores clipped to ± 1.5", SCORE, {"clip_score": (-1.5, 1.5)}),
    Arm("whiten", "scores whitened, running", SCORE, {"normalize_score": True}),
    Arm("length", "0.1 a token past 8", SCORE, {"length_penalty": 0.1, "length_penalty_after": 8}),
    Arm("verifier", "verifier: no word twice in a row", SCORE,
        {"verifier": "remedy_study.arms:stutters", "verifier_coef": 2.0}),
    Arm("ptx", "ptx, γ = 1", AGENT, {"ptx_coef": 1.0}),
    Arm("entropy", "entropy bonus 0.05", AGENT, {"ent_coef": 0.05}),
    Arm("ema", "β = 0.1 to an EMA reference", AGENT, {"kl_coef": 0.1, "ema_reference": 0.1}),
    Arm("fresh", "half of the labels fresh, β = 0", AGENT, fresh=True),
)  # fmt: skip
BY_NAME = {arm.name: arm for arm in ARMS}
CALIBRATION = tuple(
    ensemble(f"{reward}-uwo-{weight:g}", f"{reward}, mean − {weight:g}·var", reward, "uwo", weight)
    for reward in ("separate", "shared")
    for weight in WEIGHTS
)
