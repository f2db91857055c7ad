"""What looking at a run costs: samples follow the time of what is looked at, are said, and stay what they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.pipeline import Run, prepare, run
from rlhf_gym.pipeline.costs import ALWAYS, Timing, affordable, allowed
from rlhf_gym.pipeline.evaluate import affordable_share, spent
from rlhf_gym.pipeline.fitting import as_before, fitted
from rlhf_gym.pipeline.probes import how_many
from rlhf_gym.pipeline.samples import draw, log_probs
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import DPOSettings, RewardConfig, RunConfig
from rlhf_gym.settings.saved import read_config
from tests.tiny import tiny_gpt2
from tests.tiny_runs import quiet, said, save_model, tiny_config, tiny_task


@pytest.fixture
def prepared(tmp_path: Path) -> Run:
    """A run that nothing has been done of."""
    return prepare(tiny_config(tmp_path / "run"), task=tiny_task(), console=quiet())


def test_a_fifth_is_allowed_and_always_some_seconds() -> None:
    assert allowed(1000) == 200 and allowed(0) == ALWAYS
    assert affordable(250, 1.7, 8) == 250 and affordable(250, 0.1, 8) == 25
    assert affordable(250, 0.001, 8) == 8 and affordable(5, 0.001, 8) == 5


def test_time_adds_up_over_restarts_and_over_an_interrupt(tmp_path: Path) -> None:
    Timing(tmp_path).keep("training", 5.0)
    timing = Timing(tmp_path)
    with pytest.raises(KeyboardInterrupt), timing.of("training"):
        raise KeyboardInterrupt
    assert 5.0 < Timing(tmp_path).get("training") < 6.0 and Timing(tmp_path).get("other") == 0


@pytest.mark.parametrize(
    ("training", "response", "text", "expected"),
    [
        (60.0, 0.001, 0.001, (24, 300)),  # quick: all that is set
        (760.0, 1.0, 0.1, (24, 300)),  # 1.5·(24·(1 + 7·.1) + 600·.1) = 151.2 s, of 152
        (380.0, 1.0, 0.1, (12, 150)),  # half of it
        (300.0, 1000.0, 100.0, (8, 20)),  # the least
    ],
)
def test_probes_take_a_fifth_of_the_time_of_training(
    prepared: Run, tmp_path: Path, training: float, response: float, text: float, expected: tuple[int, int]
) -> None:
    timing = Timing(tmp_path / "reward")
    for name, value in (("training", training), ("response", response), ("text", text)):
        timing.keep(name, value)
    assert how_many(prepared, 300, timing) == expected
    assert (f"{expected[0]} of 24 responses" in said(prepared.console)) is (expected[0] < 24)
    timing.keep("training", 1e9)  # what was decided stays, also when the stage is gone on with
    assert how_many(prepared, 300, Timing(tmp_path / "reward")) == expected


def test_the_evaluation_takes_a_fifth_of_the_time_of_the_stages_before_it(prepared: Run) -> None:
    assert affordable_share(prepared) == 1, "nothing is known yet"
    timing = Timing(prepared.folder.stage("reward", 1))
    timing.keep("response", 1.0)
    for stage, seconds in (("sft", 30.0), ("collect", 20.0), ("reward", 50.0), ("train", 400.0)):
        prepared.folder.complete(stage, 1, {"seconds": seconds})  # type: ignore[arg-type]
    assert spent(prepared) == 500
    seed = Timing(prepared.folder.seed("train", 1, 0))
    seed.keep("training", 400.0)
    assert spent(prepared) == 500
    config = prepared.config.evaluate
    answers = 6 * (1 + config.best_of + 1) + config.best_of_prompts * config.best_of_samples  # six held-out prompts
    assert affordable_share(prepared) == pytest.approx(100 / answers)
    seed.keep("training", 900.0)  # the stage was begun before, and gone on with: its own seconds are of the last start
    assert spent(prepared) == 1000


def test_a_slow_model_is_evaluated_on_fewer_prompts_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_gym.pipeline.evaluate.LEAST_PROMPTS", 2)
    monkeypatch.setattr("rlhf_gym.pipeline.evaluate.affordable_share", lambda run: 0.5)
    console = quiet()
    run(tiny_config(tmp_path / "run"), task=tiny_task(), console=console)
    metrics = RunFolder(tmp_path / "run").metrics("evaluate")
    assert metrics is not None and metrics["prompts"] == 3
    assert "evaluation: 3 of 6 held-out prompts" in said(console)


def test_a_batch_that_does_not_fit_is_worked_through_in_parts_which_the_folder_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task(save_model(tmp_path / "model"), model_config=None, pretraining_texts=())
    config = tiny_config(tmp_path / "run", agent=DPOSettings(n_episodes=16, batch_size=8, total_tokens=64))
    roomy = prepare(config, task=task, console=quiet())
    assert roomy.config == replace(config, run_dir=roomy.config.run_dir) and roomy.memory_notes == ()
    monkeypatch.setattr("rlhf_gym.pipeline.fitting.free_memory", lambda device: 0)
    tight = prepare(config, task=task, console=quiet())
    assert tight.config.sft.micro_batch_size == tight.config.reward.training.micro_batch_size == 1
    agent = tight.config.agent
    assert isinstance(agent, DPOSettings) and (agent.micro_batch_size, agent.num_envs) == (2, 1)
    assert len(tight.memory_notes) == 5 and "batches of 16 are worked through 1 at a time" in tight.memory_notes[0]
    tight.folder.open(tight.config)
    monkeypatch.undo()
    assert prepare(config, task=task, console=quiet()).config == tight.config


def test_a_folder_made_with_room_goes_on_where_there_is_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_task(save_model(tmp_path / "model"), model_config=None, pretraining_texts=())
    config = tiny_config(tmp_path / "run", agent=DPOSettings(n_episodes=16, batch_size=8, total_tokens=64))
    roomy = prepare(config, task=task, console=quiet())
    roomy.folder.open(roomy.config)
    monkeypatch.setattr("rlhf_gym.pipeline.fitting.free_memory", lambda device: 0)
    again = prepare(config, task=task, console=quiet())
    assert again.config == roomy.config
    again.folder.open(again.config)
    fresh = prepare(replace(config, agent=replace(config.agent, beta=0.2)), task=task, console=quiet(), redo="train")
    assert fresh.config.agent.learner().micro_batch_size == 2, "a stage with other settings is fitted anew"
    assert fresh.config.sft == roomy.config.sft


def test_settings_that_were_given_are_left_alone(prepared: Run, tmp_path: Path) -> None:
    assert fitted(prepared, None) is prepared, "a task that makes its own small model"
    config = prepared.config
    given = replace(config, sft=replace(config.sft, micro_batch_size=4))
    before = replace(config, sft=replace(config.sft, micro_batch_size=2), reward=RewardConfig())
    assert as_before(given, before).sft.micro_batch_size == 4
    assert as_before(config, before).sft.micro_batch_size == 2
    assert as_before(config, None) == config


def test_a_run_keeps_its_times_with_its_stages(whole: Path) -> None:
    timing = json.loads((RunFolder(whole).stage("reward", 1) / "timing.json").read_text())
    assert timing["training"] > 0 and timing["response"] > 0 and timing["text"] > 0
    assert timing["probed_responses"] == 24, "small models are probed with all that is set"
    config = read_config(whole)
    assert isinstance(config, RunConfig) and config.sft.micro_batch_size is None


def test_log_probs_in_steps_are_those_of_all_at_once(prepared: Run) -> None:
    model = tiny_gpt2()
    samples = draw(model, prepared.task, prepared.task.prompts[:5], seed=1)
    whole, parts = log_probs(model, samples), log_probs(model, samples, at_once=2)
    assert [len(row) for row in parts] == samples.lengths.tolist()
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_damaged_file_of_times_is_refused(tmp_path: Path) -> None:
    Timing(tmp_path).keep("response", 0.5)
    assert Timing(tmp_path).get("response") == 0.5
    path = tmp_path / "timing.json"
    path.write_text(path.read_text().replace("0.5", "9.5"))
    with pytest.raises(ValueError, match=r"expected .*timing.json as a stage wrote it"):
        Timing(tmp_path)
