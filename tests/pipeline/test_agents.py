"""The circle with each agent in PPO's place: it trains, is evaluated, and is called by its name."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from rlhf_gym.agents import CISPO, DPO, BestOfN, Clip, LengthAdaptive, SequenceClip, TokenPPO, TokenReinforce
from rlhf_gym.envs import ClipScore, LengthPenalty, NormalizeScore
from rlhf_gym.files import read_jsonl
from rlhf_gym.functional import best_of_n_kl
from rlhf_gym.lm import load_causal_lm
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.pipeline.agents import Parts, agent_class, make_agent, make_env
from rlhf_gym.pipeline.collect import all_preferences
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import (
    AGENTS,
    BestOfNSettings,
    DPOSettings,
    GRPOSettings,
    PolicyGradientSettings,
    PPOSettings,
    ReinforceSettings,
    RLOOSettings,
    RunConfig,
)
from rlhf_gym.settings.agents import AgentParts
from tests.run_folders import read_page
from tests.tiny_runs import quiet, said, save_model, tiny_config, tiny_task

NAMES = {
    "a2c": "A2C",
    "reinforce": "REINFORCE",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dpo": "DPO",
    "best_of_n": "best of 3",
}
CLASSES = {kind.name: kind for kind in AGENTS}


def with_agent(before: Path, root: Path, agent: str, **overrides: Any) -> RunConfig:
    """The same run with another agent."""
    if not root.is_dir():
        shutil.copytree(before / "run", root)
    config = tiny_config(root)
    small = {"n": 3, "total_tokens": 240, "n_episodes": 16, "batch_size": 8, "num_envs": 8, "checkpoint_every": 1}
    own = {setting.name for setting in fields(CLASSES[agent])}
    settings = CLASSES[agent](**{name: value for name, value in small.items() if name in own})
    return replace(config, agent=settings, **overrides)


def test_every_agent_has_a_class() -> None:
    assert set(CLASSES) == set(NAMES) | {"ppo"}
    assert {agent_class(kind()) for kind in AGENTS} >= {DPO, TokenPPO, BestOfN}


@pytest.mark.parametrize("agent", NAMES)
def test_the_circle_with_another_agent(agent: str, before: Path, tmp_path: Path) -> None:
    config = with_agent(before, tmp_path / "run", agent, without_kl=agent == "rloo")
    console, label = quiet(), NAMES[agent]
    run(config, task=tiny_task(before / "pretrained"), redo="train", console=console)
    folder, output = RunFolder(tmp_path / "run"), said(console)
    assert folder.config() == config
    metrics = folder.metrics("evaluate")
    assert metrics is not None and metrics["agent"] == label
    assert "PPO" not in output and f"{label} wins" in output and label in output.split("vs SFT")[1]
    page = read_page(folder)
    title = label[0].upper() + label[1:]
    assert f"<h1>{title}’s responses" in page and "PPO" not in page.split("<details>")[0].split("<main")[-1]
    kinds = [row["kind"] for row in metrics["summary"]]
    assert kinds == ["sft", "best_of", "train", *(["without_kl"] if agent == "rloo" else [])]
    row = metrics["summary"][2]
    assert row["kl_is_bound"] == (agent == "best_of_n")
    records = list(read_jsonl(folder.seed("train", 1, 0) / "metrics.jsonl")) if agent != "best_of_n" else []
    sft, left = (load_causal_lm(path / "model") for path in (folder.stage("sft"), folder.seed("train", 1, 0)))
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
    prepared = prepare(config, task=tiny_task(before / "pretrained"), redo="train", console=quiet())
    env = make_env(prepared, "train", 1, 0, reward=lambda prompts, responses: np.zeros(len(prompts)))  # type: ignore[arg-type]
    agent = make_agent(prepared, "train", 1, 0, env)
    assert isinstance(agent, DPO)
    assert agent.preferences == all_preferences(prepared, 1)[0] == Parts(prepared, 1, 0).preferences()
    assert len(agent.preferences) > 5


def test_settings_that_go_with_an_agent() -> None:
    epochs = {kind.name: kind().n_epochs for kind in AGENTS if kind is not BestOfNSettings}
    assert epochs == {"ppo": 4, "a2c": 1, "reinforce": 1, "rloo": 1, "grpo": 4, "dpo": 1}
    assert (PPOSettings().samples_per_prompt, RLOOSettings().samples_per_prompt, BestOfNSettings().n) == (1, 4, 16)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (RLOOSettings, {"samples_per_prompt": 1}, "expected samples_per_prompt >= 2, got 1"),
        (GRPOSettings, {"n_episodes": 30}, "n_episodes to be a multiple of samples_per_prompt=4, got 30"),
        (DPOSettings, {"batch_size": 5}, r"expected an even batch_size \(two responses a pair\), got 5"),
        (DPOSettings, {"beta": 0.0}, "expected beta > 0, got 0.0"),
        (PPOSettings, {"surrogate": "gspo"}, "expected surrogate to be one of .*, got 'gspo'"),
        (PPOSettings, {"surrogate": "cispo"}, "expected a clip_range_high with surrogate='cispo', got None"),
        (
            GRPOSettings,
            {"surrogate": "sequence", "dual_clip": 3.0},
            'surrogate="clip" with a dual_clip, got \'sequence',
        ),
        (RLOOSettings, {"clip_range": 0.2}, "expected a surrogate for clip_range=0.2 .*, got 'none'"),
        (RLOOSettings, {"max_refills": -1}, "expected max_refills >= 0, got -1"),
        (PPOSettings, {"critic_warmup": -1}, "expected critic_warmup >= 0, got -1"),
        (PPOSettings, {"kl_in": "score"}, "expected kl_in to be one of .*, got 'score'"),
    ],
)
def test_wrong_settings_say_what_was_expected(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PPOSettings(), {"surrogate": Clip(0.2), "gae_lambda": 0.95, "critic_lambda": None, "critic_warmup": 0}),
        (PPOSettings(clip_range=0.1, clip_range_high=0.3, dual_clip=3.0), {"surrogate": Clip(0.1, 0.3, 3.0)}),
        (PPOSettings(gae_lambda_alpha=0.05, critic_lambda=1.0), {"gae_lambda": LengthAdaptive(), "critic_lambda": 1.0}),
        (GRPOSettings(surrogate="sequence", aggregation="sequence"), {"surrogate": SequenceClip()}),
        (GRPOSettings(surrogate="sequence", clip_range=0.01), {"surrogate": SequenceClip(0.01)}),
        (RLOOSettings(surrogate="cispo", clip_range_high=4.0), {"surrogate": CISPO(4.0), "max_refills": 0}),
        (ReinforceSettings(reward_to_go=True, mask_truncated=True), {"surrogate": None, "reward_to_go": True}),
    ],
)
def test_settings_of_the_losses_reach_the_agent(
    settings: Any, expected: dict[str, Any], before: Path, tmp_path: Path
) -> None:
    config = with_agent(before, tmp_path / "run", settings.name)
    prepared = prepare(config, task=tiny_task(before / "pretrained"), redo="train", console=quiet())
    arguments = settings.arguments(Parts(prepared, 1, 0))
    assert {key: arguments[key] for key in expected} == expected
    assert arguments["mask_truncated"] == settings.mask_truncated
    agent_class(settings)("LMPolicy", "rlhf_gym/Reviews-v0", n_envs=8, device="cpu", **arguments)  # it takes them all


def test_best_of_n_draws_from_the_sft_policy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected reference=sft with the best of n, got previous"):
        tiny_config(tmp_path, agent=BestOfNSettings(), reference="previous")


def test_terms_on_the_score_reach_the_environment(before: Path, tmp_path: Path) -> None:
    config = with_agent(before, tmp_path / "run", "ppo")
    prepared = prepare(config, task=tiny_task(before / "pretrained"), redo="train", console=quiet())
    settings = PPOSettings(length_penalty=0.1, length_penalty_after=6, clip_score=(-2.0, 2.0), normalize_score=True)
    terms = (NormalizeScore(), ClipScore(-2.0, 2.0), LengthPenalty(0.1, after=6))
    assert settings.env_arguments(Parts(prepared, 1, 0))["shaping"] == terms
    assert PPOSettings().env_arguments(Parts(prepared, 1, 0))["shaping"] == ()
    wrong = replace(config, agent=PPOSettings(clip_score=(2.0, -2.0)))
    with pytest.raises(ValueError, match="low"):
        prepare(wrong, task=tiny_task(before / "pretrained"), redo="train", console=quiet())


class OwnAgent(TokenReinforce):
    """An agent of one's own."""

    label = "Mine"


@dataclass(frozen=True)
class OwnSettings(PolicyGradientSettings):
    """Its settings, with one that no other agent has."""

    name: ClassVar[str] = "mine"
    agent: ClassVar[str] = f"{__name__}:OwnAgent"

    baseline: str = "none"

    def arguments(self, parts: AgentParts) -> dict[str, Any]:
        return super().arguments(parts) | {"baseline": self.baseline}


def test_an_agent_of_ones_own_goes_through_the_whole_pipeline(tmp_path: Path) -> None:
    save_model(tmp_path / "pretrained")
    own = OwnSettings(total_tokens=240, n_episodes=16, batch_size=8, num_envs=8, baseline="batch")
    config = tiny_config(tmp_path / "run", agent=own, without_kl=True)
    console = quiet()
    run(config, task=tiny_task(tmp_path / "pretrained"), console=console)
    folder = RunFolder(tmp_path / "run")
    assert folder.config() == config and "Mine wins" in said(console)
    assert "<h1>Mine’s responses" in read_page(folder)
