"""The work of one arm and seed: preferences → r_φ → PPO without KL penalty, and the best of n; gold judges both."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from studies import read_trajectory, study_config, task_from_sft
from transformers import AutoModelForCausalLM

from overoptimizing.sweep import Arm, Trunk
from rlhf_gym.functional import best_of_n_estimate
from rlhf_gym.lm import load_causal_lm, quiet_transformers
from rlhf_gym.pipeline import run
from rlhf_gym.pipeline.preparation import NORMALIZERS
from rlhf_gym.pipeline.samples import Samples, draw, gold_scores, proxy_scores
from rlhf_gym.preferences import BradleyTerryAnnotator, Candidate, CandidatePair
from rlhf_gym.rewards import RewardModel, RewardNormalizer
from rlhf_gym.runs import PPOConfig, RewardConfig, RunFolder, TaskConfig
from rlhf_gym.runs.records import doublings, read_jsonl, write_jsonl
from rlhf_gym.tasks import reviews_task
from rlhf_gym.training import RewardModelingConfig, SFTConfig, pretrain, train_reward_model
from rlhf_gym.training.folder import is_finished

DOUBT = 0.25
"""The annotator's temperature, in gold's unit."""


@dataclass(frozen=True)
class Budget:
    """How much each arm and seed gets."""

    tokens: int = 24_000
    """Of PPO."""
    n_episodes: int = 64
    """Responses an iteration."""
    learning_rate: float = 1.5e-4
    """PPO's; constant, and small, so that the way through KL is walked in many steps."""
    texts: int = 16_000
    """That each trunk learns the language from."""
    prompts: int = 96
    """Held-out prompts of the best of n, and of the pairs that r_φ is measured on."""
    samples: int = 128
    """SFT responses to each of them: the largest n."""
    reward: RewardModelingConfig = field(
        default_factory=lambda: RewardModelingConfig(
            epochs=3, learning_rate=1e-3, batch_size=32, evaluate_each_epoch=False, save_steps=0, use_cpu=True
        )
    )
    """Training of every reward model."""


QUICK_BUDGET = Budget(tokens=12_000, learning_rate=3e-4, texts=12_000, prompts=48, samples=64)


class Workshop:
    """What all arms share, made once and kept in the folder: trunks, preferences' responses, judged SFT responses.

    Args:
        root: the sweep's folder.
        budget: of each arm and seed.
        most_labels: the largest number of preferences of any arm.
    """

    def __init__(self, root: Path, budget: Budget, most_labels: int) -> None:
        self.root, self.budget, self.most_labels = root, budget, most_labels
        self.task = task_from_sft()
        assert self.task.sft is not None and self.task.gold is not None
        self.gold, self.sft = self.task.gold, load_causal_lm(self.task.sft)

    # -- what is shared --------------------------------------------------------------------------------------------

    def trunk(self, shape: Trunk) -> Path:
        """A language model of this shape, from random weights, after one pass over the task's texts; its folder.

        All sizes learn so, that of the SFT policy too: what differs between them is their size.
        """
        folder = self.root / "trunks" / shape.name
        if is_finished(folder):
            return folder
        texts = list(reviews_task(num_pretraining_texts=self.budget.texts).pretraining_texts)
        config = type(self.task.model_config)(
            **self.task.model_config.to_dict()
            | {"n_embd": shape.width, "n_layer": shape.layers, "n_head": shape.heads}
            | {"initializer_range": shape.width**-0.5}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
        settings = SFTConfig(
            epochs=1, learning_rate=3e-3, batch_size=32, evaluate_each_epoch=False, save_steps=0, use_cpu=True
        )
        held = max(1, len(texts) // 20)
        pretrain(model, self.task.tokenizer, texts[held:], heldout=texts[:held], config=settings, output_dir=folder)
        return folder

    def pairs(self, seed: int) -> list[CandidatePair]:
        """As many pairs of SFT responses as any arm of the seed needs, drawn once: fewer labels are the first ones."""
        path = self.root / "pairs" / f"seed-{seed}.jsonl"
        if not path.is_file():
            rng, count = np.random.default_rng((seed, 1)), int(1.1 * self.most_labels) + 20
            prompts = [self.task.prompts[int(i)] for i in rng.integers(len(self.task.prompts), size=count)]
            found = draw(self.sft, self.task, [p for p in prompts for _ in range(2)], seed=seed + 101).responses
            rows = zip(prompts, found[::2], found[1::2], strict=True)
            write_jsonl(path, [{"prompt": p, "responses": [a, b]} for p, a, b in rows if a != b][: self.most_labels])
        return [
            CandidatePair(*(Candidate(row["prompt"], response, "the SFT policy") for response in row["responses"]))
            for row in read_jsonl(path)
        ]

    @cached_property
    def judged(self) -> tuple[Samples, np.ndarray]:
        """SFT responses to held-out prompts, N in a row to each of P, and gold of each, (P, N)."""
        prompts = self.task.heldout_prompts[: self.budget.prompts]
        samples = draw(self.sft, self.task, [p for p in prompts for _ in range(self.budget.samples)], seed=7)
        return samples, gold_scores(self.gold, samples).reshape(len(prompts), -1)

    # -- one arm and seed ------------------------------------------------------------------------------------------

    def figures(self, arm: Arm, seed: int) -> dict[str, Any]:
        """What came out: of r_φ, of PPO's way, of the best of n. Gold and r_φ as they are; `sft` has gold's unit."""
        folder = self.root / "arms" / arm.name / f"seed-{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted attempt left
        with quiet_transformers():
            reward = self.reward_model(arm, seed, folder / "training")
        reward.save_pretrained(folder / "reward")
        run_folder = self.ppo(folder / "ppo", folder / "reward", seed)
        way = read_trajectory(run_folder, "ppo", seed)
        unit = json.loads((run_folder.stage("reward") / NORMALIZERS).read_text())[0]
        reward.normalizer = RewardNormalizer.from_dict(unit)  # the one PPO's scores were in
        samples, gold = self.judged
        proxy = proxy_scores(reward, self.task.tokenizer, samples).reshape(gold.shape)  # (P, N)
        n = doublings(gold.shape[1])
        result = {
            "weights": reward.model.num_parameters(),
            "accuracy": accuracy(proxy, gold),
            "sft": {"gold": float(gold.mean()), "gold_std": float(gold.std())},
            "ppo": {name: values.tolist() for name, values in vars(way).items()},
            "best_of_n": {
                "n": n,
                "gold": best_of_n_estimate(proxy, gold, n).mean(0).tolist(),
                "proxy": best_of_n_estimate(proxy, proxy, n).mean(0).tolist(),
            },
        }
        shutil.rmtree(folder, ignore_errors=True)  # the figures are what is kept
        return result

    def reward_model(self, arm: Arm, seed: int, folder: Path) -> RewardModel:
        """r_φ of the arm; the seed decides on its pairs, what is said of them, its head and the order of learning."""
        annotator = BradleyTerryAnnotator(self.gold, DOUBT, arm.noise, (seed, 2))
        labels = annotator.label(self.pairs(seed)[: arm.labels])
        reward = RewardModel.from_language_model(self.trunk(arm.trunk), dtype=torch.float32, seed=seed)
        training = replace(self.budget.reward, seed=seed)
        train_reward_model(reward, labels, heldout=labels[:2], config=training, output_dir=folder)
        return reward

    def ppo(self, folder: Path, reward: Path, seed: int) -> RunFolder:
        """PPO without KL penalty against a reward model, as a run of the pipeline."""
        b = self.budget
        config = study_config(
            folder, seed, task=TaskConfig(reward_model=str(reward)), unleashed=False,
            reward=RewardConfig(reference_samples=1000),
            ppo=PPOConfig(
                total_tokens=b.tokens, kl_coef=0.0, learning_rate=b.learning_rate, schedule="constant",
                n_episodes=b.n_episodes, checkpoint_every=10_000,
            ),
        )  # fmt: skip
        for stage in ("reward", "ppo"):
            run(config, task=self.task, only=stage, console=Console(file=io.StringIO()))
        return RunFolder(folder)


def accuracy(proxy: np.ndarray, gold: np.ndarray) -> float:
    """How often r_φ orders two responses as gold does: neighbours of each prompt's (P, N), gold's ties left out."""
    even = gold.shape[1] // 2 * 2
    deltas = [values[:, 1:even:2] - values[:, 0:even:2] for values in (proxy, gold)]  # (P, N/2) each
    apart = deltas[1] != 0
    return float((0.5 * (1 + np.sign(deltas[0] * deltas[1])))[apart].mean())
