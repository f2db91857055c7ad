"""python scripts/gallery.py: four runs that fail on purpose, their cures, and docs/gallery.md with its pictures.

On the embedded task, from its shipped SFT policy: PPO without a KL penalty; a learning rate that makes the policy
collapse; annotators who like length; annotators who like certainty. Each is run again with its cure. Prints a table,
draws docs/gallery/*.png and writes docs/gallery.md, every figure in it from these runs; about five minutes on one core.
Interrupted, it goes on where it stopped. It leaves out more than one seed: this is a gallery, not a study.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from failures import CERTAIN, SOUND, Settings, build, different, draw_pictures, measure, write_gallery

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/gallery"), help="gone on with if it is there")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="receives gallery.md and gallery/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", type=int, default=2_000, help="comparisons for each reward model")
    parser.add_argument("--tokens", type=int, default=24_000, help="of each PPO run")
    a = parser.parse_args()
    torch.set_num_threads(1)
    make_gallery(Settings(a.run_dir, a.seed, a.labels, a.tokens), a.docs)


def make_gallery(settings: Settings, docs: Path) -> None:
    """Runs, table, pictures, page."""
    started = time.perf_counter()
    found = {
        name: [measure(arm, CERTAIN if name in ("confidence", SOUND) else ()) for arm in arms]
        for name, arms in build(settings).items()
    }
    print(f"{'':12}{'':26}{'gold':>14}{'KL':>7}{'entropy':>9}{'length':>8}{'different':>11}  alarms")
    for name, arms in found.items():
        for arm in arms:
            e = arm.final
            alarms = ", ".join(f"{alarm['name']} at {alarm['tokens']:,}" for alarm in arm.alarms)
            print(
                f"{name:12}{arm.label:26}{e['gold'][0]:+8.2f} ± {e['gold'][1]:.2f}{e['kl'][0]:7.1f}{e['entropy']:9.2f}"
                f"{e['length']:8.1f}{different(arm.responses):11d}  {alarms}"
            )
    (sound,) = found.pop(SOUND)
    for path in (
        *draw_pictures(found, sound, docs / "gallery"),
        write_gallery(docs / "gallery.md", found, sound, settings),
    ):
        print(f"wrote {path}")
    print(f"{time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
