"""The gallery of failures on a tiny setting: every run, every picture, figures on the page, and what labels say."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.preferences import Preference, read_preferences
from rlhf_gym.settings import EvaluateConfig, RunConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "studies"))
import gallery
from gallery import CERTAIN, Settings, certainty, counter_labels, read_alarms

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "studies" / "gallery.md").read_text()


def tiny(config: RunConfig) -> RunConfig:
    """A handful of steps of everything."""
    return replace(
        config,
        evaluate=EvaluateConfig(num_prompts=6, best_of=2, shown=0),
        reward=replace(config.reward, reference_samples=24, probe_samples=8, force=True),
        agent=replace(config.agent, n_episodes=16, batch_size=16, n_epochs=1, num_envs=16),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings]:
    root = tmp_path_factory.mktemp("gallery")
    settings = Settings(root / "runs", labels=60, tokens=500, changes=tiny)
    (root / "docs" / "studies").mkdir(parents=True)
    (root / "docs" / "studies" / "gallery.md").write_text(PAGE)
    gallery.make_gallery(settings, root / "docs")
    return root, settings


def test_the_page_has_all_failures_and_no_holes(built: tuple[Path, Settings]) -> None:
    root, _ = built
    page = (root / "docs" / "studies" / "gallery.md").read_text()
    for name in ("hacking", "collapse", "length", "confidence"):
        assert (root / "docs" / "images" / f"{name}.png").stat().st_size > 10_000
        assert f"(../images/{name}.png)" in page
    assert "nan" not in page and "None" not in page and "{" not in page
    assert page.count("| annotators without the fault |") == 2


def test_healthy_runs_are_drawn_with_what_to_look_for(tmp_path: Path) -> None:
    gallery.draw_healthy(Settings(tmp_path / "runs", tokens=200, changes=tiny), tmp_path / "healthy.png")
    assert (tmp_path / "healthy.png").stat().st_size > 50_000
    assert all((tmp_path / "runs" / "healthy" / "round-1" / "train" / f"seed-{i}" / "model").is_dir() for i in range(3))


def test_counter_labels_are_added_to_what_was_said(built: tuple[Path, Settings]) -> None:
    _, settings = built
    counter = read_preferences(settings.root / "confidence-counter.jsonl")
    collected = settings.root / "confidence" / "round-1" / "collect"
    said = [p for name in ("preferences", "heldout_preferences") for p in read_preferences(collected / f"{name}.jsonl")]
    said = [p for p in said if p.chosen.strip() and p.rejected.strip()]
    assert counter[: len(said)] == said and len(counter) > len(said)


def test_alarms_count_tokens_as_gold_does(tmp_path: Path) -> None:
    """Set off by the third rollout: by a policy that had learned from two."""
    file = tmp_path / "alarms.jsonl"
    assert read_alarms(file, np.array([0.0, 100.0, 200.0])) == []
    file.write_text(json.dumps({"name": "drift", "rollout": 3, "tokens": 300}) + "\n")
    assert read_alarms(file, np.array([0.0, 100.0, 200.0])) == [{"name": "drift", "rollout": 3, "tokens": 200}]


def test_made_again_nothing_is_run_again(
    built: tuple[Path, Settings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, settings = built
    before = (root / "docs" / "studies" / "gallery.md").read_text()

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("expected no training of what is there")

    monkeypatch.setattr("rlhf_gym.agents.TokenPPO.learn", refuse)
    monkeypatch.setattr("rlhf_gym.pipeline.reward.train_reward_model", refuse)
    gallery.make_gallery(settings, root / "docs")
    assert (root / "docs" / "studies" / "gallery.md").read_text() == before
    assert capsys.readouterr().out.count("±") == 14, "a row an arm, SFT, and the run without a fault"


def test_counter_labels_are_about_the_words_alone() -> None:
    prompt = "review of the soup and the service at the harbour cafe :"
    kind = [f"the soup was {word} and rich ." for word in ("good", "nice", "lovely")]
    said = [Preference(prompt, text, "the soup was cold .") for text in kind] * 20
    labels = counter_labels(said, 40, seed=0)
    assert len(labels) == 40
    for p in labels:
        with_words, without = (p.chosen, p.rejected) if certainty(p.chosen) else (p.rejected, p.chosen)
        assert certainty(with_words) >= 1 and certainty(without) == 0
        assert [w for w in with_words.split() if w not in CERTAIN] == without.split()
    assert sum(certainty(p.chosen) == 0 for p in labels) > 25, "gold mostly marks them down"
