"""The page on other people's agents: its snippets run, in order, as one script."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "bring_your_own_agent.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_page_shows_every_agent():
    for agent in (" PPO(", "MaskablePPO(", "TRPO(", "DQN("):
        assert any(agent in block for block in BLOCKS), agent


def test_the_pages_commands_exist():
    commands = re.findall(r"python (scripts/\w+\.py)|pytest (tests/[\w/]+\.py) -k (\w+)", PAGE)
    assert len(commands) >= 5
    for script, file, word in commands:
        assert (ROOT / (script or file)).is_file()
        assert not file or re.search(rf"def test_\w*{word}", (ROOT / file).read_text()), (file, word)


def test_the_snippets_run(tmp_path):
    pytest.importorskip("sb3_contrib")
    script = tmp_path / "page.py"
    script.write_text("\n".join(BLOCKS))
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-W", "error::UserWarning:__main__", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) >= 3
