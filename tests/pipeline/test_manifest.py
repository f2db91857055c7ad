"""What a stage left is listed, and damage to it is found, named, and healed by the command that the message gives."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rlhf_gym.cli.app import main
from rlhf_gym.pipeline import run
from rlhf_gym.runs import RunFolder
from tests.tiny_runs import quiet, tiny_config, tiny_task
from tests.trouble import cut, flip, lose_a_line


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy, its files with the times of change of the original."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def test_every_file_of_every_complete_stage_is_listed(whole: Path) -> None:
    folder = RunFolder(whole)
    stages = list(folder.complete_stages())
    assert {name for name, _ in stages} == {"pretrain", "sft", "collect", "reward", "train", "evaluate"}
    folder.check(thorough=True)
    for name, round in stages:
        for path in folder.stage(name, round).rglob("*"):
            if path.is_file() and path.name not in ("manifest.json", "timing.json") and path.stat().st_size:
                before = path.read_bytes()
                flip(path)
                with pytest.raises(ValueError, match=rf"(?s)what {name} left in .*{path.name} has other contents"):
                    folder.check()
                path.write_bytes(before)
    folder.check()


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("sft/model/model.safetensors", flip, "has other contents"),
        ("round-1/collect/preferences.jsonl", lose_a_line, "bytes and had"),
        ("round-1/reward/model/model.safetensors", cut, "bytes and had"),
        ("round-1/train/seed-0/metrics.jsonl", Path.unlink, "is missing"),
        ("round-1/reward/metrics.json", cut, "could not load JSON|bytes and had"),
    ],
)
def test_a_damaged_run_goes_on_only_after_the_command_in_the_message(file, damage, words, root, capsys) -> None:
    damage(root / file)
    stage = next(name for name in ("sft", "collect", "reward", "train") if name in file)
    with pytest.raises(ValueError, match=rf"(?s){words}"):
        run(tiny_config(root), task=tiny_task(), console=quiet())
    assert main(["check", str(root)]) == 2
    assert main(["report", str(root)]) == 2
    run(tiny_config(root), task=tiny_task(), console=quiet(), redo=stage)
    assert main(["check", str(root)]) == 0
    assert "files as they were" in capsys.readouterr().out


def test_a_changed_time_alone_is_no_damage(root: Path) -> None:
    os.utime(root / "sft/model/model.safetensors", ns=(1, 1))
    RunFolder(root).check()


def test_what_was_meant_can_be_accepted(root: Path) -> None:
    lose_a_line(root / "round-1/collect/preferences.jsonl")
    assert main(["check", str(root)]) == 2
    assert main(["check", str(root), "--accept"]) == 0
    assert main(["check", str(root)]) == 0
    run(tiny_config(root), task=tiny_task(), console=quiet())


def test_a_folder_from_before_there_were_manifests_is_taken(root: Path, capsys) -> None:
    for path in root.rglob("manifest.json"):
        path.unlink()
    lose_a_line(root / "round-1/collect/preferences.jsonl")
    run(tiny_config(root), task=tiny_task(), console=quiet())
    assert main(["check", str(root)]) == 0
    assert "before there were manifests" in capsys.readouterr().out


def test_a_file_that_was_cut_short_as_it_was_written_is_not_listed(tmp_path: Path) -> None:
    """It is gone once it has been written again."""
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.json.partial").write_text("{")
    RunFolder(tmp_path).complete("sft", 1, {"seconds": 1.0})
    RunFolder(tmp_path).check()
    assert "partial" not in (tmp_path / "sft" / "manifest.json").read_text()


def test_what_is_no_run_is_said(tmp_path: Path, capsys) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "expected the folder of a run" in capsys.readouterr().err
