"""The blocks of docs/turns.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "turns.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, capsys):
    exec(compile(BLOCKS[number], str(PAGE), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_there_is_one_of_each_kind():
    for word in ("env.step(action)", "LMRespondent(", "TextEnvRespondent("):
        assert any(word in block for block in BLOCKS)
