"""`scripts/compare_agents.py` on a tiny budget: its figures against enumeration, and going on after an interrupt."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sb3_contrib")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
AGENTS, SEEDS = ("TokenPPO", "BestOf4"), (0, 1)


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import compare_agents

        yield compare_agents
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def compared(script, tmp_path_factory):
    """The command line of a comparison, after it has run."""
    folder = tmp_path_factory.mktemp("compared")
    arguments = ["--environments", "tabular", "--tokens", "1536", "--agents", *AGENTS]
    arguments += ["--seeds", *map(str, SEEDS), "--results", str(folder / "runs")]
    arguments += ["--output", str(folder / "picture.png")]
    return folder, arguments, printed(script, arguments)


def printed(script, arguments):
    """The table, as the command prints it, without the runs that come before it."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        script.study.run_script(script.main, arguments)
    return out.getvalue()[out.getvalue().index("| agent") :]


def records(folder):
    """What each run left, by agent and seed."""
    files = (folder / "runs").glob("tabular-*-1536.json")
    return {(p.stem.split("-")[1], int(p.stem.split("-")[2])): json.loads(p.read_text()) for p in files}


def by_definition(task, model):
    """J* − J and the total variation from π*, from the definitions, token by token."""
    prior, own = [], []
    for response in itertools.product(range(4), repeat=3):
        for table, found in ((task.reference, prior), (model, own)):
            with torch.no_grad():
                steps = table(input_ids=torch.tensor([[0, *response]])).logits[0].double().log_softmax(-1)
            found.append(sum(float(steps[t, token]) for t, token in enumerate(response)))
    prior, own = np.array(prior), np.array(own)
    weights = np.exp(prior) * np.exp(task.rewards / 0.5)
    objective = (np.exp(own) * (task.rewards - 0.5 * (own - prior))).sum()
    return 0.5 * np.log(weights.sum()) - objective, 0.5 * np.abs(np.exp(own) - weights / weights.sum()).sum()


def test_its_figures_are_those_of_enumeration(script, compared):
    folder, _, table = compared
    found = records(folder)
    assert set(found) == set(itertools.product(AGENTS, SEEDS))
    gaps, variations = [], []
    for seed in SEEDS:
        run = script.Run("tabular", 0.1, 1536, seed)
        model, _ = script.ENTRANTS["TokenPPO"].learn(run)
        gap, variation = by_definition(run.task, model)
        record = found["TokenPPO", seed]
        assert record["figures"]["gap"] == pytest.approx(gap, abs=1e-5)
        assert record["figures"]["variation"] == pytest.approx(variation, abs=1e-5)
        assert record["tokens"] == 1536
        start, *_, end = record["curve"]
        assert start[0] == 0
        assert start[1]["gap"] == pytest.approx(by_definition(run.task, run.task.reference)[0], abs=1e-5)
        assert end == [1536, {"gap": record["figures"]["gap"], "variation": record["figures"]["variation"]}]
        assert end[1]["gap"] < 0.5 * start[1]["gap"]
        gaps.append(gap)
        variations.append(variation)
        order = np.argsort(run.task.rewards)  # best of 4: the order statistic
        below = np.cumsum(np.exp(run.task.log_probs(run.task.reference))[order]) ** 4
        best = np.diff(below, prepend=0)
        kl = (best * (np.log(best) - run.task.log_probs(run.task.reference)[order])).sum()
        expected = run.task.best - (best * run.task.rewards[order]).sum() + 0.5 * kl
        assert found["BestOf4", seed]["figures"]["gap"] == pytest.approx(expected, abs=1e-5)
    (row,) = re.findall(r"\| `TokenPPO` \| π\* \| (\S+) \((\S+)\) \| (\S+) \((\S+)\) \|", table)
    expected = [np.median(gaps), max(gaps), np.median(variations), max(variations)]
    assert [float(cell) for cell in row] == pytest.approx(expected, abs=6e-3)
    assert "seeds 0, 1" in table
    assert "1,536 tokens each" in table


def test_it_goes_on_where_it_stopped(script, compared, monkeypatch):
    folder, arguments, before = compared
    asked = []

    def counted(*key, measure=script.measure):
        asked.append(key)
        return measure(*key)

    monkeypatch.setattr(script, "measure", counted)
    assert printed(script, arguments) == before
    assert asked == []
    (folder / "runs" / "tabular-BestOf4-1-1536.json").unlink()
    assert printed(script, arguments) == before
    assert asked == [("tabular", "BestOf4", 1, 1536)]
    assert (folder / "picture.png").stat().st_size > 10_000


def test_reached_is_reached_for_good(script):
    points = [(i * 10, {"gap": gap}) for i, gap in enumerate([0.5, 0.005, 0.02, 0.009, 0.008])]
    assert script.tokens_needed(points) == 30
    assert script.tokens_needed(points[:3]) is None


def test_every_agent_of_the_package_takes_part(script):
    from rlhf_gym import agents

    names = {name for name in agents.__all__ if name.startswith("Token")} - {"TokenAlgorithm"} | {"DPO"}
    assert names <= set(script.ENTRANTS)


def test_wrong_arguments_are_refused(script, capsys):
    for wrong in (["--agents", "PPO2"], ["--environments", "atari"], ["--tokens", "many"]):
        with pytest.raises(SystemExit):
            script.study.run_script(script.main, wrong)
        assert wrong[1] in capsys.readouterr().err


def test_the_snippet_of_the_page_runs(capsys):
    page = (SCRIPTS.parent / "docs" / "studies" / "comparison.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    namespace = {}
    exec(block, namespace)
    assert namespace["task"].total_variation(namespace["agent"].policy.model) < 0.1
    assert "J* − J" in capsys.readouterr().out
    for command in re.findall(r"python (scripts/\w+\.py)", page):
        assert (SCRIPTS.parent / command).is_file()
