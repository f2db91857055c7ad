"""The reward stage: what it measures, when it refuses to go on, and how rounds agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_gym.pipeline import prepare, run
from rlhf_gym.pipeline.costs import Timing
from rlhf_gym.pipeline.probes import reward_probes
from rlhf_gym.pipeline.reward import UnfitRewardError, examine
from rlhf_gym.pipeline.staleness import heldout_by_round, staleness
from rlhf_gym.preferences import Preference, read_preferences
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.summaries import probes_line, reward_line
from rlhf_gym.settings import TaskConfig
from rlhf_gym.training import reward_complaints, score_pairs
from tests.tiny import tiny_reward_model, tiny_tokenizer
from tests.tiny_runs import quiet, said, save_model, tiny_config, tiny_task


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run of two rounds from random weights, and what it said."""
    root = tmp_path_factory.mktemp("reward") / "run"
    console = quiet()
    run(tiny_config(root, rounds=2), task=tiny_task(), console=console)
    return RunFolder(root), said(console)


def test_the_stage_says_what_it_measured(two_rounds: tuple[RunFolder, str]) -> None:
    folder, output = two_rounds
    metrics = folder.metrics("reward", 1)
    assert metrics is not None
    heldout = read_preferences(folder.stage("collect", 1) / "heldout_preferences.jsonl")
    assert metrics["n"] == len(heldout) == sum(b["n"] for b in metrics["reliability"])
    assert [(s["name"], s["n"]) for s in metrics["by_source"]] == [("the SFT policy", len(heldout))]
    assert [(s["name"], s["n"]) for s in metrics["by_annotator"]] == [("simulated", len(heldout))]
    assert sum(s["n"] for s in metrics["by_length"]) == len(heldout)
    weighted = sum(s["n"] * s["accuracy"] for s in metrics["by_length"]) / len(heldout)
    assert weighted == pytest.approx(metrics["accuracy"]), "the parts make the whole"
    assert 0 < metrics["chance"] <= 1 and metrics["score_std"] > 0 and metrics["complaints"] == []
    assert "calibration error" in output and "staleness" not in metrics


def test_the_stage_probes_the_reward_model(two_rounds: tuple[RunFolder, str]) -> None:
    folder, output = two_rounds
    metrics = folder.metrics("reward", 1)
    assert metrics is not None
    found = metrics["probes"]
    assert found["accuracy"] == pytest.approx(metrics["accuracy"]) and found["n"] == metrics["n"]
    assert [b["name"] for b in found["baselines"]][:3] == ["length", "length and its square", "style"]
    assert {"repetition", "padding", "shuffle", "truncation"} <= {e["name"] for e in found["edits"]}
    assert all(0 < e["n"] <= 24 and e["gold_change"] is not None for e in found["edits"])
    assert ("look before you optimise" in " ".join(output.split())) == any(
        folder.metrics("reward", r)["probes"]["suspicions"]
        for r in (1, 2)  # type: ignore[index]
    )


def test_a_reward_model_of_ones_own_is_probed_without_tokenizer_and_preferences(tmp_path: Path) -> None:
    tiny_reward_model(tiny_tokenizer()).model.save_pretrained(tmp_path / "reward")
    task = tiny_task(save_model(tmp_path / "model"), demonstrations=[], gold=None)
    config = tiny_config(tmp_path / "run", task=TaskConfig(reward_model=str(tmp_path / "reward")))
    run(config, task=task, only="reward", console=quiet())
    metrics = RunFolder(tmp_path / "run").metrics("reward")
    assert metrics is not None and metrics["probes"]["baselines"] == []
    assert all(e["gold_change"] is None for e in metrics["probes"]["edits"])


def test_probes_can_be_left_out(tmp_path: Path) -> None:
    prepared = prepare(tiny_config(tmp_path / "run"), task=tiny_task(), console=quiet())
    settings = replace(prepared.config.reward, probe_samples=0)
    silent = replace(prepared, config=replace(prepared.config, reward=settings))
    assert reward_probes(silent, tiny_reward_model(), [], [], Timing(tmp_path)) == {} and probes_line({}) == ""
    two = {"probes": {"suspicions": ["r_φ pays for praise", "more"]}}
    assert probes_line(two) == "; look before you optimise: r_φ pays for praise, and 1 more in the report"


def test_preferences_of_all_rounds_are_trained_on_and_each_keeps_its_round(two_rounds: tuple[RunFolder, str]) -> None:
    folder, _ = two_rounds
    for round, source in ((1, "the SFT policy"), (2, "policy 0 of round 1")):
        found = read_preferences(folder.stage("collect", round) / "preferences.jsonl")
        assert {p.round for p in found} == {round} and {p.chosen_source for p in found} == {source}
    first, second = folder.metrics("reward", 1), folder.metrics("reward", 2)
    assert first is not None and second is not None
    assert second["pairs"] > first["pairs"]
    assert [s["name"] for s in second["by_source"]] == ["policy 0 of round 1", "the SFT policy"]


def test_each_reward_model_is_measured_on_each_rounds_policy(two_rounds: tuple[RunFolder, str]) -> None:
    """The matrix again, entry by entry, from the folder."""
    folder, output = two_rounds
    metrics = folder.metrics("reward", 2)
    assert metrics is not None
    found = metrics["staleness"]
    prepared = prepare(tiny_config(folder.root, rounds=2), task=tiny_task(), console=quiet())
    columns = heldout_by_round(prepared, 2)
    assert found["pairs"] == [len(column) for column in columns]
    trained = {p.prompt for r in (1, 2) for p in read_preferences(folder.stage("collect", r) / "preferences.jsonl")}
    assert trained.isdisjoint(p.prompt for column in columns for p in column)
    for i in (1, 2):
        reward = prepared.load_reward(i)
        for j, column in enumerate(columns):
            assert found["accuracy"][i - 1][j] == score_pairs(reward, column).right.mean()  # type: ignore[arg-type]
    assert all(0.5 < value <= 1 for value in found["gold"]), "gold agrees with its own annotators, but for mistakes"
    assert "about the latest policy's" in " ".join(output.split())
    assert staleness(prepared, 1) == {}


# -- refusals ----------------------------------------------------------------------------------------------------------


def pairs_of(wins: int, n: int) -> list[Preference]:
    """A reward that counts `good` is right about `wins` of n."""
    right = [Preference(f"p{i}", "good", "bad") for i in range(wins)]
    return right + [Preference(f"q{i}", "bad", "good") for i in range(n - wins)]


def counting(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(response.split().count("good")) for response in responses]


@pytest.mark.parametrize(("wins", "n", "unfit"), [(60, 100, False), (58, 100, True), (30, 100, True), (9, 19, False)])
def test_accuracy_at_chance_is_refused(wins: int, n: int, unfit: bool, tmp_path: Path) -> None:
    """A coin is right in 60 of 100 with probability .028, in 58 with .067; 19 pairs cannot tell."""
    prepared = prepare(tiny_config(tmp_path / "run"), task=tiny_task(), console=quiet())
    pairs = score_pairs(counting, pairs_of(wins, n))
    if not unfit:
        assert examine(prepared, pairs)["complaints"] == []
        return
    with pytest.raises(UnfitRewardError, match=rf"above chance, got {wins}\.0%.*--reward\.force") as caught:
        examine(prepared, pairs)
    assert ("mixed up" in str(caught.value)) == (wins == 30)
    config = prepared.config
    forced = replace(prepared, config=replace(config, reward=replace(config.reward, force=True)))
    metrics = examine(forced, pairs)
    assert len(metrics["complaints"]) == 1
    line = reward_line(metrics | {"pairs": 400, "members": 1})
    assert f"going on although expected an accuracy above chance, got {wins}.0%" in line


def test_a_reward_that_says_the_same_to_all_is_refused(tmp_path: Path) -> None:
    prepared = prepare(tiny_config(tmp_path / "run"), task=tiny_task(), console=quiet())
    with pytest.raises(UnfitRewardError, match="scores that differ, got a standard deviation of 0"):
        examine(prepared, score_pairs(lambda prompts, responses: [1.0] * len(responses), pairs_of(5, 5)))


def test_a_loss_that_blew_up_is_refused_with_advice_and_leaves_nothing_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blows_up(*args: object, **kwargs: object) -> None:
        raise FloatingPointError("expected a finite loss, got nan at step 3 of the reward modelling")

    monkeypatch.setattr("rlhf_gym.pipeline.reward.train_reward_model", blows_up)
    task = tiny_task(save_model(tmp_path / "model"), demonstrations=[])
    with pytest.raises(UnfitRewardError, match=r"got nan at step 3.*A smaller --reward\.learning-rate"):
        run(tiny_config(tmp_path / "run"), task=task, console=quiet())
    folder = RunFolder(tmp_path / "run")
    assert folder.metrics("collect") is not None and folder.metrics("reward") is None
    assert folder.metrics("train") is None


def test_forcing_is_no_other_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    config = tiny_config(tmp_path / "run")
    folder.open(config)
    folder.open(replace(config, reward=replace(config.reward, force=True)))
    with pytest.raises(ValueError, match=r"reward\.members"):
        folder.open(replace(config, reward=replace(config.reward, members=2)))


def test_complaints_name_what_is_wrong() -> None:
    sound = {"accuracy": 0.8, "n": 100, "chance": 1e-10, "score_std": 1.0}
    assert reward_complaints(sound) == []
    assert "scores that differ" in reward_complaints(sound | {"score_std": 0.0})[0]
    assert "scores that differ" in reward_complaints(sound | {"score_std": float("nan")})[0]
