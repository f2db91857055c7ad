"""The stages on two ranks: as one process trains and scores, one voice, one folder, gone on with by one process."""

from datetime import timedelta

import numpy as np
import pytest
import torch

from rlhf_gym.cli.app import parse
from rlhf_gym.files import StoppedError, read_json, read_jsonl
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.ranks import RankEndedError, Ranks
from rlhf_gym.rewards import RewardNormalizer
from rlhf_gym.runs import RunFolder
from tests.ranked import dialogue_figures, fork, results, short_config, stage_figures, supervised
from tests.tiny_runs import quiet, said, tiny_config, tiny_dialogues, tiny_task


def test_stages_of_two_ranks_are_those_of_one_process(tmp_path):
    task = tiny_dialogues(tmp_path / "model")
    done = fork(tmp_path, 2, "supervised", "dialogues", "whole")
    alone = supervised(tmp_path)
    for other in results(tmp_path, "supervised", 2):
        for mine, theirs in zip(alone["figures"], other["figures"], strict=True):
            assert theirs == pytest.approx(mine, rel=1e-5)
        for name, value in alone["weights"].items():
            torch.testing.assert_close(other["weights"][name], value, atol=1e-6, rtol=0, msg=name)
        assert list(other["unit"]) == [RewardNormalizer()] * 2
    for name in ("sft", "reward"):
        mine, theirs = (read_json(tmp_path / f"of {size}" / name / "history.json") for size in (1, 2))
        assert len(mine) == len(theirs) == 4
        for here, there in zip(mine, theirs, strict=True):
            assert there == pytest.approx(here, rel=1e-4, abs=1e-7)

    config = short_config(tmp_path / "dialogues")
    mine = dialogue_figures(prepare(config, task=task, console=quiet()))
    zero, one = results(tmp_path, "dialogues", 2)
    assert all(torch.equal(a, b) for a, b in zip(zero["weights"], one["weights"], strict=True))
    assert {*zero["said"], *one["said"]} == set(mine["said"]) == set(range(16))
    for other in (zero, one):
        assert other["responses"] == mine["responses"] and any(not isinstance(r, str) for r in other["responses"])
        for name in ("scores", "gold"):
            np.testing.assert_allclose(other[name], mine[name], rtol=1e-4, atol=1e-5, err_msg=name)
        for here, there in zip(mine["log_probs"], other["log_probs"], strict=True):
            assert there == pytest.approx(here, rel=1e-4, abs=1e-5)
        assert other["drawn"] == zero["drawn"] and other["drawn"][::2] != other["drawn"][1::2]
        both = [number for number, said in other["said"].items() if len(said) == len(mine["said"][number]) == 2]
        assert both and all(other["said"][number] == mine["said"][number] for number in both)  # whoever plays them

    zero, one = results(tmp_path, "whole", 2)
    given = short_config(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    lines = [line.split()[0] for line in zero["said"].splitlines() if line and not line.startswith((" ", "rlhf-gym"))]
    assert lines[:7] == ["pretrain", "sft", "collect", "reward", "train", "evaluate", "report"]
    assert done.stdout == ""  # rank 1 has a console of its own, and is silent there
    assert one["ended"] == "Interrupted"
    assert zero["ended"] in ("RankEndedError", "StoppedError")
    mine = stage_figures(prepare(given, task=tiny_task(), console=quiet()))
    for other in (zero["figures"], one["figures"]):
        drawn = other.pop("drawn")
        assert len(drawn) == len(mine["drawn"]) and drawn[::2] != drawn[1::2]
        assert other.pop("responses") == mine["responses"]
        assert other.pop("sft") == pytest.approx(mine["sft"], rel=1e-5)
        for name, rows in other.items():
            for here, there in zip(mine[name], rows, strict=True):
                np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5, err_msg=name)
    assert folder.metrics("train") is None and folder.metrics("reward") is not None
    console = quiet()
    with pytest.warns(UserWarning, match="expected 2 ranks, as .* was saved with, got 1"):
        run(given, task=tiny_task(), console=console)
    assert "train" in said(console) and folder.report.is_file()
    folder.check(thorough=True)
    log = list(read_jsonl(folder.seed("train", 1, 0) / "metrics.jsonl"))
    assert [line["iteration"] for line in log] == list(range(1, len(log) + 1))
    tokens = [line["tokens"] for line in log]
    assert tokens == sorted(set(tokens)) and tokens[-1] >= 120


def test_what_ranks_cannot_do_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"expected one of run, .*evaluate in WORLD_SIZE=2 processes, got report"):
        parse(["report", str(tmp_path)])
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr("rlhf_gym.pipeline.agents.ranks", lambda: Ranks(0, 3))
    with pytest.raises(ValueError, match="expected n_episodes to be a multiple of 3, got 16: each of 3 ranks"):
        prepare(tiny_config(tmp_path / "run"), task=tiny_task(), console=quiet())
    assert not (tmp_path / "run").exists()


def test_what_rank_0_does_alone_is_waited_for_by_name():
    """As long as is said, and not once rank 0 has failed; of several that met an error one tells of it."""
    notes = torch.distributed.HashStore()
    zero, one = (Ranks(rank, 2, notes) for rank in range(2))
    with pytest.raises(
        StoppedError, match=r"expected rank 0 to be done with the labels of round 1 within 0:00:00\.010000,"
    ):
        one.from_first(list, "the labels of round 1", within=timedelta(milliseconds=10))
    notes = torch.distributed.HashStore()
    zero, one = (Ranks(rank, 2, notes) for rank in range(2))
    with pytest.raises(KeyError):
        zero.from_first(lambda: {}["label"], "the labels")
    with pytest.raises(RankEndedError):
        one.from_first(list, "the labels")
    assert (one.speaks(), zero.speaks()) == (True, False)
    assert zero.own_seed(7) == 7 != one.own_seed(7)


def test_work_that_is_spread_comes_back_in_order(monkeypatch):
    parts = {rank: [10 * item for item in range(5)][rank::3] for rank in range(3)}
    group = Ranks(1, 3)
    monkeypatch.setattr(group, "gather", lambda own, what: [parts[0], own, parts[2]])
    assert group.spread(range(5), lambda own: [10 * item for item in own], "tens") == [0, 10, 20, 30, 40]
    monkeypatch.setattr(group, "gather", lambda own, what: [[0], own, []])
    assert group.spread([0], lambda own: 1 / 0, "nothing for this one") == [0]
    assert Ranks().spread("ab", str.upper, "letters") == ["A", "B"]
    assert Ranks().from_first(lambda: 3, "a number") == 3
