"""The interactive picture: what is recorded is right, and the page in the documentation is the one that is made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_gym.picture import RECORDING, record, write_picture
from rlhf_gym.tasks import reviews_task

PAGE = Path(__file__).resolve().parents[2] / "docs" / "interactive" / "index.html"
NUMBERS = re.compile(r'(<script type="application/json" id="numbers">)(.*?)(</script>)', re.DOTALL)


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    return json.loads(RECORDING.read_text(encoding="utf-8"))


def assert_close(given: Any, expected: Any) -> None:
    """The same keys, lengths and texts; numbers to what a model in float32 gives on different processors."""
    assert type(given) is type(expected)
    if isinstance(given, dict):
        assert given.keys() == expected.keys()
        for key, value in given.items():
            assert_close(value, expected[key])
    elif isinstance(given, list):
        assert len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            assert_close(one, other)
    else:
        assert given == (pytest.approx(expected, rel=1e-6, abs=1e-6) if isinstance(expected, float) else expected)


def test_the_page_of_the_documentation_is_the_one_that_is_made(tmp_path: Path):
    """If this fails: python scripts/picture.py."""
    made = write_picture(tmp_path / "index.html").read_text(encoding="utf-8")
    kept = PAGE.read_text(encoding="utf-8")
    assert NUMBERS.sub("", made) == NUMBERS.sub("", kept)
    assert_close(*(json.loads(NUMBERS.search(page)[2]) for page in (made, kept)))


def test_the_page_is_small_and_names_no_address():
    page = PAGE.read_text(encoding="utf-8")
    assert PAGE.stat().st_size <= 1_500_000
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}, (
        "a name of XML, never fetched"
    )
    assert re.search(r"default-src 'none'; style-src 'sha256-[\w+/=]+'; script-src 'sha256-[\w+/=]+'", page)
    assert not re.search(r"<[^>]+\s(style|on\w+)=", page.split("<script>")[0]), "the policy forbids them"


def test_recorded_gold_is_the_gold_of_the_recorded_responses(recording: dict[str, Any]):
    gold = reviews_task().gold
    for run in recording["runs"]:
        for step in run["steps"]:
            said = ["".join(t for t in s["tokens"] if t.strip() != "<eos>").strip() for s in step["samples"]]
            np.testing.assert_allclose(
                gold(recording["prompts"], said), [s["gold"] for s in step["samples"]], atol=1e-4
            )


def test_the_recorded_runs_show_what_the_page_says_of_them(recording: dict[str, Any]):
    held, free = (run["steps"] for run in recording["runs"])
    assert [run["kl_coef"] for run in recording["runs"]] == [0.1, 0.0]
    first = {**held[0]}
    assert first == free[0] and first["kl"] == 0 and first["tokens"] == 0, "both begin as the SFT policy"
    best = max(free, key=lambda step: step["gold"])
    assert best["gold"] > first["gold"] + 1 and free[-1]["gold"] < first["gold"] - 1, "gold rises, then falls"
    assert free[-1]["score"] > best["score"], "while the score goes on rising"
    assert held[-1]["gold"] > best["gold"] and held[-1]["kl"] < 6 and free[-1]["kl"] > 40
    entropy = [step["entropy"] for step in free]
    assert entropy.index(max(entropy)) not in (0, len(entropy) - 1) and entropy[-1] < entropy[0] < max(entropy)
    chosen, rejected = held[-1]["samples"][0], free[-1]["samples"][0]
    assert chosen["gold"] > rejected["gold"] and chosen["score"] < rejected["score"], "the pair of the first scene"


def test_a_recording_is_of_one_policy_at_each_moment():
    made = record((0.5,), tokens=300, judged=6, shown=2)
    assert made == record((0.5,), tokens=300, judged=6, shown=2)
    assert made["prompts"] == reviews_task().heldout_prompts[:2] and made["judged"] == 6
    (run,) = made["runs"]
    before, after = run["steps"]
    assert before["tokens"] == 0 and before["kl"] == 0 and after["tokens"] >= 300 and after["kl"] != 0
    for sample in before["samples"]:
        assert sample["log_probs"] == sample["ref_log_probs"] and len(sample["log_probs"]) == len(sample["tokens"])
    assert all(set(step) == {"tokens", "score", "gold", "kl", "entropy", "length", "samples"} for step in run["steps"])
