"""The loops of docs/loops.md run as they stand there, and learn where they say so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LOOPS = Path(__file__).resolve().parents[2] / "docs" / "loops.md"
BLOCKS = re.findall(r"```python\n(.*?)```", LOOPS.read_text(), flags=re.DOTALL)


def run(block, capsys):
    """What it prints."""
    exec(compile(block, str(LOOPS), "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, capsys):
    output = run(BLOCKS[number], capsys)
    assert output.strip()
    if "loss.backward()" in BLOCKS[number]:
        scores = [float(score) for score in re.findall(r"score ([+-]\d+\.\d+)", output)]
        assert len(BLOCKS[number].strip().splitlines()) <= 35
        assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.2, output  # one that does not learn: noise around 0


def test_there_are_the_loops_promised():
    assert sum("env.step(" in block for block in BLOCKS) >= 6
    assert any("loss.backward()" in block for block in BLOCKS)
