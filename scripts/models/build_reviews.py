"""python scripts/models/build_reviews.py: rebuild the models that the embedded reviews task ships.

The first stages of `rlhf-gym run` on the task itself, from random weights: pretrain, SFT, collect, reward model. What
they leave is copied to rlhf_gym/tasks/data/reviews. Five to ten minutes on 2 cores. Gold, the language and the prompts
are code and are not touched; PPO is no part of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import tyro

from rlhf_gym.pipeline import run
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import RunConfig, StageName
from rlhf_gym.training import SFTConfig

DATA = Path(__file__).resolve().parents[2] / "rlhf_gym" / "tasks" / "data" / "reviews"
SHIPPED: dict[str, StageName] = {"pretrained": "pretrain", "sft": "sft", "reward_model": "reward"}


def main(run_dir: Path = Path("runs/build"), output: Path = DATA) -> None:
    """Build the models in `run_dir`, gone on with if it is there, and copy them to `output`."""
    pretraining = SFTConfig(epochs=6, learning_rate=3e-3, batch_size=32)
    config = RunConfig(run_dir=run_dir, pretrain=True, pretraining=pretraining)
    for stage in ("pretrain", "sft", "collect", "reward"):
        run(config, only=stage)
    notes = shutil.ignore_patterns("training.json", "history.json", "metrics.json")
    for name, stage in SHIPPED.items():
        shutil.rmtree(output / name, ignore_errors=True)
        shutil.copytree(RunFolder(run_dir).stage(stage) / "model", output / name, ignore=notes)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
