"""python scripts/models/build_customer.py: rebuild the models that the embedded dialogues with a customer ship.

The policy begins with the weights of the reviews' pretrained model, whose words it shares, and learns the answers of
the task's scripted speaker. The reward model is that of the first seed of scripts/studies/customer.py. What comes out
is put into rlhf_gym/tasks/data/customer. A minute of CPU time. Customer, gold and prompts are code and are not
touched; PPO is no part of it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
import tyro
from transformers import GPT2LMHeadModel

from rlhf_gym.lm import load_causal_lm
from rlhf_gym.tasks import customer_task, reviews_task
from rlhf_gym.tasks.customer import MODELS
from rlhf_gym.training import SFTConfig, train_sft

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies"))
from customer import learn_reward

SFT = SFTConfig(epochs=4, learning_rate=3e-3, batch_size=64, save_steps=0, use_cpu=True)


def untrained_policy() -> GPT2LMHeadModel:
    """The reviews' pretrained model with random weights for the words and places that are new."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(customer_task().model_config)
    own = model.state_dict()
    for name, weights in load_causal_lm(reviews_task().pretrained).state_dict().items():
        own[name][: len(weights)] = weights  # the reviews' words come first here too
    return model


def main(run_dir: Path = Path("runs/build_customer")) -> None:
    """Train the policy in `run_dir`, gone on with if it is there, and the reward model; the package gets both."""
    task = customer_task()
    shown = (list(task.demonstrations), list(task.heldout_demonstrations))
    train_sft(untrained_policy(), task.tokenizer, shown[0], heldout=shown[1], config=SFT, output_dir=run_dir)
    shutil.rmtree(MODELS / "sft", ignore_errors=True)
    notes = shutil.ignore_patterns("training.json", "history.json", "metrics.json")
    shutil.copytree(run_dir, MODELS / "sft", ignore=notes)
    reward, _ = learn_reward(seed=0)
    reward.save_pretrained(MODELS / "reward_model")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
