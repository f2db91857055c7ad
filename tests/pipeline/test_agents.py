"""The circle with each agent in PPO's place: it trains, is evaluated, and is called by its name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from rlhf_gym.agents import DPO, TokenAlgorithm
from rlhf_gym.cli.commands import parse
from rlhf_gym.envs import ClipScore, LengthPenalty, NormalizeScore
from rlhf_gym.files import read_jsonl
from rlhf_gym.functional import best_of_n_kl
from rlhf_gym.lm import load_causal_lm
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.pipeline.collect import all_preferences
from rlhf_gym.pipeline.ppo import AGENTS, make_agent, make_env, preferences
from rlhf_gym.runs import PPOConfig, RunConfig, RunFolder
from rlhf_gym.runs.agent_config import AgentName
from tests.run_folders import read_page
from tests.tiny_runs import quiet, said, save_model, tiny_config, tiny_task

NAMES = {
    "a2c": "A2C", "reinforce": "REINFORCE", "rloo": "RLOO", "grpo": "GRPO", "dpo": "DPO", "best_of_n": "best of 3",
}  # fmt: skip


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as far as its reward model."""
    root = tmp_path_factory.mktemp("before")
    save_model(root / "pretrained")
    for stage in ("sft", "collect", "reward"):
        run(tiny_config(root / "run"), task=tiny_task(root / "pretrained"), only=stage, console=quiet())
    return root


def with_agent(before: Path, root: Path, agent: str, **overrides: Any) -> RunConfig:
    """The same run with another agent."""
    if not root.is_dir():
        shutil.copytree(before / "run", root)
    config = tiny_config(root)
    group = 3 if agent == "best_of_n" else None
    return replace(config, ppo=replace(config.ppo, agent=agent, samples_per_prompt=group, n_epochs=None), **overrides)


def test_every_agent_has_a_class() -> None:
    assert set(AGENTS) | {"best_of_n"} == set(get_args(AgentName)) == set(NAMES) | {"ppo"}
    assert all(issubclass(kind, TokenAlgorithm) for kind in AGENTS.values())


@pytest.mark.parametrize("agent", NAMES)
def test_the_circle_with_another_agent(agent: AgentName, before: Path, tmp_path: Path) -> None:
    config = with_agent(before, tmp_path / "run", agent, unleashed=agent == "rloo")
    console, label = quiet(), NAMES[agent]
    run(config, task=tiny_task(before / "pretrained"), redo="ppo", console=console)
    folder, output = RunFolder(tmp_path / "run"), said(console)
    assert folder.config() == config
    metrics = folder.metrics("evaluate")
    assert metrics is not None and metrics["agent"] == label
    assert "PPO" not in output and f"{label} wins" in output and label in output.split("vs SFT")[1]
    page = read_page(folder)
    title = label[0].upper() + label[1:]
    assert f"<h1>{title}’s responses" in page and "PPO" not in page.split("<details>")[0].split("<main")[-1]
    kinds = [row["kind"] for row in metrics["summary"]]
    assert kinds == ["sft", "best_of", "ppo", *(["unleashed"] if agent == "rloo" else [])]
    row = metrics["summary"][2]
    assert row["kl_is_bound"] == (agent == "best_of_n")
    records = list(read_jsonl(folder.seed("ppo", 1, 0) / "metrics.jsonl")) if agent != "best_of_n" else []
    sft, left = (load_causal_lm(path / "model") for path in (folder.stage("sft"), folder.seed("ppo", 1, 0)))
    same = all((one == other).all() for one, other in zip(sft.parameters(), left.parameters(), strict=True))
    assert same == (agent == "best_of_n")
    if agent == "best_of_n":
        assert row["kl"][0] == pytest.approx(float(best_of_n_kl(3)))
        assert row["proxy"][0] > metrics["summary"][0]["proxy"][0]
    elif agent == "dpo":
        assert {"train/accuracy", "train/loss"} <= set(records[-1]) and "rlhf/gold" not in records[-1]
        assert "share of pairs that the policy agrees with" in page and "like" not in page.split("<h2>")[1][:40]
    else:
        assert {"rlhf/score", "rlhf/kl", "rlhf/gold"} <= set(records[-1])
        assert records[-1]["tokens"] >= 240


def test_dpo_learns_from_the_runs_own_preferences(before: Path, tmp_path: Path) -> None:
    config = with_agent(before, tmp_path / "run", "dpo")
    prepared = prepare(config, task=tiny_task(before / "pretrained"), redo="ppo", console=quiet())
    env = make_env(prepared, "ppo", 1, 0, reward=lambda prompts, responses: np.zeros(len(prompts)))  # type: ignore[arg-type]
    agent = make_agent(prepared, "ppo", 1, 0, env)
    assert isinstance(agent, DPO)
    assert agent.preferences == all_preferences(prepared, 1)[0] == preferences(prepared, 1)
    assert len(agent.preferences) > 5


def test_the_command_line_takes_the_agents_name() -> None:
    for command in ("run", "ppo"):
        assert parse(command, ["--run-dir", "nowhere", "--agent", "grpo"]).config.ppo.agent == "grpo"
    with pytest.raises(SystemExit):
        parse("run", ["--agent", "sarsa"])


def test_settings_that_go_with_an_agent() -> None:
    settings = {name: (PPOConfig(agent=name).epochs, PPOConfig(agent=name).group) for name in get_args(AgentName)}
    assert settings == {
        "ppo": (4, 1), "a2c": (1, 1), "reinforce": (1, 1), "rloo": (1, 4), "grpo": (4, 4), "dpo": (1, 1),
        "best_of_n": (1, 16),
    }  # fmt: skip
    assert (PPOConfig(n_epochs=2).epochs, PPOConfig(agent="rloo", samples_per_prompt=8).group) == (2, 8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"agent": "sarsa"}, "expected agent to be one of ppo, a2c, .* got 'sarsa'"),
        ({"agent": "rloo", "samples_per_prompt": 1}, "expected samples_per_prompt >= 2 with agent=rloo, got 1"),
        ({"agent": "grpo", "n_episodes": 30}, "n_episodes to be a multiple of samples_per_prompt=4, got 30"),
        ({"agent": "dpo", "batch_size": 5}, r"expected an even batch_size with agent=dpo \(two a pair\), got 5"),
        ({"agent": "dpo", "kl_control": "adaptive"}, r"a fixed kl_coef > 0 with agent=dpo .* got 0.1, adaptive"),
    ],
)
def test_wrong_settings_say_what_was_expected(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**overrides)


def test_best_of_n_draws_from_the_sft_policy(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with pytest.raises(ValueError, match="expected reference=sft with agent=best_of_n, got previous"):
        replace(config, ppo=replace(config.ppo, agent="best_of_n"), reference="previous")


def test_terms_on_the_score_are_checked_with_the_settings_and_reach_the_environment():
    config = PPOConfig(length_penalty=0.1, length_penalty_after=6, clip_score=(-2.0, 2.0), normalize_score=True)
    assert config.shaping == (NormalizeScore(), ClipScore(-2.0, 2.0), LengthPenalty(0.1, after=6))
    assert PPOConfig().shaping == ()
    with pytest.raises(ValueError, match="low"):
        PPOConfig(clip_score=(2.0, -2.0))
    with pytest.raises(ValueError, match="expected no terms on the scores with agent=dpo"):
        PPOConfig(agent="dpo", repetition_penalty=1.0)
