"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_readme_has_its_two_loops():
    assert len(BLOCKS) >= 2
    assert "env.step(" in BLOCKS[0]
    assert len(BLOCKS[0].strip().splitlines()) <= 15
    assert any("TokenPPO(" in block and ".learn(" in block for block in BLOCKS)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block_runs(number, tmp_path):
    script = tmp_path / "block.py"
    script.write_text(BLOCKS[number])
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", str(script)]
    env = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=env, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
