"""The Python of docs/reward_models.md on rewards at tokens runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "docs" / "reward_models.md").read_text().split("## Rewards at tokens")[1].split("\n## ")[0]


def test_a_token_reward_model_is_trained_and_optimised_against(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
    env = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=env, timeout=240)
    assert done.returncode == 0, done.stderr
    found = {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", done.stdout)}
    assert found["accuracy"] > max(found["good"], 1 - found["good"]) + 0.2
    assert found["log_loss"] < 0.3
    assert "nats from π_ref" in done.stdout
