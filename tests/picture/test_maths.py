"""The page's JavaScript and the package's Python give the same numbers, to 1e-9."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_gym import picture
from rlhf_gym.envs.enumerable import tabular_task
from rlhf_gym.functional import bradley_terry_loss, ppo_policy_loss
from rlhf_gym.picture.page import toy_numbers
from tests.devtools import chromium, find_chromium

MATHS = Path(picture.__file__).parent / "maths.js"
EXACT = {"rtol": 1e-9, "atol": 1e-9}
Calculate = Callable[[str], Any]


@pytest.fixture(scope="module", params=["node", "chromium"])
def calculate(request: pytest.FixtureRequest) -> Iterator[Calculate]:
    """What an expression amounts to, in which `maths` is known."""
    if request.param == "node":
        node = shutil.which("node")
        if node is None:
            pytest.skip("no node on the path")

        def by_node(expression: str) -> Any:
            code = f"const maths = require({json.dumps(str(MATHS))}); console.log(JSON.stringify({expression}))"
            return json.loads(
                subprocess.run([node, "-"], input=code, capture_output=True, text=True, check=True).stdout
            )

        yield by_node
        return
    if find_chromium() is None:
        pytest.skip("no Chromium on the path")
    with chromium() as browser:
        tab = browser.tab()
        code = MATHS.read_text(encoding="utf-8")
        yield lambda expression: json.loads(
            tab.evaluate(f"(() => {{ {code}; return JSON.stringify({expression}) }})()")
        )


def test_one_comparison(calculate: Calculate):
    chosen, rejected = (grid.ravel() for grid in np.meshgrid([-750.0, -4, -0.3, 0, 1, 40], [-750.0, -2.5, 0, 1.5, 40]))
    rows = np.stack([chosen, rejected], axis=1)
    found = calculate(f"{json.dumps(rows.tolist())}.map(([plus, minus]) => maths.comparison(plus, minus))")
    for row, js in zip(rows, found, strict=True):
        plus, minus = (torch.tensor([score], dtype=torch.float64, requires_grad=True) for score in row)
        loss = bradley_terry_loss(plus, minus)
        loss.backward()
        expected = [loss.item(), plus.grad.item(), minus.grad.item(), torch.sigmoid(plus - minus).item()]
        given = [js["loss"], js["chosenGradient"], js["rejectedGradient"], js["probability"]]
        np.testing.assert_allclose(given, expected, **EXACT)


def test_the_comparison_worked_out_by_hand(calculate: Calculate):
    found = calculate("maths.comparison(1.0, 1.5)")
    assert round(found["probability"], 4) == 0.3775 and round(found["loss"], 4) == 0.9741
    assert calculate("maths.comparison(3, 3)")["chosenGradient"] == -0.5
    assert calculate("maths.comparison(5, 4.5)") == calculate("maths.comparison(1, 0.5)"), "a constant changes nothing"


@pytest.mark.parametrize("beta", [0.02, 0.1, 0.5, 2.0, 10.0])
def test_the_optimum_of_the_toy(calculate: Calculate, beta: float):
    toy = toy_numbers()
    given = f"{json.dumps(toy['rewards'])}, {json.dumps(toy['ref_log_probs'])}, {beta}"
    found = calculate(f"maths.optimum({given})")
    task = dataclasses.replace(tabular_task(seed=0), beta=beta)
    np.testing.assert_allclose(found["probabilities"], task.optimum, **EXACT)
    expected = [task.kl(task.optimum), task.objective(task.optimum), task.best]
    np.testing.assert_allclose([found["kl"], found["objective"], found["best"]], expected, **EXACT)
    np.testing.assert_allclose(found["reward"], task.optimum @ task.rewards, **EXACT)


def tokens(seed: int, count: int) -> np.ndarray:
    """Ratio, advantage and ε of so many tokens, (count, 3)."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(0.05, 3.2, count), rng.uniform(-4, 4, count), rng.uniform(0.05, 0.5, count)], axis=1)


def test_the_clip_is_ppos(calculate: Calculate):
    rows = tokens(0, 200)
    found = calculate(f"{json.dumps(rows.tolist())}.map((row) => maths.clipped(...row))")
    for (ratio, advantage, epsilon), js in zip(rows, found, strict=True):
        log_prob = torch.tensor([[np.log(ratio)]], dtype=torch.float64, requires_grad=True)
        one = torch.ones(1, 1, dtype=torch.float64)
        loss = ppo_policy_loss(log_prob, 0 * one, advantage * one, one, clip_range=epsilon).loss
        loss.backward()
        expected = [-loss.item(), -log_prob.grad.item()]
        np.testing.assert_allclose([js["objective"], js["gradient"]], expected, **EXACT)


def test_the_wrong_clip_is_the_maximum_where_the_advantage_is_negative(calculate: Calculate):
    rows = tokens(1, 200)
    found = calculate(f"{json.dumps(rows.tolist())}.map((row) => maths.misclipped(...row))")
    for (ratio, advantage, epsilon), js in zip(rows, found, strict=True):
        log_prob = torch.tensor(np.log(ratio), dtype=torch.float64, requires_grad=True)
        terms = [log_prob.exp() * advantage, log_prob.exp().clamp(1 - epsilon, 1 + epsilon) * advantage]
        objective = (torch.maximum if advantage < 0 else torch.minimum)(*terms)
        objective.backward()
        np.testing.assert_allclose([js["objective"], js["gradient"]], [objective.item(), log_prob.grad.item()], **EXACT)


def test_the_clip_worked_out_by_hand(calculate: Calculate):
    good = calculate("maths.clipped(3, 4, 0.2)")
    np.testing.assert_allclose([good["unclipped"], good["clipped"], good["objective"]], [12, 4.8, 4.8], **EXACT)
    assert good["gradient"] == 0
    bad = calculate("maths.clipped(1.3, -3, 0.2)")
    np.testing.assert_allclose(
        [bad[n] for n in ("unclipped", "clipped", "objective", "gradient")], [-3.9, -3.6, -3.9, -3.9]
    )
    assert calculate("maths.misclipped(1.3, -3, 0.2).gradient") == 0, "it vanishes where it should bring the ratio back"


def test_ascent_by_the_right_rule_comes_back_and_stops_and_by_the_wrong_one_does_neither(calculate: Calculate):
    right, wrong = (
        calculate(f"maths.ascent(maths.{rule}, 1.3, -3, 0.2, 0.012, 60)") for rule in ("clipped", "misclipped")
    )
    assert wrong == [1.3] * 61
    below = next(i for i, ratio in enumerate(right) if ratio < 0.8)
    assert right[0] == 1.3 and right[below:] == [right[below]] * (61 - below)
    np.testing.assert_allclose(np.diff(np.log(right[: below + 1])), -0.036 * np.array(right[:below]), **EXACT)
    right, wrong = (
        calculate(f"maths.ascent(maths.{rule}, 1, -3, 0.2, 0.012, 60)") for rule in ("clipped", "misclipped")
    )
    assert 0.77 < right[-1] < 0.8 and wrong[-1] < 0.35
