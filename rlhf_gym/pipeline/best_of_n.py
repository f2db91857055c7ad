"""The best of n for every n, from one set of SFT responses: what choosing by r_φ alone is worth, and where it turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from rlhf_gym.functional import OveroptimizationFit, best_of_n_estimate, best_of_n_kl, fit_best_of_n
from rlhf_gym.pipeline.preparation import Run
from rlhf_gym.pipeline.samples import draw, gold_scores, proxy_scores
from rlhf_gym.rewards import LearnedReward
from rlhf_gym.runs.folder import RunFolder, read_json
from rlhf_gym.training.folder import write_json

FILE = "best_of_n.json"
"""In the evaluation's folder: r_φ and gold of each response."""


@dataclass(frozen=True, eq=False)
class BestOfN:
    """SFT responses to held-out prompts as r_φ and gold see them: N to each of P."""

    proxy: np.ndarray
    """r_φ, (P, N)."""
    gold: np.ndarray
    """Gold, (P, N)."""

    @property
    def n(self) -> list[int]:
        """The sizes that are looked at, 1 first."""
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
        """d(α − βd) through gold, each prompt a witness of its own; None where there are too few prompts or sizes."""
        gold, _ = self.rise()
        if len(gold) < 2 or len(self.n) < 3:
            return None
        prompts = np.repeat(np.arange(len(gold)), len(self.n))
        return fit_best_of_n(np.tile(self.kl, len(gold)), gold.ravel(), runs=prompts)


def measure_best_of_n(run: Run, sft: PreTrainedModel, reward: LearnedReward, prompts: Sequence[str]) -> None:
    """Draw the responses and keep what r_φ and gold say; nothing where there is no gold, or none are asked for."""
    samples = run.config.evaluate.best_of_samples
    asked = prompts[: run.config.evaluate.best_of_prompts]
    if run.task.gold is None or not samples:
        return
    repeated = [prompt for prompt in asked for _ in range(samples)]
    label = run.bar(f"best of n of the SFT policy, n up to {samples}")
    drawn = draw(sft, run.task, repeated, seed=run.config.seed + 64, progress=label)
    scores = {
        "proxy": proxy_scores(reward, run.task.tokenizer, drawn),
        "gold": gold_scores(run.task.gold, drawn),
    }
    folder = run.folder.stage("evaluate")
    folder.mkdir(parents=True, exist_ok=True)
    rounded = {name: values.reshape(len(asked), samples).round(5).tolist() for name, values in scores.items()}
    write_json(folder / FILE, rounded)


def read_best_of_n(folder: RunFolder) -> BestOfN | None:
    """What `measure_best_of_n` left in a run's folder; None where it left nothing."""
    saved = read_json(folder.stage("evaluate") / FILE)
    return None if saved is None else BestOfN(np.array(saved["proxy"]), np.array(saved["gold"]))


def doublings(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12 … and `most`: the powers of two, and what lies half-way between them."""
    found = {1, most}
    for k in range(1, most.bit_length()):
        found |= {2**k, 3 * 2 ** (k - 1)}
    return sorted(n for n in found if n <= most)
