"""ptx, a reference that follows and stopping on KL, from the settings to the run's folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.cli.app import parse
from rlhf_gym.files import read_json
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.preferences import read_texts
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.folder import METRICS_FILE
from rlhf_gym.runs.records import iterations
from rlhf_gym.runs.summaries import train_line
from rlhf_gym.settings import PPOSettings, RunConfig
from tests.tiny_runs import quiet, said, tiny_config, tiny_task


def with_settings(before: Path, root: Path, **ppo: Any) -> RunConfig:
    """The same run with other settings of PPO."""
    if not root.is_dir():
        shutil.copytree(before / "run", root)
    config = tiny_config(root)
    return replace(config, agent=replace(config.agent, **ppo))


def test_ptx_and_a_moving_reference_reach_the_agent(before: Path, tmp_path: Path) -> None:
    config = with_settings(before, tmp_path / "run", ptx_coef=0.5, ptx_batch_size=4, ema_reference=0.2)
    console = quiet()
    run(config, task=tiny_task(before / "pretrained"), redo="train", console=console)
    folder = RunFolder(tmp_path / "run")
    assert folder.config() == config
    log = iterations(folder.seed("train", 1, 0))
    assert all({"train/ptx_loss", "rlhf/kl_initial"} <= record.keys() for record in log)
    assert "stopped" not in said(console)
    row = folder.metrics("evaluate")["summary"][-1]  # type: ignore[index]
    assert row["kl"][0] >= 0


def test_stops_on_kl_and_says_so(before: Path, tmp_path: Path) -> None:
    task, settings = tiny_task(before / "pretrained"), {"learning_rate": 0.03, "total_tokens": 2000}
    config = with_settings(before, tmp_path / "run", stop_kl=0.5, **settings)
    config = replace(config, without_kl=True)
    console = quiet()
    run(config, task=task, redo="train", console=console)
    folder = RunFolder(tmp_path / "run")
    metrics = folder.metrics("train", 1)
    assert metrics is not None
    (stop,) = metrics["stopped"]
    assert stop["stopped_at"] > 0.5 >= stop["kept_kl"]
    assert metrics["tokens"][0] < 2000
    assert "; stopped as KL passed 0.5, the last policy within it is kept" in " ".join(said(console).split())
    assert "stopped in 1 of 2 seeds" in train_line(metrics | {"stopped": [stop, None], "seeds": [0, 1]})
    outside = {"stopped_at": 3.0, "kept_kl": None}
    assert train_line(metrics | {"stopped": [outside]}).count("beyond it from the start, nothing was learned") == 1
    assert "is kept; 1 began beyond it" in train_line(metrics | {"stopped": [stop, outside], "seeds": [0, 1]})
    waited = metrics | {"stopped": [outside], "stop_kl_patience": 2}
    assert train_line(waited).count("beyond it from the start, with none to go back to") == 1
    without_kl = folder.metrics("without_kl", 1)
    assert without_kl is not None and without_kl["stopped"] == [None]  # nothing stops the run without KL penalty

    console = quiet()  # it is finished, and nothing goes on with it
    records = iterations(folder.seed("train", 1, 0))
    run(config, task=task, console=console)
    assert iterations(folder.seed("train", 1, 0)) == records
    assert read_json(folder.seed("train", 1, 0) / METRICS_FILE)["stopped"] == stop


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_horizon": 0}, "expected kl_horizon >= 1, got 0"),
        ({"stop_kl": 0.0}, "expected stop_kl > 0, got 0.0"),
        ({"stop_kl": 3.0, "stop_kl_patience": 0}, "expected stop_kl_patience >= 1, got 0"),
        ({"stop_kl_patience": 2}, "expected a stop_kl for stop_kl_patience=2, got None"),
        ({"ptx_coef": -1.0}, "expected ptx_coef >= 0, got -1.0"),
        ({"ptx_batch_size": 0}, "expected ptx_batch_size >= 1, got 0"),
        ({"ptx_texts": Path("texts.txt")}, "expected ptx_coef > 0 to mix texts.txt in, got 0"),
        ({"ema_reference": 1.2}, r"expected ema_reference in \[0, 1\], got 1.2"),
    ],
)
def test_wrong_settings_say_what_was_expected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOSettings(**settings)


def test_texts_for_ptx(before: Path, tmp_path: Path) -> None:
    config = with_settings(before, tmp_path / "run", ptx_coef=1.0)
    bare = tiny_task(before / "pretrained", pretraining_texts=(), demonstrations=(), heldout_demonstrations=())
    with pytest.raises(ValueError, match="has neither texts for pretraining nor demonstrations: give"):
        prepare(config, task=bare, redo="train", console=quiet())
    file = tmp_path / "texts.jsonl"
    given = replace(config, agent=replace(config.agent, ptx_texts=file))
    with pytest.raises(FileNotFoundError, match=r"expected a file at .*texts.jsonl"):
        prepare(given, task=bare, redo="train", console=quiet())
    file.write_text(json.dumps({"text": "a fine film"}) + "\n\n" + json.dumps({"words": "x"}) + "\n")
    with pytest.raises(ValueError, match=r'texts.jsonl, line 3: expected the field "text", got "words"'):
        prepare(given, task=bare, redo="train", console=quiet())
    file.write_text(json.dumps({"text": "a fine film"}) + "\n")
    prepare(given, task=bare, redo="train", console=quiet())
    plain = tmp_path / "texts.txt"
    plain.write_text("a fine film\n\n a dull plot\n")
    assert read_texts(plain) == ["a fine film", " a dull plot"]


def test_the_command_line_takes_them() -> None:
    words = ["--agent.stop-kl", "6", "--agent.stop-kl-patience", "3"]
    agent = parse(["run", *words]).config.agent
    assert agent.kl_limit == (6.0, 3) and agent.without_kl().kl_limit is None
    words = ["--agent.ptx-coef", "0.1", "--agent.ptx-texts", "t.txt", "--agent.ema-reference", "0.05"]
    agent = parse(["run", *words, "--agent.kl-in", "loss", "--agent.kl-loss", "k2"]).config.agent
    assert (agent.ptx_coef, agent.ptx_texts, agent.ema_reference) == (0.1, Path("t.txt"), 0.05)
    assert (agent.kl_in, agent.kl_loss) == ("loss", "k2")
