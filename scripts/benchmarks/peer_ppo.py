"""Some iterations of TRL's last PPO (1.12), timed, in the peer's own Python:
`PEER_PYTHON -m benchmarks.peer_ppo ITERATION_AS_JSON`.

The same models, lengths, epochs and minibatches as ours, fp32, no gradient checkpointing. It trains a value model of
its own beside the policy; that is what it is, and it is counted.
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

from benchmarks.common import (
    PROMPT,
    ForeignLoad,
    Iteration,
    causal_lm,
    iteration_from_json,
    now,
    peak_memory_mb,
    random_prompts,
    scalar_model,
    word_tokenizer,
)


class Marks(TrainerCallback):
    """A callback that notes when each iteration ends."""

    def __init__(self, given: Iteration) -> None:
        self.given = given
        self.times: list[float] = []
        self.load: ForeignLoad | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(now(self.given.device))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(now(self.given.device))
        if self.load is None and len(self.times) > self.given.warm_ups:
            self.load = ForeignLoad()


def measure(given: Iteration) -> dict[str, Any]:
    """Seconds of each timed iteration, and the peak of memory."""
    libraries = peak_memory_mb(given.device)
    shape = given.shape
    positions = PROMPT + given.response
    policy, reference = (causal_lm(shape, positions, device=given.device) for _ in range(2))
    reward, value = (scalar_model(shape, positions, device=given.device) for _ in range(2))
    prompts = random_prompts(shape, 4 * given.episodes)
    marks = Marks(given)
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
            processing_class=word_tokenizer(shape.vocab_size, padding_side="left"),  # as it asks for
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            callbacks=[marks],
        )
        torch.set_num_threads(given.threads)
        before = next(policy.parameters()).detach().clone()
        trainer.train()
    if torch.equal(before, next(policy.parameters())):
        raise RuntimeError("expected the policy's weights to change, they did not")
    assert marks.load is not None
    seconds = [b - a for a, b in zip(marks.times[:-1], marks.times[1:], strict=True)]
    return {
        "version": trl.__version__,
        "seconds": seconds[given.warm_ups :],
        "foreign": marks.load(),
        "peak_mb": peak_memory_mb(given.device),
        "libraries_mb": libraries,
        "trained": sum(p.numel() for model in (policy, value) for p in model.parameters()),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(iteration_from_json(sys.argv[1]))
    print(json.dumps(found))
