"""python scripts/customer.py: the SFT policy of the embedded dialogues with a customer, trained anew.

A small GPT-2 with the weights of the reviews' pretrained model, whose words it shares, learns the answers of the task's
scripted speaker. With --ship-models it goes to rlhf_gym/tasks/data/customer. A minute on one core. It leaves out all
that learns from a reward.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import study
import torch
from transformers import GPT2LMHeadModel

from rlhf_gym.lm import load_causal_lm
from rlhf_gym.tasks import customer_task, reviews_task
from rlhf_gym.tasks.customer import MODELS
from rlhf_gym.training import SFTConfig, train_sft

SFT = SFTConfig(epochs=4, learning_rate=3e-3, batch_size=64, save_steps=0, use_cpu=True)


def train_policy(folder: Path, demonstrations: int = 12_000, config: SFTConfig = SFT) -> None:
    """Train the SFT policy into a folder; one that is there already is not trained again."""
    task = customer_task(num_demonstrations=demonstrations)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(task.model_config)
    own = model.state_dict()
    for name, weights in load_causal_lm(reviews_task().pretrained).state_dict().items():
        own[name][: len(weights)] = weights  # the reviews' words come first here too
    shown = (list(task.demonstrations), list(task.heldout_demonstrations))
    print(train_sft(model, task.tokenizer, shown[0], heldout=shown[1], config=config, output_dir=folder))


def ship(folder: Path, output: Path) -> None:
    """Copy a model without the notes of its training."""
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("training.json", "history.json", "metrics.json"))


def main(run_dir: Path = Path("runs/customer"), ship_models: bool = False) -> None:
    """Train the policy in `run_dir`; with `ship_models` the package has it from then on."""
    train_policy(run_dir / "sft")
    if ship_models:
        ship(run_dir / "sft", MODELS / "sft")


if __name__ == "__main__":
    study.run_script(main)
