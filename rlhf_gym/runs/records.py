"""What stages leave in a run folder beside their metrics: logs, views, samples; readable without a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_gym.envs import EpisodeView
from rlhf_gym.files import read_json, read_jsonl
from rlhf_gym.functional import OveroptimizationFit, best_of_n_estimate, best_of_n_kl, fit_best_of_n
from rlhf_gym.lm.chat import Prompt, as_prompt
from rlhf_gym.runs.folder import RunFolder

ITERATIONS = "metrics.jsonl"
"""In a seed's folder: what was logged, a line an iteration."""
VIEWS = "views.jsonl"
"""In a seed's folder: the first held-out prompts as the agent and its critic see them."""
BEST_OF_N = "best_of_n.json"
"""In the evaluation's folder: r_φ and gold of each of N SFT responses to each prompt."""


def iterations(folder: Path) -> list[dict[str, Any]]:
    """What was logged of one PPO run, a record an iteration."""
    return list(read_jsonl(folder / ITERATIONS))


class JudgedView(NamedTuple):
    """A response token by token, with its gold reward."""

    view: EpisodeView
    """The response, token by token."""
    gold: float | None
    """The gold reward of the response, where there is one."""


class SampleViews(NamedTuple):
    """A prompt, and what was and is said to it."""

    prompt: Prompt
    """The prompt."""
    before: JudgedView
    """The SFT policy's response, as the trained policy and its critic see it."""
    after: JudgedView
    """The trained policy's response."""

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> SampleViews:
        """The record that a line of JSONL holds."""
        sides = []
        for name in ("before", "after"):
            side = dict(record[name])
            gold = side.pop("gold")
            sides.append(JudgedView(EpisodeView.from_dict(side), gold))
        return cls(as_prompt(record["prompt"]), *sides)


def read_views(folder: Path) -> list[SampleViews]:
    """What `keep_views` left in a seed's folder; empty where there is nothing."""
    return [SampleViews.from_record(record) for record in read_jsonl(folder / VIEWS)]


@dataclass(frozen=True, eq=False)
class BestOfN:
    """SFT responses to held-out prompts as r_φ and gold see them: N to each of P."""

    proxy: np.ndarray
    """The scores by r_φ, (P, N)."""
    gold: np.ndarray
    """The gold scores, (P, N)."""

    @property
    def n(self) -> list[int]:
        """The sizes n that are evaluated, 1 first."""
        return doublings(self.gold.shape[1])

    @property
    def kl(self) -> np.ndarray:
        """KL of the best of each n from the SFT policy, at most, (len(n),)."""
        return best_of_n_kl(self.n)

    def rise(self) -> tuple[np.ndarray, np.ndarray]:
        """(gold, r_φ) of the best of each n less that of one response, each (P, len(n)); in the SFT policy's standard
        deviations of gold and of these responses' r_φ."""
        found = []
        for values, std in ((self.gold, self.gold.std()), (self.proxy, self.proxy.std())):
            estimates = best_of_n_estimate(self.proxy, values, self.n)  # (P, len(n))
            found.append((estimates - estimates[:, :1]) / max(float(std), 1e-12))
        return found[0], found[1]

    def fit(self) -> OveroptimizationFit | None:
        """d(α − b·d) fitted to gold, prompts taken as independent; None where there are too few prompts or sizes."""
        gold, _ = self.rise()
        if len(gold) < 2 or len(self.n) < 3:
            return None
        prompts = np.repeat(np.arange(len(gold)), len(self.n))
        return fit_best_of_n(np.tile(self.kl, len(gold)), gold.ravel(), runs=prompts)


def read_best_of_n(folder: RunFolder) -> BestOfN | None:
    """What `measure_best_of_n` left in a run's folder; None where it left nothing."""
    saved = read_json(folder.stage("evaluate") / BEST_OF_N)
    return None if saved is None else BestOfN(np.array(saved["proxy"]), np.array(saved["gold"]))


def doublings(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12 … and `most`: the powers of two, and what lies half-way between them."""
    found = {1, most}
    for k in range(1, most.bit_length()):
        found |= {2**k, 3 * 2 ** (k - 1)}
    return sorted(n for n in found if n <= most)
