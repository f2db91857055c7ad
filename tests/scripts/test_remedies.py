"""The study of remedies: its table by hand, its verifier, and the whole of it in the smallest form."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import remedies
from remedy_study.arms import ARMS, BY_NAME, NONE, stutters
from remedy_study.runs import Ground, trajectory
from remedy_study.table import as_markdown, as_text, paired, rows

from rlhf_gym.runs import PPOConfig


def figures(golds: list[float], end: float, kl: float = 40.0) -> dict[str, Any]:
    """A run whose KL rises by 10 nats an iteration."""
    n = len(golds)
    columns = [[100.0 * i for i in range(n)], [10.0 * i for i in range(n)], golds, golds]
    return {"trajectory": columns, "final": {"gold": end, "kl": kl, "length": 9.0}, "base": {"gold": 0.0, "kl": 0.0}}


def test_differences_are_taken_seed_by_seed() -> None:
    found = paired({0: 1.0, 1: 2.0, 2: math.nan, 3: 5.0}, {0: 0.5, 1: 1.0, 2: 0.0, 4: 9.0})
    assert (found.mean, found.wins, found.n) == (0.75, 2, 2)
    assert found.error == pytest.approx(0.25)
    assert not found.clear, "two seeds: t = 12.7 standard errors are asked for, 3 are there"
    assert paired({s: 1 + 0.1 * s for s in range(5)}, dict.fromkeys(range(5), 0.0)).clear
    none = paired({0: math.nan}, {0: 1.0})
    assert math.isnan(none.mean) and none.n == 0 and not none.clear


def test_the_table_says_what_was_reached() -> None:
    better = BY_NAME["separate-min"]
    base = {0: figures([0.0] * 9, -2.0), 1: figures([0.0] * 9, -1.0)}
    found = rows({NONE: base, better: {0: figures([1.0] * 9, 0.5), 1: figures([0.5, 0.5, 0.5], 0.0, kl=8.0)}})
    assert [len(values) for values in found[1].at] == [2, 1, 1], "the second ends before 15 nats, as smoothed"
    assert [(pair.mean, pair.n) for pair in found[1].far] == [(1.0, 1), (1.0, 1)], "at 15 and at 30 nats"
    assert (found[1].at_end.mean, found[1].at_end.wins, found[1].at_end.n) == (1.75, 2, 2)
    text, markdown = as_text(found), as_markdown(found)
    assert "+1.75 ± 0.75, 2/2" in text and "+1.00 (1)" in text
    assert markdown.splitlines()[2].startswith(f"| {NONE.label} |") and markdown.count("\n") == 3
    with pytest.raises(ValueError, match="no remedy"):
        rows({better: base})


def test_every_arm_is_of_settings_there_are() -> None:
    assert len({arm.name for arm in ARMS}) == len({arm.label for arm in ARMS}) == len(ARMS)
    for arm in ARMS:
        PPOConfig(**({"kl_coef": 0.0} | arm.ppo))
    said = stutters([""] * 3, ["great great cake", "great rich great", ""])
    assert said == [-1.0, 0.0, 0.0]


def test_the_study_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "runs"
    arguments = ["remedies.py", "--quick", "--seeds", "1", "--run-dir", str(root), "--arms", "shared-uwo", "fresh"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(remedies, "DOCS", tmp_path)
    remedies.main()
    files = {path.name: path.stat().st_mtime_ns for path in (root / "quick" / "seed-0").glob("*.json")}
    assert set(files) == {f"{name}.json" for name in ("none", "shared-uwo", "fresh", "sft", "disagreement")}
    remedies.main()
    assert files == {p.name: p.stat().st_mtime_ns for p in (root / "quick" / "seed-0").glob("*.json")}, "nothing anew"
    assert not (tmp_path / "remedies.md").exists(), "a quick run writes no docs"
    ground = Ground(root / "quick", labels=60, members=2, tokens=600, small=True)
    found = {arm: {0: remedies.arm_figures(ground, arm, 0)} for arm in (NONE, BY_NAME["fresh"])}
    ways = [trajectory(f[0]) for f in found.values()]
    assert all(way.tokens[0] == 0 and abs(way.kl[0]) < 1e-3 for way in ways)
    assert (ways[1].tokens[1:] > ways[1].tokens[:-1]).all(), "the second round's tokens come after the first's"
    remedies.write_docs("| a |", tmp_path / "page.md")
    remedies.write_docs("| b |", tmp_path / "page.md")
    assert "| b |" in (page := (tmp_path / "page.md").read_text()) and "| a |" not in page
    (tmp_path / "other.md").write_text("# no marks\n")
    with pytest.raises(ValueError, match="table: scripts/remedies"):
        remedies.write_docs("", tmp_path / "other.md")
    remedies.picture(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
