"""`--logger`: the figures of a run as TensorBoard, CSV and Weights & Biases have them, over an interruption too."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stable_baselines3.common.logger import Logger

from rlhf_gym.files import read_jsonl
from rlhf_gym.monitoring import WandbOutput
from rlhf_gym.monitoring.outputs import check_loggers
from rlhf_gym.pipeline import run
from rlhf_gym.pipeline.progress import Watch
from rlhf_gym.pipeline.stages import Interrupted
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import RunConfig, read_config
from tests.tiny_runs import quiet, tiny_config, tiny_task


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with both loggers, cut short in its second rollout, and gone on with by another call."""
    pytest.importorskip("tensorboard")
    root = tmp_path_factory.mktemp("runs") / "run"
    config = tiny_config(root, logger=("tensorboard", "csv"))
    calls = 0

    def interrupt(*_: object) -> bool:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "_on_step", interrupt)
        with pytest.raises(Interrupted, match="train"):
            run(config, task=tiny_task(), console=quiet())
    run(config, task=tiny_task(), console=quiet())
    return RunFolder(root)


def test_the_csv_has_every_iteration_once(interrupted: RunFolder) -> None:
    folder = interrupted.seed("train", 1, 0)
    with (folder / "progress.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    records = list(read_jsonl(folder / "metrics.jsonl"))
    assert len(rows) == len(records) > 1
    for row, record in zip(rows, records, strict=True):
        assert float(row["rlhf/score"]) == record["rlhf/score"]
        assert int(float(row["time/total_timesteps"])) == record["tokens"]


def test_tensorboard_has_every_iteration_at_its_tokens(interrupted: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = interrupted.seed("train", 1, 0)
    events = EventAccumulator(str(folder)).Reload()
    records = list(read_jsonl(folder / "metrics.jsonl"))
    assert {event.step for event in events.Scalars("rlhf/kl")} == {record["tokens"] for record in records}
    assert events.Scalars("rlhf/score")[-1].value == pytest.approx(records[-1]["rlhf/score"])


def test_what_loggers_wrote_may_be_cleared_away(interrupted: RunFolder) -> None:
    for path in interrupted.seed("train", 1, 0).glob("events.out.tfevents.*"):
        path.unlink()
    interrupted.check(thorough=True)


def test_loggers_may_change_when_a_run_goes_on(interrupted: RunFolder) -> None:
    assert read_config(interrupted.root).logger == ("tensorboard", "csv")  # type: ignore[union-attr]
    run(tiny_config(interrupted.root), task=tiny_task(), console=quiet())
    assert read_config(interrupted.root).logger == ()  # type: ignore[union-attr]


def test_other_names_are_refused() -> None:
    for repeated in (("csv", "csv"), "csv"):
        with pytest.raises(ValueError, match="expected logger as a tuple of different names, got"):
            RunConfig(logger=repeated)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected logger to be one of .*'wandb'.*, got 'excel'"):
        RunConfig(logger=("excel",))  # type: ignore[arg-type]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"logger wandb needs wandb: .* pip install -e '\.\[wandb\]'"):
        check_loggers(("csv", "wandb"))


def test_weights_and_biases_gets_the_numbers_at_their_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    started = SimpleNamespace(
        log=lambda figures, step: calls.append((figures, step)), finish=lambda: calls.append("finished")
    )
    module = SimpleNamespace(init=lambda **given: calls.append(given) or started)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    logger = Logger(None, [WandbOutput(tmp_path, name="seed-0", group="mine")])
    logger.record("rlhf/score", 0.5)
    logger.record("note", "no number")
    logger.record("hidden", 1.0, exclude="wandb")
    logger.dump(640)
    logger.close()
    assert calls == [
        {"dir": str(tmp_path), "name": "seed-0", "group": "mine"},
        ({"rlhf/score": 0.5}, 640),
        "finished",
    ]
