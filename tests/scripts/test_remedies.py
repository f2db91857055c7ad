"""The study of remedies: its table by hand, its verifier, and the whole of it in the smallest form."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.settings import EvaluateConfig, PPOSettings, RunConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "studies"))
import remedies
from remedies import ARMS, BY_NAME, NONE, Study, difference, rows, stutters, trajectory


def figures(golds: list[float], end: float, kl: float = 40.0) -> dict[str, Any]:
    """A run whose KL rises by 10 nats an iteration."""
    n = len(golds)
    columns = [[100.0 * i for i in range(n)], [10.0 * i for i in range(n)], golds, golds]
    return {"trajectory": columns, "final": {"gold": end, "kl": kl}}


def test_differences_are_taken_seed_by_seed() -> None:
    found = difference({0: 1.0, 1: 2.0, 3: 5.0}, {0: 0.5, 1: 1.0, 2: 0.0, 4: 9.0})
    assert found == "+0.75 ± 0.25, 2/2", "two seeds: t = 12.7 standard errors are asked for a star, 3 are there"
    assert difference({s: 1 + 0.1 * s for s in range(5)}, dict.fromkeys(range(5), 0.0)) == "+1.20 ± 0.07*, 5/5"
    assert difference({0: 2.0}, {0: 1.0}) == "+1.00, 1/1" and difference({}, {0: 1.0}) == "–"


def test_the_table_says_what_was_reached() -> None:
    better, worse = BY_NAME["separate-min"], BY_NAME["entropy"]
    base = {0: figures([0.0] * 9, -2.0), 1: figures([0.0] * 9, -1.0)}
    good = {0: figures([1.0] * 9, 0.5), 1: figures([0.5, 0.5, 0.5], 0.0, kl=8.0)}  # its second ends before 15 nats
    found = rows({NONE: base, worse: {0: figures([0.0] * 9, -3.0)}, better: good})
    assert [line[0] for line in found] == [NONE.label, better.label, worse.label], "the best at the end first"
    assert found[1][1:4] == ("+0.75 ± 0.25", "+1.00 (1)", "+1.00 (1)")
    assert found[1][8:] == ("+1.00, 1/1", "+1.00, 1/1", "+1.75 ± 0.75, 2/2") and found[0][8:] == ("", "", "")
    with pytest.raises(ValueError, match="no remedy"):
        rows({better: base})


def test_every_arm_is_of_settings_there_are() -> None:
    assert len({arm.name for arm in ARMS}) == len({arm.label for arm in ARMS}) == len(ARMS)
    for arm in ARMS:
        PPOSettings(**({"kl_coef": 0.0} | arm.ppo))
    said = stutters([""] * 3, ["great great cake", "great rich great", ""])
    assert said == [-1.0, 0.0, 0.0]


def tiny(config: RunConfig) -> RunConfig:
    """A handful of steps of everything."""
    agent = replace(config.agent, n_episodes=16, num_envs=16)
    evaluate = EvaluateConfig(num_prompts=6, best_of=2, shown=0)
    reward = replace(config.reward, reference_samples=32, probe_samples=8, force=True)
    return replace(config, agent=agent, reward=reward, evaluate=evaluate)


def test_the_study_runs_and_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "remedies.md").write_text(
        "<!-- table: scripts/studies/remedies.py -->\n<!-- end of table -->\n"
    )
    study = Study(root, labels=60, members=2, tokens=400, changes=tiny)
    arms = [NONE, BY_NAME["shared-uwo"], BY_NAME["fresh"]]
    remedies.write(study, arms, 1, tmp_path)
    files = {path.name: path.stat().st_mtime_ns for path in (root / "seed-0").glob("*.json")}
    assert set(files) == {f"{name}.json" for name in ("none", "shared-uwo", "fresh")}
    remedies.write(study, arms, 1, tmp_path)
    assert files == {p.name: p.stat().st_mtime_ns for p in (root / "seed-0").glob("*.json")}, "nothing anew"
    assert all(f"| {arm.label} |" in (tmp_path / "studies" / "remedies.md").read_text() for arm in arms)
    assert (tmp_path / "images" / "remedies.png").stat().st_size > 10_000
    found = {arm: {0: study.figures(arm, 0)} for arm in (NONE, BY_NAME["fresh"])}
    ways = [trajectory(f[0]) for f in found.values()]
    assert all(way.tokens[0] == 0 and abs(way.kl[0]) < 1e-3 for way in ways)
    assert (ways[1].tokens[1:] > ways[1].tokens[:-1]).all(), "the second round's tokens come after the first's"
