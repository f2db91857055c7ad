"""Comparisons labelled over HTTP while the page meets faults: none may be lost, none doubled, none stored as another.

`scripts/labeling.py` does the same for an hour.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_gym.labeling import store

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(store, "_BUSY_SECONDS", 0.2)  # of the server, so that a lock shorter than a second is one
    return importlib.import_module("labeling")


@pytest.mark.parametrize(
    ("comparisons", "kills", "others"), [(100, 2, 1), pytest.param(400, 4, 2, marks=pytest.mark.slow)]
)
def test_nothing_is_lost_or_doubled(
    tmp_path: Path, script: ModuleType, comparisons: int, kills: int, others: int
) -> None:
    settings = script.Faults(
        comparisons, clients=4, seconds=0, kills=kills, locks=others, full_disks=others, longest=0.6
    )
    outcome = script.torture(tmp_path, settings)
    assert outcome[:5] == (comparisons, comparisons, 0, 0, 0) and outcome.refused + outcome.unanswered > 0
    # and the comparison itself can tell: a list of one more
    extra = tmp_path / "client-9.jsonl"
    extra.write_text('["never-stored", 1, 0]\n')
    (tmp_path / "client-9.json").write_text('{"refused": 0, "unanswered": 0}')
    assert script.compare(tmp_path, [extra]).lost == 1
