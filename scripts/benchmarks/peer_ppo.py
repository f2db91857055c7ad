"""Some iterations of TRL's last PPO (1.12), timed, in the peer's own Python:
`PEER_PYTHON -m benchmarks.peer_ppo ITERATION_AS_JSON`.

The same models, lengths, epochs and minibatches as ours, fp32, no gradient checkpointing. It trains a value model of
its own beside the policy, also where the policy has an adapter; that is what it is, and it is counted.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import warnings
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks import models


class Marks(TrainerCallback):
    """A callback that notes when each iteration ends."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(models.now(self.device))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(models.now(self.device))


def measure(given: models.Iteration) -> dict[str, Any]:
    """Seconds of each timed iteration, and the peak of memory."""
    torch.set_num_threads(given.threads)
    libraries = models.peak_memory_mb(given.device)
    shape = given.shape
    positions = models.PROMPT + given.response
    lora = given.kind == "lora"
    policy = models.causal_lm(shape, positions, device=given.device)
    reference = (
        None if lora else models.causal_lm(shape, positions, device=given.device)
    )  # else the adapter switched off
    reward, value = (models.scalar_model(shape, positions, device=given.device) for _ in range(2))
    marks = Marks(given.device)
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder,
            use_cpu=given.device == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1000,
            per_device_train_batch_size=given.episodes,
            gradient_accumulation_steps=1,  # with more, num_mini_batches would change nothing
            num_mini_batches=given.minibatches,
            num_ppo_epochs=given.epochs,
            local_rollout_forward_batch_size=given.episodes,
            response_length=given.response,
            total_episodes=given.episodes * (given.warm_ups + given.iterations),
            num_sample_generations=0,
            temperature=1.0,
            learning_rate=1e-5,
            kl_coef=0.05,
            seed=0,
            bf16=False,
            gradient_checkpointing=False,
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=models.tokenizer_of(shape, padding_side="left"),  # as it asks for
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": models.random_prompts(shape, 4 * given.episodes)}),
            callbacks=[marks],
            peft_config=adapter_config() if lora else None,
        )
        torch.set_num_threads(given.threads)
        learning = [p for p in trainer.model.policy.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in learning[:2]]  # of an adapter: A, and B, which begins at 0
        trainer.train()
    if all(torch.equal(old, p) for old, p in zip(before, learning, strict=False)):
        raise RuntimeError("expected the policy's weights to change, they did not")
    seconds = [b - a for a, b in zip(marks.times[:-1], marks.times[1:], strict=True)]
    return {
        "version": trl.__version__,
        "seconds": seconds[given.warm_ups :],
        "peak_mb": models.peak_memory_mb(given.device),
        "libraries_mb": libraries,
    }


def adapter_config() -> Any:
    """The adapter that ours has too."""
    from peft import LoraConfig

    return LoraConfig(**models.ADAPTER)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(models.iteration_from_json(sys.argv[1]))
    print(json.dumps(found))
