"""What the studies share: figures kept in files, a run's path through KL, tables, and the scripts that stand on it."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.files import write_jsonl
from rlhf_gym.runs import RunFolder

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "studies"))
import study


def trajectory(kl: list[float], gold: list[float]) -> study.Trajectory:
    return study.Trajectory(np.arange(len(kl)) * 100.0, np.array(kl), np.array(gold), 2 * np.array(gold))


def test_figures_are_made_once_and_kept(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> dict[str, float]:
        calls.append(1)
        return {"gold": 1.5}

    path = tmp_path / "arm" / "seed-0.json"
    assert study.kept(path, make) == study.kept(path, make) == {"gold": 1.5}
    assert len(calls) == 1


def test_mean_and_error() -> None:
    assert study.mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / math.sqrt(3)))
    assert math.isnan(study.mean_and_error([1.0])[1])
    assert study.spread([0.5, 0.7], ".1%") == "60.0% ± 10.0%" and study.spread([-0.5], "+.1f") == "−0.5"


def test_tables() -> None:
    assert study.markdown_table(["a", "b:"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_where_a_run_first_reached_a_kl() -> None:
    way = trajectory([0, 2, 4, 3, 8], [0, 1, 2, 5, 4])
    point = way.at(3, window=1)
    assert point == study.Point(150.0, 3, 1.5, 3.0)
    assert way.at(6, window=1).gold == pytest.approx(5 - 3 / 5)
    assert math.isnan(way.at(9, window=1).gold)
    assert way.at(0, window=1).tokens == 0


def test_the_best_and_the_end_of_a_run() -> None:
    way = trajectory([0, 1, 2, 3, 4, 5], [0, 3, 3, 3, 0, -3])
    assert way.best(window=3).kl == 2 and way.best(window=3).gold == 3
    assert way.last(window=2).gold == -1.5 and way.last(window=2).tokens == 500


def test_a_trajectory_is_read_as_it_was_logged(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = [{"tokens": 90 * (i + 1), "rlhf/kl": float(i), "rlhf/gold": i - 0.5, "rlhf/score": 2.0} for i in range(3)]
    del log[1]["rlhf/gold"]
    write_jsonl(folder.seed("without_kl", 1, 4) / "metrics.jsonl", log)
    way = study.read_trajectory(folder, "without_kl", 4)
    assert way.tokens.tolist() == [0, 180]  # what had been learnt from when the iteration's responses were written
    assert way.kl.tolist() == [0, 2] and way.gold.tolist() == [-0.5, 1.5] and way.proxy.tolist() == [2, 2]
    with pytest.raises(ValueError, match="iterations with gold"):
        study.read_trajectory(folder, "train", 4)


def test_the_studies_depart_from_one_place(tmp_path: Path) -> None:
    config = study.run_config(tmp_path, 3, labels=801, tokens=1000)
    assert (config.seed, config.seeds, config.agent.total_tokens, config.collect.num_prompts) == (3, 1, 1000, 401)
    task = study.task_from_sft()
    assert task.pretrained == task.sft is not None and not task.demonstrations


@pytest.mark.parametrize(
    "script",
    ["rounds", "adversarial_pairs", "kl_control", "sampling_study", "active_learning", "customer", "guessing_game"],
)
def test_scripts_are_there(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = __import__(script)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        study.run_script(module.main)
    assert "--help" in capsys.readouterr().out


def test_pairs_ordered_right_are_those_that_gold_tells_apart() -> None:
    gold = np.array([[0.0, 1.0, 2.0, 2.0, 9.0], [1.0, 0.0, 0.0, 1.0, 9.0]])
    proxy = np.array([[0.0, 1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
    assert study.share_ordered_right(proxy, gold) == pytest.approx((1 + 0 + 0.5) / 3)


def test_what_is_written_by_hand_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: scripts/x.py -->\nold\n<!-- end of table -->\nafter\n")
    for text in ("first", "second"):
        study.put_into_page(page, "table", "x.py", text)
    assert page.read_text() == "before\n<!-- table: scripts/x.py -->\nsecond\n<!-- end of table -->\nafter\n"
    with pytest.raises(ValueError, match=r"expected <!-- other: scripts/x\.py -->"):
        study.put_into_page(page, "other", "x.py", "text")
