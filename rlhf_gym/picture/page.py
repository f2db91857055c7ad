"""The interactive picture as one file: no request to anywhere, light and dark, for mouse, finger and keyboard.

Its scenes are a pair of responses in the reward model's loss, the optimum π* of a toy, PPO's clip, and two recorded
runs. `maths.js` has the formulas as pure functions; tests compare them with the package's own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from string import Template
from typing import Any

from rlhf_gym.envs.enumerable import LETTERS, tabular_task
from rlhf_gym.files import write_text
from rlhf_gym.picture.recording import RECORDING

HERE = Path(__file__).parent
SCRIPTS = ("maths.js", "draw.js", "comparison.js", "optimum.js", "clip.js", "run.js")
"""Joined in this order to the page's one script."""


def write_picture(path: str | Path) -> Path:
    """Write the page, all of it or nothing; the recorded runs are those of `RECORDING`."""
    css = _read("page.css")
    js = "\n".join(_read(name) for name in SCRIPTS)
    numbers = {"toy": toy_numbers(), "recording": json.loads(RECORDING.read_text(encoding="utf-8"))}
    allowed = f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}"
    page = Template(_read("page.html")).substitute(
        css=css,
        js=js,
        policy=f"{allowed}; base-uri 'none'; form-action 'none'",
        numbers=json.dumps(numbers, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )
    write_text(Path(path), page)
    return Path(path)


def toy_numbers() -> dict[str, Any]:
    """The enumerable task's 64 responses, rewards and log π_ref, and where the best of n of π_ref lies."""
    task = tabular_task(seed=0)
    best = {n: task.best_of(n) for n in (2, 4, 8, 16, 32)}
    return {
        "responses": ["".join(LETTERS[token] for token in row) for row in task.strings.tolist()],
        "rewards": task.rewards.tolist(),
        "ref_log_probs": task.log_probs(task.reference).tolist(),
        "best_of_n": [
            {"n": n, "kl": task.kl(policy), "reward": float(policy @ task.rewards)} for n, policy in best.items()
        ],
    }


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression by which a content security policy allows this inline text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
