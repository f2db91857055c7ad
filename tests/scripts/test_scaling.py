"""The model of cost, against numbers that were worked out by hand; ranks that are killed, by processes that sleep."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import scaling

SHAPE = scaling.Shape("tiny", 1, 8, 16, 2, 1, 100)
WEIGHTS = 1376  # 2·8·4·(2 + 1) of attention, 3·8·16 of the MLP, 100·8 of embeddings
GIVEN = scaling.Arguments(episodes=4, prompt=2, response=6, epochs=1, minibatches=2, micro_batch=1, engine_slots=8)


def test_costs_by_hand() -> None:
    """On two GPUs; a token has 2·1·4 keys and values, and 12·8 + 4·16 states."""
    found = {how: scaling.cost(GIVEN, SHAPE, 2, how) for how in ("replicas", "sharded", "engine")}
    cache = 4 * 8 * 2 * 8
    states = 8 * 2 * 160
    assert found["replicas"].memory == 10 * WEIGHTS + 16 * WEIGHTS + states
    assert found["sharded"].memory == 10 * WEIGHTS + max(8 * WEIGHTS + cache, 8 * WEIGHTS + 8 * 800 + states)
    assert found["engine"].memory == 12 * WEIGHTS + 8 * 800 + 2 * 8 * (2 * 8 + 2 * 160)
    assert found["replicas"].sent == 2 * 8 * WEIGHTS / 2
    assert found["sharded"].sent == (2 * 2 * 12 + 4) * WEIGHTS / 2
    assert found["engine"].sent == (2 * 8 + 6) * WEIGHTS / 2 + 2 * WEIGHTS
    seen = (2 + 3) * 16
    assert found["replicas"].acting == pytest.approx(6 * ((2 * WEIGHTS + 4 * seen) / 2e12 + 3e-4))
    assert found["engine"].acting == pytest.approx(4 / 8 * 6 * (2 * WEIGHTS + 8 * seen) / 2e12)
    assert found["replicas"].updating == pytest.approx(6 * WEIGHTS * 32 / 4e14)
    assert found["engine"].updating == pytest.approx(8 * WEIGHTS * 32 / 4e14)
    assert found["sharded"].scoring == pytest.approx(6 * WEIGHTS * 32 / 4e14)
    assert found["sharded"].objects == pytest.approx(20 * 2 * 4 * 6 / 1e9)
    assert found["sharded"].wire == pytest.approx(found["sharded"].sent / 3e11)
    assert scaling.cost(GIVEN, SHAPE, 16, "sharded").wire == pytest.approx((2 * 2 * 12 + 4) * WEIGHTS * 15 / 16 / 4e10)


def test_the_docs_have_the_table() -> None:
    table = scaling.table(scaling.Arguments())
    assert "| 8B | 8 to 512 | sharded | 104 | does not fit |" in table
    assert table in (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text()
    assert "| 8B | 8 | replicas | 201 |" in scaling.table(replace(scaling.Arguments(), gpus=(8,), memory=300.0))


def test_a_kill_ends_a_launcher_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends with its child, one that outlives it, and one that is over before."""
    monkeypatch.setattr(scaling, "PATIENCE", 0.3)
    chance = random.Random(0)
    found = []
    for after_child in ("", "; sleep 5", None):
        words = ["sleep", "0"] if after_child is None else ["sh", "-c", f"sleep 5 & wait $!{after_child}"]
        launcher = subprocess.Popen(words)
        found.append(scaling.kill_one(launcher, 1, 0.05, chance, tmp_path))
    ends, stays, over = found
    assert over is None
    assert ends.ended is not None and ends.left == 0 and ends.stage == "the start"
    assert stays.ended is None and stays.left == 0
