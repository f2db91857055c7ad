"""What a policy learns besides: in its smallest form, and what its texts are."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.settings import RunConfig
from rlhf_gym.tasks.reviews import heldout_topics
from rlhf_gym.tasks.reviews_gold import judge

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "studies"))
import side_effects
from side_effects import STUDIES, Arm, Settings, texts


def tiny(config: RunConfig) -> RunConfig:
    """A handful of steps of everything."""
    agent = replace(config.agent, n_episodes=16, batch_size=16, n_epochs=1, num_envs=16)
    return replace(config, agent=agent, reward=replace(config.reward, reference_samples=24, probe_samples=0))


@pytest.mark.parametrize("subject", STUDIES)
def test_each_subject_runs_and_goes_on(
    subject: side_effects.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, columns, arms = STUDIES[subject]
    some = (arms[0], arms[-1])  # the first trains nothing
    monkeypatch.setitem(STUDIES, subject, (page, columns, some))
    (tmp_path / "docs" / page).parent.mkdir(parents=True)
    (tmp_path / "docs" / page).write_text(
        f"before\n<!-- {subject}: scripts/studies/side_effects.py -->\n<!-- end of {subject} -->\nafter\n"
    )
    settings = Settings(tmp_path / "runs", seeds=1, labels=24, tokens=150, demonstrations=16, prompts=8, changes=tiny)
    side_effects.make(subject, settings, tmp_path / "docs")
    text = (tmp_path / "docs" / page).read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "nan" not in text
    assert all(f"| {arm.label} |" in text for arm in some) and all(column in text for column in columns)
    assert (tmp_path / "docs" / "images" / f"{subject}.png").stat().st_size > 5_000

    def refuse(*_: object) -> tuple[float, ...]:
        raise AssertionError("expected no arm to be measured again")

    monkeypatch.setitem(STUDIES, subject, (page, columns, tuple(Arm(arm.label, refuse) for arm in some)))
    side_effects.make(subject, settings, tmp_path / "docs")
    assert (tmp_path / "docs" / page).read_text() == text
    capsys.readouterr()


def test_a_heading_says_the_tone_of_its_texts() -> None:
    told = texts(("advert for", "complaint about"), heldout_topics(), 60, seed=0)
    tones = np.array([judge(d.prompt, d.response).tone for d in told])
    assert (tones[1::2] < 0).mean() > 0.7 > 0.3 > (tones[::2] < 0).mean()
