"""The torture of runs, files and page, in its smallest form: what it tries comes to a good end, and it can tell."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest

from rlhf_gym.files import checkpoint_before
from tests.trouble import flip, lose_a_line

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import torture

GOOD = {"survived", "clear"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> torture.Undisturbed:
    return torture.Undisturbed(tmp_path_factory.mktemp("torture").resolve())


def test_a_run_that_ends_at_a_file_operation_goes_on(whole: torture.Undisturbed, tmp_path: Path) -> None:
    for case, _ in zip(torture.operations(whole, random.Random(1), tmp_path), range(2), strict=False):
        assert case.verdict()[0] == "survived", case.name


def test_damaged_checkpoints_and_logs_of_an_agent_are_made_up_for(whole: torture.Undisturbed, tmp_path: Path) -> None:
    """The last checkpoint and the log, in a run that was ended as its third checkpoint was put in place."""
    root = whole.interrupted("train", 40, tmp_path / "cut")
    (checkpoint,) = root.rglob("checkpoint.zip")
    assert checkpoint_before(checkpoint).is_file()
    flip(checkpoint, random.Random(0))
    lose_a_line(checkpoint.with_name("metrics.jsonl"))
    column, said = torture.finished(root, whole.root)
    assert column == "survived" and "checkpoint.before.zip is gone on from" in said


def test_another_result_and_work_done_again_are_seen(whole: torture.Undisturbed, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole.root, root)
    (root / "left_over").write_text("x")
    assert torture.finished(root, whole.root) == ("silent", "other contents: ['left_over']")


def test_how_a_process_ends_is_told_apart() -> None:
    def crash() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def fail() -> int:
        raise KeyError("odd")

    def refuse() -> int:
        raise ValueError("expected one, got two")

    seen = [torture.judged(torture.apart(work))[0] for work in (crash, fail, refuse, lambda: 0, lambda: 3)]
    assert seen == ["traceback", "traceback", "traceback", "survived", "silent"]
    assert torture.judged(torture.apart(torture.called(refuse)))[0] == "clear"
    assert torture.judged(torture.apart(lambda: torture.time.sleep(9), 0.1))[0] == "silent"


def test_a_table_of_all_other_kinds() -> None:
    kinds = ["settings", "inputs", "hostile", "page"]
    counts = torture.torture(kinds, seed=0, cases=1)
    assert {kind: sum(found[column] for column in GOOD) for kind, found in counts.items()} == dict.fromkeys(kinds, 1)
