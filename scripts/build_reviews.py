"""python scripts/build_reviews.py: rebuild the models that the embedded reviews task ships.

The first stages of `rlhf-gym run` on the task itself, from random weights: pretrain, SFT, collect, reward model. What
they leave is copied to rlhf_gym/tasks/data/reviews. Five to ten minutes on 2 cores. Gold, the language and the prompts
are code and are not touched; PPO is no part of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from rlhf_gym.pipeline import run
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import RunConfig, StageName
from rlhf_gym.training import SFTConfig

DATA = Path(__file__).resolve().parent.parent / "rlhf_gym" / "tasks" / "data" / "reviews"
SHIPPED: dict[str, StageName] = {"pretrained": "pretrain", "sft": "sft", "reward_model": "reward"}
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "reward_normalizer.json",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, help="where to work (kept); by default a temporary folder")
    parser.add_argument("--output", type=Path, default=DATA, help="where the models go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.run_dir or Path(temporary) / "build"
        config = RunConfig(
            run_dir=folder, pretrain=True, pretraining=SFTConfig(epochs=6, learning_rate=3e-3, batch_size=32)
        )
        for stage in ("pretrain", "sft", "collect", "reward"):
            run(config, only=stage)
        for name, stage in SHIPPED.items():
            ship(RunFolder(folder).stage(stage) / "model", arguments.output / name)


def ship(source: Path, target: Path) -> None:
    """Copy a model, and none of the notes that training left beside it."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    config = json.loads((target / "config.json").read_text())
    config.pop("_name_or_path", None)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{target}: {sum(f.stat().st_size for f in target.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
