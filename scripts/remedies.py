"""python scripts/remedies.py: what helps against reward hacking, by how much, all remedies side by side in one table.

On the embedded task, from its shipped SFT policy. Each seed has 1,000 preferences, a fifth of them turned round, one
reward model, four of them as an ensemble, and four heads on one trunk, all trained on these same preferences and kept.
PPO learns for 16,000 tokens under each remedy, without a KL penalty but where that is the remedy. Gold judges the
responses of every iteration, and on the way out the policy on prompts nothing was trained on.

Prints the table, writes it into docs/remedies.md (between its marks) and draws docs/remedies.png. Every run's figures
are a file; an interrupted study goes on. λ of the ensembles was chosen on other seeds, by `--calibrate`. About five
minutes a seed on one core. It leaves out any tuning of the other remedies: each has one setting, or a few beside one
another.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from remedy_study.arms import ARMS, BY_NAME, CALIBRATION, NONE, Arm
from remedy_study.picture import picture
from remedy_study.runs import Ground, arm_figures, disagreement
from remedy_study.table import Figures, as_markdown, as_text, rows

DOCS = Path(__file__).resolve().parent.parent / "docs"
CALIBRATION_SEEDS = (100, 101)
BEGIN, END = "<!-- table: scripts/remedies.py -->", "<!-- end of table -->"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/remedies"), help="gone on with if it is there")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=list(BY_NAME), default=list(BY_NAME), metavar="ARM",
                        help=", ".join(BY_NAME))  # fmt: skip
    parser.add_argument("--calibrate", action="store_true", help="choose λ of the ensembles, on seeds of their own")
    parser.add_argument("--quick", action="store_true", help="everything tiny, to see that it runs; writes no docs")
    parser.add_argument("--only-seeds", type=int, nargs="+", help="run these alone, and say nothing")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of remedies.md and remedies.png")
    a = parser.parse_args()
    if a.seeds < 1:
        parser.error(f"expected --seeds >= 1, got {a.seeds}")
    torch.set_num_threads(1)
    ground = Ground(a.run_dir)
    if a.quick:
        ground = Ground(a.run_dir / "quick", labels=60, members=2, tokens=600, small=True)
    if a.calibrate:
        calibrate(ground, CALIBRATION_SEEDS[:1] if a.quick else CALIBRATION_SEEDS)
        return
    arms = [arm for arm in ARMS if arm == NONE or arm.name in a.arms]
    found = study(ground, arms, a.only_seeds or range(a.seeds))
    if a.only_seeds:
        return
    lines = rows(found)
    print(f"\n{as_text(lines)}\n* 0 lies outside the 95 % interval (Student's t over the seeds); n/m: seeds won")
    say_disagreement(ground, list(found[NONE]))
    if not a.quick:
        write_docs(as_markdown(lines), a.docs / "remedies.md")
        picture(found, a.docs / "remedies.png")
        print(f"wrote {a.docs / 'remedies.md'} and {a.docs / 'remedies.png'}")


def study(ground: Ground, arms: Sequence[Arm], seeds: Sequence[int]) -> dict[Arm, Figures]:
    """All runs, or those that are missing, seed by seed."""
    found: dict[Arm, Figures] = {arm: {} for arm in arms}
    for seed in seeds:
        for arm in arms:
            started = time.perf_counter()
            found[arm][seed] = figures = arm_figures(ground, arm, seed)
            end = figures["final"]
            print(f"seed {seed}, {arm.name}: gold {end['gold']:+.2f}, KL {end['kl']:.1f}, "
                  f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
    return found


def say_disagreement(ground: Ground, seeds: Sequence[int]) -> None:
    """How far members are apart where the labels were, and where PPO without a remedy went."""
    each = [disagreement(ground, seed) for seed in seeds]
    print("\nmembers' mean score and variance, in SFT's unit    of SFT's responses    of those without a remedy")
    for name in ("separate", "shared"):
        sides = [np.mean([found[name][policy] for found in each], axis=0) for policy in ("sft", "none")]
        print(f"{name:48s}" + "".join(f"{mean:+12.2f} {variance:9.2f}" for mean, variance in sides))


def calibrate(ground: Ground, seeds: Sequence[int]) -> None:
    """Gold at the end for each λ, by the calibration seeds; the best is what `arms.py` has."""
    found = study(ground, [NONE, *CALIBRATION], seeds)
    for arm, figures in found.items():
        golds = [f["final"]["gold"] for f in figures.values()]
        print(f"{arm.label:30s} {np.mean(golds):+.2f}   {' '.join(f'{g:+.2f}' for g in golds)}")


def write_docs(table: str, path: Path) -> None:
    """Put the table between its marks, leaving what is written around it.

    Raises:
        ValueError: the page has no marks.
    """
    page = path.read_text() if path.is_file() else f"# Remedies\n\n{BEGIN}\n{END}\n"
    if BEGIN not in page or END not in page:
        raise ValueError(f"expected {BEGIN} and {END} in {path}, got a page without")
    head, rest = page.split(BEGIN, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main()
