"""The best of n in the evaluation: what is drawn and kept, and what is read from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.functional import best_of_n_kl
from rlhf_gym.lm import load_causal_lm
from rlhf_gym.pipeline import prepare
from rlhf_gym.pipeline.best_of_n import measure_best_of_n
from rlhf_gym.rewards import RewardModel
from rlhf_gym.runs.folder import to_json
from rlhf_gym.runs.records import BestOfN, doublings, read_best_of_n
from rlhf_gym.settings import EvaluateConfig, RunConfig
from tests.tiny import tiny_tokenizer
from tests.tiny_runs import PROMPTS, quiet, save_model, tiny_config, tiny_task


def test_responses_are_drawn_scored_and_kept(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    config = tiny_config(tmp_path / "run", evaluate=EvaluateConfig(best_of_samples=5, best_of_prompts=4))
    run = prepare(config, task=tiny_task(model, demonstrations=()), console=quiet())
    reward = RewardModel.from_language_model(model, tiny_tokenizer())
    assert read_best_of_n(run.folder) is None
    for _ in range(2):
        measure_best_of_n(run, load_causal_lm(model), reward, PROMPTS[:6])
        found = read_best_of_n(run.folder)
        assert found is not None and found.gold.shape == found.proxy.shape == (4, 5)
        assert found.n == [1, 2, 3, 4, 5] and np.unique(found.gold).size > 1
    gold, proxy = found.rise()
    assert gold.shape == proxy.shape == (4, 5) and (gold[:, 0] == 0).all()
    assert (np.diff(proxy, axis=1) >= -1e-12).all(), "the proxy of the best never falls with n"
    fit = found.fit()
    assert fit is not None and fit.dof == 3  # four prompts


def test_nothing_is_drawn_without_gold_or_where_none_are_asked_for(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    reward = RewardModel.from_language_model(model, tiny_tokenizer())
    run = prepare(tiny_config(tmp_path / "run"), task=tiny_task(model, demonstrations=()), console=quiet())
    ungilded = replace(run, task=replace(run.task, gold=None))
    measure_best_of_n(ungilded, load_causal_lm(model), reward, PROMPTS[:6])
    frugal = replace(run, config=replace(run.config, evaluate=EvaluateConfig(best_of_samples=0)))
    measure_best_of_n(frugal, load_causal_lm(model), reward, PROMPTS[:6])
    assert read_best_of_n(run.folder) is None


def test_the_curve_is_goodharts_control() -> None:
    """Gold z, proxy z + σε: both rise for ever, so no peak is found within what was measured."""
    rng = np.random.default_rng(0)
    gold = rng.standard_normal((300, 64))
    found = BestOfN(gold + 0.8 * rng.standard_normal(gold.shape), gold)
    rise, proxy = (values.mean(axis=0) for values in found.rise())
    np.testing.assert_allclose(rise[1:] / proxy[1:], 1 / np.sqrt(1.64), atol=0.05)
    fit = found.fit()
    assert fit is not None and fit.peak_distance > np.sqrt(best_of_n_kl(64))
    low, high = fit.band(found.kl)
    assert (high - low)[1:].max() < 0.35 and (low <= rise + 0.1).all() and (rise - 0.1 <= high).all()


def test_one_prompt_gives_no_fit() -> None:
    values = np.random.default_rng(0).normal(size=(1, 8))
    assert BestOfN(values, values).fit() is None
    assert BestOfN(np.ones((3, 2)), np.ones((3, 2))).fit() is None


def test_sizes_double() -> None:
    assert doublings(1) == [1] and doublings(5) == [1, 2, 3, 4, 5]
    assert doublings(64) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]


@pytest.mark.parametrize(("name", "value"), [("best_of_samples", -1), ("best_of_prompts", 0)])
def test_settings_are_checked(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"expected {name} >= {value + 1}, got {value}"):
        EvaluateConfig(**{name: value})
    assert to_json(RunConfig())["evaluate"]["best_of_samples"] == 64
