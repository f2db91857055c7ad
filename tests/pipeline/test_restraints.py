"""ptx, a reference that follows and stopping on KL, from the settings to the run's folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.cli.commands import parse
from rlhf_gym.files import read_json
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.pipeline.ppo import kl_controller
from rlhf_gym.pipeline.restraints import stop_on_kl
from rlhf_gym.preferences import read_texts
from rlhf_gym.runs import PPOConfig, RunConfig, RunFolder
from rlhf_gym.runs.folder import METRICS_FILE
from rlhf_gym.runs.records import iterations
from rlhf_gym.runs.summaries import ppo_line
from tests.tiny_runs import quiet, said, save_model, tiny_config, tiny_task


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as far as its reward model."""
    root = tmp_path_factory.mktemp("before")
    save_model(root / "pretrained")
    for stage in ("sft", "collect", "reward"):
        run(tiny_config(root / "run"), task=tiny_task(root / "pretrained"), only=stage, console=quiet())
    return root


def with_settings(before: Path, root: Path, **ppo: Any) -> RunConfig:
    """The same run with other settings of PPO."""
    if not root.is_dir():
        shutil.copytree(before / "run", root)
    config = tiny_config(root)
    return replace(config, ppo=replace(config.ppo, **ppo))


def test_ptx_and_a_moving_reference_reach_the_agent(before: Path, tmp_path: Path) -> None:
    config = with_settings(before, tmp_path / "run", ptx_coef=0.5, ptx_batch_size=4, ema_reference=0.2)
    console = quiet()
    run(config, task=tiny_task(before / "pretrained"), redo="ppo", console=console)
    folder = RunFolder(tmp_path / "run")
    assert folder.config() == config
    log = iterations(folder.seed("ppo", 1, 0))
    assert all({"train/ptx_loss", "rlhf/kl_initial"} <= record.keys() for record in log)
    assert "stopped" not in said(console)
    row = folder.metrics("evaluate")["summary"][-1]  # type: ignore[index]
    assert row["kl"][0] >= 0


def test_stops_on_kl_and_says_so(before: Path, tmp_path: Path) -> None:
    task, settings = tiny_task(before / "pretrained"), {"learning_rate": 0.03, "total_tokens": 2000}
    config = with_settings(before, tmp_path / "run", stop_kl=0.5, **settings)
    config = replace(config, unleashed=True)
    console = quiet()
    run(config, task=task, redo="ppo", console=console)
    folder = RunFolder(tmp_path / "run")
    metrics = folder.metrics("ppo", 1)
    assert metrics is not None
    (stop,) = metrics["stopped"]
    assert stop["stopped_at"] > 0.5 >= stop["kept_kl"]
    assert metrics["tokens"][0] < 2000
    assert "; stopped as KL passed 0.5, the last policy within it is kept" in " ".join(said(console).split())
    assert "stopped in 1 of 2 seeds" in ppo_line(metrics | {"stopped": [stop, None], "seeds": [0, 1]})
    outside = {"stopped_at": 3.0, "kept_kl": None}
    assert ppo_line(metrics | {"stopped": [outside]}).count("beyond it from the start, nothing was learned") == 1
    assert "is kept; 1 began beyond it" in ppo_line(metrics | {"stopped": [stop, outside], "seeds": [0, 1]})
    waited = metrics | {"stopped": [outside], "stop_kl_patience": 2}
    assert ppo_line(waited).count("beyond it from the start, with none to go back to") == 1
    unleashed = folder.metrics("unleashed", 1)
    assert unleashed is not None and unleashed["stopped"] == [None]  # without any leash

    console = quiet()  # it is finished, and nothing goes on with it
    records = iterations(folder.seed("ppo", 1, 0))
    run(config, task=task, console=console)
    assert iterations(folder.seed("ppo", 1, 0)) == records
    assert read_json(folder.seed("ppo", 1, 0) / METRICS_FILE)["stopped"] == stop


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_horizon": 0}, "expected kl_horizon >= 1, got 0"),
        ({"stop_kl": 0.0}, "expected stop_kl > 0, got 0.0"),
        ({"stop_kl": 3.0, "stop_kl_patience": 0}, "expected stop_kl_patience >= 1, got 0"),
        ({"stop_kl_patience": 2}, "expected a stop_kl for stop_kl_patience=2, got None"),
        ({"ptx_coef": -1.0}, "expected ptx_coef >= 0 and finite, got -1.0"),
        ({"ptx_batch_size": 0}, "expected ptx_batch_size >= 1, got 0"),
        ({"ptx_texts": Path("texts.txt")}, "expected ptx_coef > 0 to mix texts.txt in, got 0"),
        ({"ema_reference": 1.2}, r"expected ema_reference in \[0, 1\], got 1.2"),
        ({"agent": "dpo", "ptx_coef": 1.0}, "expected ptx_coef=0 with agent=dpo, which plays no rollouts, got 1.0"),
        ({"agent": "dpo", "ema_reference": 0.1}, "expected ema_reference=0 with agent=dpo"),
        ({"agent": "best_of_n", "stop_kl": 3.0}, "expected stop_kl=None with agent=best_of_n"),
    ],
)
def test_wrong_settings_say_what_was_expected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)


def test_texts_for_ptx(before: Path, tmp_path: Path) -> None:
    config = with_settings(before, tmp_path / "run", ptx_coef=1.0)
    bare = tiny_task(before / "pretrained", pretraining_texts=(), demonstrations=(), heldout_demonstrations=())
    with pytest.raises(ValueError, match="has neither texts for pretraining nor demonstrations: give"):
        prepare(config, task=bare, redo="ppo", console=quiet())
    file = tmp_path / "texts.jsonl"
    given = replace(config, ppo=replace(config.ppo, ptx_texts=file))
    with pytest.raises(FileNotFoundError, match=r"expected a file at .*texts.jsonl"):
        prepare(given, task=bare, redo="ppo", console=quiet())
    file.write_text(json.dumps({"text": "a fine film"}) + "\n\n" + json.dumps({"words": "x"}) + "\n")
    with pytest.raises(ValueError, match=r'texts.jsonl, line 3: expected the field "text", got "words"'):
        prepare(given, task=bare, redo="ppo", console=quiet())
    file.write_text(json.dumps({"text": "a fine film"}) + "\n")
    prepare(given, task=bare, redo="ppo", console=quiet())
    plain = tmp_path / "texts.txt"
    plain.write_text("a fine film\n\n a dull plot\n")
    assert read_texts(plain) == ["a fine film", " a dull plot"]


def test_the_command_line_takes_them() -> None:
    words = ["--ppo.stop-kl", "6", "--ppo.stop-kl-patience", "3"]
    stop = stop_on_kl(parse("run", words).config.ppo, "ppo")
    assert stop is not None and (stop.limit, stop.patience) == (6.0, 3)
    assert stop_on_kl(parse("run", words).config.ppo, "unleashed") is None
    words = ["--ppo.stop-kl", "6", "--ppo.ptx-coef", "0.1", "--ppo.ptx-texts", "t.txt", "--ppo.ema-reference", "0.05"]
    ppo = parse("run", words).config.ppo
    horizon = parse("run", ["--ppo.kl-control", "adaptive", "--ppo.kl-horizon", "500"]).config.ppo
    assert vars(kl_controller(horizon))["horizon"] == 500
    assert (ppo.stop_kl, ppo.ptx_coef, ppo.ptx_texts, ppo.ema_reference) == (6.0, 0.1, Path("t.txt"), 0.05)
