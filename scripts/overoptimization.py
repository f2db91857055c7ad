"""How far can a reward model be trusted? Gao et al.'s figure on the embedded task: gold rises, peaks and falls.

    python scripts/overoptimization.py             # 5 seeds, a table and docs/overoptimization.png; half an hour
    python scripts/overoptimization.py --seeds 3   # less sure
    python scripts/overoptimization.py --quick     # one seed, few and small arms; a minute

One factor at a time around a base (a reward model of 114k weights, 2,000 preferences, a tenth of them flipped): the
size of the reward model, the number of preferences, and the share of them that is turned round. For each arm and seed a
reward model is trained on pairs of SFT responses that a simulated annotator compares, PPO maximises it without KL
penalty, and the best of n SFT responses are chosen by it. Gold, which neither sees, judges both, over √KL, as in Gao,
Schulman & Hilton 2022 (arXiv 2210.10760), whose curves d(α − β log d) and d(α − βd) are fitted, with 95 % intervals
over seeds.

Every arm and seed leaves a file, so that an interrupted sweep goes on. Left out: policies of other sizes, KL penalties,
and reward models trained to the end of their learning curve, whatever their size: all get three passes over their
preferences at one learning rate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from overoptimizing.outcome import Outcome
from overoptimizing.picture import draw
from overoptimizing.sweep import FACTORS, QUICK_SWEEP, SWEEP, Arm, Sweep
from overoptimizing.table import markdown
from overoptimizing.work import QUICK_BUDGET, Budget, Workshop
from studies import kept


def main(
    arguments: Sequence[str] | None = None, *, sweep: Sweep | None = None, budget: Budget | None = None
) -> dict[Arm, Outcome]:
    """The command. `sweep` and `budget` are for other levels than those of the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="of everything, for each arm; 5, or 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="one seed, small arms")
    parser.add_argument("--run-dir", type=Path, help="gone on with if it is there; runs/overoptimization")
    parser.add_argument("--output", type=Path, help="the picture; docs/overoptimization.png, --quick: in the run dir")
    a = parser.parse_args(arguments)
    if a.seeds is not None and a.seeds < 1:
        parser.error(f"expected --seeds >= 1, got {a.seeds}")
    sweep = sweep or (QUICK_SWEEP if a.quick else SWEEP)
    budget = budget or (QUICK_BUDGET if a.quick else Budget())
    root = a.run_dir or Path("runs/overoptimization-quick" if a.quick else "runs/overoptimization")
    output = a.output or (root / "overoptimization.png" if a.quick else Path("docs/overoptimization.png"))
    seeds = range(a.seeds or (1 if a.quick else 5))
    found = collect(sweep, Workshop(root, budget, max(sweep.labels)), seeds)
    by_factor = {factor: [found[arm] for arm in sweep.arms_of(factor)] for factor in FACTORS}
    print(f"\n{len(seeds)} seed{'s' * (len(seeds) > 1)}; in brackets 95 % intervals, ± standard errors\n")
    print(markdown(by_factor))
    draw(by_factor, output)
    print(f"wrote {output}")
    return found


def collect(sweep: Sweep, workshop: Workshop, seeds: Sequence[int]) -> dict[Arm, Outcome]:
    """The figures of every arm and seed, made where they are not there; all arms of one seed before the next."""
    runs: dict[Arm, list[dict]] = {arm: [] for arm in sweep.arms}
    number = 0
    for seed in seeds:
        for arm in sweep.arms:
            number, started = number + 1, time.perf_counter()
            path = workshop.root / "arms" / arm.name / f"seed-{seed}.json"
            figures = kept(path, lambda arm=arm, seed=seed: workshop.figures(arm, seed))  # type: ignore[misc]
            runs[arm].append(figures)
            gold, seconds = figures["ppo"]["gold"], time.perf_counter() - started
            print(
                f"{number}/{len(seeds) * len(sweep.arms)}  seed {seed}, {arm.name}: r_φ right "
                f"{figures['accuracy']:.1%}, gold {gold[0]:+.2f}, at most {max(gold):+.2f}, in the end {gold[-1]:+.2f} "
                f"({seconds:.0f} s)",
                flush=True,
            )
    return {arm: Outcome(arm, figures) for arm, figures in runs.items()}


if __name__ == "__main__":
    main()
