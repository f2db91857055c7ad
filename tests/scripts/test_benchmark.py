"""scripts/benchmark.py, patched down to models of 2 layers × 16 and responses of 4 tokens: every table comes out, with
finite numbers. How fast anything is, is not asserted."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    """The script as a module, with its parts importable beside it as they are when it is run."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        spec = importlib.util.spec_from_file_location("benchmark", SCRIPTS / "benchmark.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "benchmark", module)
        spec.loader.exec_module(module)
        yield module
    torch.set_num_threads(threads)


def small_settings(script: ModuleType):
    shapes = sys.modules["benchmarks.common"]
    return script.Settings(
        shapes=(shapes.Shape("tiny", 2, 16, 2, 40),),
        threads=1,
        rounds=1,
        min_seconds=0.0,
        warm_ups=1,
        batches=(1, 2),
        response=4,
        long_response=8,
        short_response=4,
        episodes=5,
    )


class InThisProcess:
    """Ours runs here; the peer is said to need so many seconds and megabytes."""

    def __init__(self, script: ModuleType, peer: dict | None) -> None:
        self.iteration, self.result, self.asked = script.iteration, peer, []

    def ours(self, given):
        from benchmarks.own_ppo import measure  # beside the script, importable only while the fixture holds

        self.asked.append(given)
        return measure(dataclasses.replace(given, episodes=4, minibatches=2, epochs=2))

    def peer(self, given):
        return self.result


def test_every_row_is_measured(script, tmp_path):
    peer = {"version": "0", "seconds": [1e6], "foreign": 0.0, "peak_mb": 1.0, "libraries_mb": 0.5, "trained": 7}
    runner = InThisProcess(script, peer)
    report = script.run(small_settings(script), script.NAMES, lambda text: None, runner)
    assert [section.name for section in report.sections] == ["loops", "lengths", "long", "iteration", "stock"]
    rows = {row.what: row for section in report.sections for row in section.rows}
    assert all(math.isfinite(row.measured) and row.measured > 0 for row in rows.values())
    # a peer of a million seconds and one megabyte: far slower, and far smaller
    assert rows["PPO iteration, lower half frozen (tiny)"].reached is True
    assert rows["its peak memory, lower half frozen (tiny)"].reached is False
    assert rows["PPO iteration, critic on a trunk of its own (tiny)"].reached is None
    assert rows["PPO iteration, critic on a trunk of its own (tiny)"].against == "TRL PPO 0"
    assert [(given.critic, given.freeze_layers) for given in runner.asked] == [
        ("shared", 0),
        ("separate", 0),
        ("shared", 1),
    ]

    console = Console(file=(tmp_path / "shown.txt").open("w"), width=160)
    script.tables.show(report, console)
    console.file.close()
    page, shown = script.tables.markdown(report), (tmp_path / "shown.txt").read_text()
    for section in report.sections:
        for detail in section.details:
            assert detail.title in page
            assert detail.title in shown
            assert all(len(line) == len(detail.header) for line in detail.rows)
    for text in (page, shown):
        assert "nan" not in text and "inf" not in text.replace("information", "")
    found = json.loads(script.tables.to_json(report))
    assert found["settings"]["response"] == 4
    assert len(found["sections"]) == 5


def test_without_a_peer_its_rows_say_so(script):
    phases = {phase: [1.0] for phase in ("seconds", "rollout", "scoring", "update")}
    ours = phases | {"foreign": 0.25, "peak_mb": 1.0, "libraries_mb": 0.5, "trained": 7}

    class Canned(InThisProcess):
        def ours(self, given):
            return ours

    section = script.iteration.measure(small_settings(script), lambda text: None, Canned(script, None))
    assert section.foreign == 0.25
    assert {row.note for row in section.rows} == {script.iteration.MISSING}
    assert {row.measured for row in section.rows} == {None}
    assert all("unmeasured" in row.cells() for row in section.rows)


def test_the_two_processes_are_told_the_same(script):
    common = sys.modules["benchmarks.common"]
    llama = common.Shape("1b", 2, 16, 2, 40, kv_heads=1, intermediate=24, dtype="bfloat16")
    given = common.Iteration(llama, "cpu", 1, 1, 0, response=2, episodes=1, epochs=3)
    assert common.iteration_from_json(json.dumps(dataclasses.asdict(given))) == given
    model = common.causal_lm(llama, 12)
    assert model.dtype == torch.bfloat16 and model.config.num_key_value_heads == 1


def test_a_ratio_is_the_median_of_its_rounds(script):
    from benchmarks.common import Comparison
    from benchmarks.tables import Row

    found = Comparison({"a": [10.0, 30.0, 20.0], "b": [10.0, 10.0, 40.0]}, 0.0)
    assert found.ratio("a", "b") == 1.0
    assert found.ratios("a", "b") == (0.5, 3.0)
    assert found.rate("a") == 20.0
    assert Row("x", "y", 0.6, 0.6, at_most=True).reached is True
    assert Row("x", "y", 0.61, 0.6, at_most=True).reached is False
    assert Row("x", "y", 1.29, 1.3).reached is False
    assert Row("x", "y", None, 1.3).reached is None


def test_the_command_is_written_without_paths_of_this_machine(script):
    given = [
        "--peer-python",
        "/home/me/bin/python",
        "--rounds",
        "3",
        "--json=/home/me/out.json",
        "--markdown",
        "docs/t.md",
    ]
    shown = "python scripts/benchmark.py --peer-python PATH --rounds 3 --json=PATH --markdown docs/t.md"
    assert script.shown_command(given) == shown
