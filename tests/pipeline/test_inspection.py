"""What an agent leaves behind to look at: views of the first held-out prompts, its critic's values among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_gym.pipeline import run
from rlhf_gym.report.run import read_run
from rlhf_gym.report.samples import read_samples
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.records import read_views
from tests.tiny_runs import count_good, quiet, tiny_config, tiny_task


def test_a_run_keeps_what_its_critic_saw(copied: Callable[[Path], Path], tmp_path: Path, pretrained: Path) -> None:
    config = replace(tiny_config(copied(tmp_path / "run")), without_kl=True)
    run(config, task=tiny_task(pretrained), console=quiet(), redo="train")
    folder = RunFolder(tmp_path / "run")
    views = {kind: read_views(folder.seed(kind, 1, 0)) for kind in ("train", "without_kl")}
    summary = read_run(folder).evaluation["summary"]
    shown = read_samples(read_run(folder), [row["name"] for row in summary if row["kind"] in views])
    assert [pair.prompt for pair in shown[0]] == [v.prompt for v in views["train"]] and len(shown) == 2
    for kind, beta in (("train", 0.1), ("without_kl", 0.0)):
        assert len(views[kind]) == config.evaluate.shown
        for prompt, before, after in views[kind]:
            for side in (before, after):
                view = side.view
                assert view.prompt == prompt and view.values is not None and view.advantages is not None
                assert view.gae_lambda == config.agent.gae_lambda and view.score is not None
                assert view.log_ratios is not None and view.rewards is not None
                total = view.score - beta * view.log_ratios.sum()
                assert view.rewards.sum() == pytest.approx(total, abs=1e-2)
                words = " ".join(token.strip() for token in view.tokens if not token.startswith("<"))
                assert side.gold == count_good([prompt], [words])[0]
    said = [[v.before.view.tokens for v in views[kind]] for kind in views]
    assert said[0] == said[1], "the SFT policy's responses are the same for all agents"
    assert 'value="advantage"' in folder.report.read_text()
    assert not (folder.seed("train", 1, 0) / "checkpoint.zip").exists()
