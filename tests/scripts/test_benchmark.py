"""scripts/benchmark.py, patched down to models of 2 layers × 16 and responses of 4 tokens: every row comes out, with
finite numbers. How fast anything is, is not asserted."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import torch

from tests.tiny import tiny_llama, tiny_tokenizer

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
        importlib.import_module("benchmarks.own_ppo")  # what a process of its own would run
        yield module
    torch.set_num_threads(threads)


def small_settings(script: ModuleType, shape=None):
    models = sys.modules["benchmarks.models"]
    return script.Settings(
        shapes=(shape or models.Shape("tiny", 2, 16, 40, 2),),
        threads=1,
        rounds=1,
        min_seconds=0.0,
        warm_ups=1,
        batches=(1, 2),
        response=4,
        long_response=8,
        episodes=5,
        ppo_episodes=4,
        ppo_response=4,
    )


class InThisProcess:
    """Ours runs here; the peer is said to need so many seconds and megabytes."""

    def __init__(self, peer: dict | None) -> None:
        self.result, self.asked = peer, []

    def ours(self, given):
        measure = sys.modules["benchmarks.own_ppo"].measure
        self.asked.append(given.kind)
        shape = dataclasses.replace(given.shape, width=16, n_head=2, vocab_size=40)
        return measure(dataclasses.replace(given, shape=shape, episodes=4, response=4, minibatches=2, epochs=2))

    def peer(self, given):
        return self.result


def test_every_row_is_measured(script):
    runner = InThisProcess({"version": "0", "seconds": [1e6], "peak_mb": 1.0, "libraries_mb": 0.5})
    found = script.run(small_settings(script), get_args(script.Name), lambda text: None, runner)
    assert all(math.isfinite(row.ratio) and row.ratio > 0 for row in found if "memory of a" not in row.what)
    rows = {(row.what, row.against): row for row in found}
    # a peer of a million seconds and one megabyte: far slower, and far smaller
    assert rows["PPO iteration, all layers", "TRL PPO 0, full"].ratio > 1000
    assert rows["PPO iteration, all layers: peak MB", "TRL PPO 0, full"].ratio > 100
    lora = rows["PPO iteration, LoRA r=16 on all linear layers", "ours, all layers, fp32"]
    full = rows["PPO iteration, all layers", "TRL PPO 0, full"]
    assert lora.ratio == pytest.approx(lora.ours / full.ours)
    assert runner.asked == [*script.iteration.KINDS, "full", "full", "sharded", "full", "lora"]
    several = rows["PPO iteration on 2 ranks × 1 thread", "1 rank × 1 thread"]
    assert several.ratio == pytest.approx(several.ours / several.theirs)
    assert several.note.count("0 % meetings") == 2  # of runs that had none
    assert rows["PPO, sharded over 2 ranks: MB of weights, gradients, moments", "1 rank"].ratio == 1.0  # one process
    page = script.markdown(found, "about")
    lines = page.splitlines()
    assert lines[0] == "about" and len(lines) == 4 + len(found)
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert "nan" not in page and "inf" not in page


def test_a_model_in_a_folder_is_measured_as_it_is(script, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    models = sys.modules["benchmarks.models"]
    shape = models.of_folder(tmp_path / "model")
    expected = tiny_llama()
    assert (shape.vocab_size, shape.width) == (expected.config.vocab_size, expected.config.hidden_size)
    loaded = models.causal_lm(shape, 12)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))
    found = script.run(small_settings(script, shape), ("loop",), lambda text: None, InThisProcess(None))
    assert [row.note.split(";")[0] for row in found] == ["batch 1", "batch 2", "geometric mean of the rows above"]
    assert all(math.isfinite(row.ratio) for row in found)


def test_without_a_peer_its_rows_say_so(script):
    class Canned(InThisProcess):
        def ours(self, given):
            return {"seconds": [1.0], "rollout_share": 0.25, "peak_mb": 1.0, "libraries_mb": 0.5}

    measure = script.iteration.measure
    found = measure(small_settings(script), lambda text: None, Canned(None))
    found = [row for row in found if row.against.startswith("TRL")]
    assert {row.ratio for row in found} == {None}
    assert all(script.iteration.MISSING in row.note for row in found if "peak" not in row.what)


def test_the_two_processes_are_told_the_same(script):
    models = sys.modules["benchmarks.models"]
    shape = models.Shape("small", 2, 16, 40, 2)
    given = models.Iteration(shape, "cpu", 1, 1, 0, response=2, episodes=4, epochs=3, kind="bf16")
    assert models.iteration_from_json(json.dumps(dataclasses.asdict(given))) == given
    agent = sys.modules["benchmarks.own_ppo"].make_agent(given)
    assert agent.policy.bf16 and agent.policy.model.dtype == torch.float32
    assert next(agent.engine.token_reward.scorer.reward.model.parameters()).dtype == torch.bfloat16


def test_a_ratio_is_the_median_of_its_rounds(script):
    from benchmarks.compare import Comparison

    found = Comparison({"a": [10.0, 30.0, 20.0], "b": [10.0, 10.0, 40.0]}).row("a", "b", "x", "tiny")
    assert (found.ratio, found.ours, found.theirs) == (1.0, 20.0, 10.0)
    assert found.note == "rounds 0.50–3.00"
