"""scripts/label_torture.py, scaled down: killed in the middle, nothing is lost and nothing doubled."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "label_torture.py"


def test_killed_twice_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("label_torture", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.torture(tmp_path, 200, kills=2, clients=3)
    assert (found.acknowledged, found.stored, found.kills) == (200, 200, 2)
    assert (found.lost, found.doubled, found.wrong) == (0, 0, 0)
    # and the comparison itself can tell: a list of one more
    extra = tmp_path / "client-9.jsonl"
    extra.write_text('["never-stored", 1, 0]\n')
    assert script.compare(tmp_path / "labels.sqlite", [extra], 0, 0.0).lost == 1
