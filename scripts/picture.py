"""python scripts/picture.py [--record]: the interactive picture, docs/interactive/index.html.

One offline page with four scenes: a comparison, the optimum of a toy, PPO's clip, two PPO runs. With --record the runs
are recorded anew first, which takes four minutes on one core. It leaves out runs of one's own: for those there is
`rlhf-gym report`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from rlhf_gym.files import write_text
from rlhf_gym.picture import RECORDING, record, write_picture

PAGE = Path(__file__).resolve().parent.parent / "docs" / "interactive" / "index.html"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PAGE, help="the page (default: docs/interactive/index.html)")
    parser.add_argument("--record", action="store_true", help="record the runs anew")
    arguments = parser.parse_args()
    if arguments.record:
        torch.set_num_threads(1)
        write_text(RECORDING, json.dumps(record(), ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"wrote {write_picture(arguments.output)}")


if __name__ == "__main__":
    main()
