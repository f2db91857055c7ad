"""Runs that several files begin from; whoever changes one takes a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_gym.pipeline import run
from tests.tiny_runs import quiet, save_model, tiny_config, tiny_task


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as far as its reward model, in `run`, and the model that it began with, in `pretrained`."""
    root = tmp_path_factory.mktemp("before")
    save_model(root / "pretrained")
    for stage in ("sft", "collect", "reward"):
        run(tiny_config(root / "run"), task=tiny_task(root / "pretrained"), only=stage, console=quiet())
    return root


@pytest.fixture
def copied(before: Path) -> Callable[[Path], Path]:
    """Copies that run to a folder, its files with the times of change of the original."""
    return lambda root: shutil.copytree(before / "run", root)


@pytest.fixture(scope="session")
def pretrained(before: Path) -> Path:
    """The model that the run began with."""
    return before / "pretrained"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run from random weights."""
    root = tmp_path_factory.mktemp("whole") / "run"
    run(tiny_config(root), task=tiny_task(), console=quiet())
    return root
