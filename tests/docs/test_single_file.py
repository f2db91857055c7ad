"""The single-file PPO, a stranger's loop: it finds the optimum in both autoreset modes, and reads no reset step."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from rlhf_gym.envs import TokenEnv, TokenVectorEnv
from tests.tiny import tiny_gpt2
from tests.toy import make_tabular_toy, word_settings

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "ppo_single_file.py"
MODES = ["SameStep", "NextStep"]
uncached = pytest.mark.filterwarnings("ignore:.*runs without a cache")  # the toy's table has no keys and values


def load(source: str | None = None) -> ModuleType:
    """The script as a module; with `source`, an altered one."""
    spec = importlib.util.spec_from_loader("ppo_single_file", loader=None)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ppo_single_file"] = module  # dataclasses look their module up
    exec(compile(source or SCRIPT.read_text(), str(SCRIPT), "exec"), vars(module))
    return module


def learn(mode, *, script=None, wrap=lambda envs: envs, **overrides):
    """The script's PPO on the tabular toy, from π_ref."""
    script = script or load()
    toy = make_tabular_toy(0)
    settings = {"num_envs": 128, "num_steps": 10, "total_timesteps": 24_000, "learning_rate": 0.03, "vf_coef": 0.5}
    settings |= {"norm_adv": False, "clip_vloss": False}
    args = script.Args(autoreset_mode=mode, **(settings | overrides))
    envs = RecordEpisodeStatistics(toy.env(args.num_envs, reward_timing="step", autoreset_mode=mode))
    return toy, script.train(args, wrap(envs), copy.deepcopy(toy.reference)).model


@uncached
@pytest.mark.parametrize("mode", MODES)
def test_it_reaches_the_optimum(mode, capsys):
    """J ≥ J* − .01 and TV < .02. An agent that does not learn stays at π_ref: J* − .33, TV .44."""
    toy, model = learn(mode)
    assert toy.objective(toy.reference) < toy.best - 0.3
    assert toy.total_variation(toy.reference) > 0.4
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24_000 // 1280
    assert all("score" in line and "kl" in line for line in lines)
    print(f"{mode}: J* − J = {toy.best - toy.objective(model):.4f}, TV = {toy.total_variation(model):.4f}")
    assert toy.objective(model) >= toy.best - 0.01
    assert toy.total_variation(model) < 0.02


@uncached
def test_what_an_agent_gets_whose_advantages_run_across_the_ends():
    source = SCRIPT.read_text()
    assert source.count("goes_on = 1.0 - ended[step]") == 1
    toy, model = learn("SameStep", script=load(source.replace("goes_on = 1.0 - ended[step]", "goes_on = 1.0")))
    assert toy.objective(model) < toy.best - 0.02
    assert toy.total_variation(model) > 0.05


class PoisonedResets(gym.vector.VectorWrapper):
    """A million for every reset step: an agent that reads it learns nonsense."""

    def reset(self, **kwargs):
        self.waiting = np.zeros(self.num_envs, dtype=bool)
        return super().reset(**kwargs)

    def step(self, actions):
        observation, rewards, terminated, truncated, infos = super().step(actions)
        assert (rewards[self.waiting] == 0).all()
        rewards[self.waiting] = 1e6
        self.waiting = terminated
        return observation, rewards, terminated, truncated, infos


@uncached
def test_neither_action_nor_reward_of_a_reset_step_is_read():
    """With a million there, every weight comes out the same, bit for bit; without the mask it does not."""
    short = {"num_envs": 16, "total_timesteps": 640}
    plain, poisoned = (learn("NextStep", wrap=wrap, **short)[1] for wrap in (lambda envs: envs, PoisonedResets))
    assert torch.equal(plain.table.weight, poisoned.table.weight)
    source, mask = SCRIPT.read_text(), "torch.from_numpy(~waiting)"
    assert source.count(mask) == 1
    broken = load(source.replace(mask, "torch.ones(args.num_envs, dtype=torch.bool)"))
    unmasked = learn("NextStep", script=broken, wrap=PoisonedResets, **short)[1]
    assert (unmasked.table.weight - plain.table.weight).abs().max() > 1e-2


def test_a_cached_agent_says_what_an_uncached_one_says():
    script = load()
    env = TokenVectorEnv(4, **word_settings())
    plain, cached = (script.Agent(tiny_gpt2(seed=2), cached=flag) for flag in (False, True))
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for _ in range(20):
            actions = rng.integers(env.vocab_size, size=4)
            asked = script.tensors(observation), torch.from_numpy(actions)
            for one, other in zip(plain.get_action_and_value(*asked), cached.get_action_and_value(*asked), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
            observation, *_ = env.step(actions)
    assert cached.decoder.cached


@pytest.mark.parametrize("mode", MODES)
def test_it_runs_from_the_command_line(mode, monkeypatch, capsys):
    arguments = f"--autoreset-mode {mode} --num-envs 8 --num-steps 16 --total-timesteps 256 --cached"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments.split()])
    load().main()
    assert "update   2/2" in capsys.readouterr().out


def test_a_truncated_episode_is_refused():
    script = load()
    envs = gym.vector.SyncVectorEnv([lambda: TimeLimit(TokenEnv(**word_settings(stop_token_ids=())), 2)] * 2)
    envs.attach = lambda agent: envs.call("attach", None)
    args = script.Args(num_envs=2, num_steps=4, total_timesteps=8)
    with pytest.raises(ValueError, match="expected no truncation"):
        script.train(args, RecordEpisodeStatistics(envs), tiny_gpt2(seed=2))


def test_it_stays_a_single_file_to_read():
    source = SCRIPT.read_text()
    assert len(source.splitlines()) <= 235
    assert "rlhf_gym.agents" not in source.replace("nothing is imported from `rlhf_gym.agents`", "")
