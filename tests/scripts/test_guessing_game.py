"""`scripts/studies/guessing_game.py` on a tiny budget: its table, its picture, and figures that are kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "studies"))
import guessing_game
import study


def test_ppo_stands_beside_the_optimum(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(guessing_game, "TOKENS", {4: 600})
    monkeypatch.setattr(guessing_game, "GAMES", 256)
    arguments = ["--ns", "4", "--seeds", "1", "--results", str(tmp_path / "runs"), "--output", str(tmp_path / "a.png")]
    for _ in range(2):
        study.run_script(guessing_game.main, arguments)
        rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:3] == "| 4"]
        assert [row[1:3] for row in rows] == [["SFT policy", "0"], ["TokenPPO", "600"], ["optimum", ""]]
        assert rows[-1][3] == "2.000" and all(float(row[3].split()[0]) >= 1.9 for row in rows[:2])
    kept = json.loads((tmp_path / "runs" / "4-600-0.json").read_text())
    assert kept["curve"][-1][0] >= 600 and 0.5 < kept["solved"] <= 1
    assert kept["questions"] == pytest.approx(float(rows[1][3].split()[0]), abs=0.006)
    assert (tmp_path / "a.png").stat().st_size > 5_000
