"""`scripts/studies/overoptimization.py` on a sweep of two arms: files that are gone on with, fits, tables, picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.functional import RL
from rlhf_gym.training import RewardModelingConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "studies"))
import overoptimization
from overoptimization import (
    SWEEP,
    Arm,
    Budget,
    Outcome,
    Workshop,
    draw_figure,
    fit,
    markdown,
    one_factor_at_a_time,
    points,
)

BASE = Arm((8, 1), 24, 0.1)


def made_up(seed: int, alpha: float, decline: float, labels: int = 100) -> dict:
    """What a workshop would leave of a run whose gold is d·(α − b·log d) in the unit of SFT."""
    rng = np.random.default_rng((seed, labels))
    kl = np.sort(rng.uniform(0, 40, 30))
    gold = 0.2 + 1.3 * (RL.gold(kl, alpha, decline) + 0.05 * rng.normal(size=30))
    n = [1, 2, 4, 8, 16]
    return {
        "weights": 2576,
        "accuracy": 0.7 + 0.01 * seed,
        "sft": {"gold": 0.2, "gold_std": 1.3},
        "ppo": {
            "tokens": (900.0 * np.arange(30)).tolist(),
            "kl": kl.tolist(),
            "gold": gold.tolist(),
            "proxy": np.sqrt(kl).tolist(),
        },
        "best_of_n": {"n": n, "gold": (0.2 + np.log(n)).tolist(), "proxy": (2 * np.log(n)).tolist()},
    }


def test_a_sweep_from_end_to_end_and_again(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = one_factor_at_a_time(BASE, size=(BASE.size,), labels=(24, 48), noise=(0.1,))
    budget = Budget(
        tokens=700,
        n_episodes=16,
        learning_rate=1e-3,
        texts=64,
        prompts=4,
        samples=6,
        references=64,
        reward=RewardModelingConfig(epochs=1, learning_rate=1e-3, batch_size=16, save_steps=0, use_cpu=True),
    )
    picture = tmp_path / "picture.png"
    found = overoptimization.main(2, tmp_path / "sweep", picture, sweep, budget)
    said = capsys.readouterr().out
    outcomes = {outcome.arm: outcome for of_factor in found.values() for outcome in of_factor}
    assert set(outcomes) == {BASE, Arm((8, 1), 48, 0.1)} and all(len(o.runs) == 2 for o in outcomes.values())
    assert picture.stat().st_size > 10_000 and "| preferences | r_φ right, % | α | b |" in said
    assert "2.58 k, 48 labels, 0.1 flipped" in said
    run = outcomes[BASE].runs[0]
    assert run["ppo"]["tokens"][0] == 0 and len(run["ppo"]["gold"]) >= 2 and run["best_of_n"]["n"] == [1, 2, 3, 4, 6]
    assert run["best_of_n"]["gold"][0] == pytest.approx(run["sft"]["gold"]), "the best of one is any response"
    assert sorted(path.name for path in (tmp_path / "sweep" / "arms" / BASE.name).iterdir()) == [
        "seed-0.json",
        "seed-1.json",
    ]

    def refuse(*_: object) -> dict:
        raise AssertionError("made again")

    monkeypatch.setattr(Workshop, "figures", refuse)
    overoptimization.main(2, tmp_path / "sweep", picture, sweep, budget)
    again = capsys.readouterr().out
    assert again.split("\n| preferences")[1] == said.split("\n| preferences")[1]


def test_fits_and_peaks_of_an_arm_are_those_it_was_made_from() -> None:
    outcome = Outcome(BASE, [made_up(seed, 1.2, 0.6) for seed in range(4)])
    fitted = fit(outcome.runs, "ppo")
    (low, high), _ = fitted.intervals()
    assert low < 1.2 < high and fitted.dof == 3
    assert fitted.peak_distance == pytest.approx(np.e, abs=0.2)
    assert fit(outcome.runs[:1], "ppo").alpha == pytest.approx(1.2, abs=0.15)
    assert points(outcome.runs[0], "best_of_n").gold[0] == pytest.approx(0)


def test_the_table_says_where_there_is_no_peak(tmp_path: Path) -> None:
    arms = [Arm(BASE.size, labels, 0.1) for labels in (100, 200, 400)]
    levels = [(0.5, 0.5), (0.9, 0.5), (1.3, 0.1)]  # the last peaks at e^12
    outcomes = [
        Outcome(arm, [made_up(s, *level, arm.labels) for s in range(3)])
        for arm, level in zip(arms, levels, strict=True)
    ]
    text = markdown({"labels": outcomes})
    assert text.count("beyond 6.") == 1
    assert "71.0 ± 0.6" in text
    draw_figure({"labels": outcomes}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").is_file()


def test_the_sweep_goes_one_factor_at_a_time() -> None:
    base = Arm((64, 2), 2_000, 0.1)
    for factor, arms in SWEEP.items():
        assert base in arms and len(set(arms)) == len(arms)
        assert all({**vars(arm), factor: 0} == {**vars(base), factor: 0} for arm in arms)
    names = {arm.name for arms in SWEEP.values() for arm in arms}
    assert len(names) == 11 and "64x2-2000-0.1" in names
