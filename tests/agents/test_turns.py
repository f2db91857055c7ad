"""Agents in episodes of several turns: what they learn from, what they log, and the optimum they reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule

from rlhf_gym.agents import AttachPolicy, LMActorCriticPolicy, TokenPPO, TokenRLOO
from rlhf_gym.agents.rollout import collect_rollout, evaluated
from rlhf_gym.envs import EnumerableTask, Reply, SB3VecEnv, TokenVectorEnv, Turn, Turns, with_replies
from rlhf_gym.functional import group_normalised_advantages
from rlhf_gym.lm import Shared
from tests import tiny
from tests.toy import make_tabular_toy, word_policy, word_settings


def random_reply(turn: Turn) -> Reply:
    """One or two random words, and a random reward of the turn."""
    return Reply(ids=turn.rng.integers(20, 29, size=turn.number % 2 + 1), reward=float(turn.rng.normal()))


TURNS = Turns(random_reply, max_turns=3, max_turn_tokens=3, max_reply_tokens=2)


def turn_env(num_envs: int = 4, **overrides) -> TokenVectorEnv:
    return TokenVectorEnv(num_envs, **word_settings(**{"turns": TURNS, "kl_coef": 0.3} | overrides))


@pytest.mark.parametrize("timing", ["step", "deferred"])
def test_a_rollout_is_its_episodes_alone(timing):
    """log π, values and rewards of every action, as each row alone gives them, refills and slots notwithstanding."""
    env = turn_env(3, reward_timing=timing)
    policy = word_policy(env)
    torch.nn.init.normal_(policy.value_head.linear.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    env.attach(policy if timing == "step" else None)
    rollout = collect_rollout(policy, env, 9)
    reference = env.token_reward.reference.model
    assert any(np.diff(np.flatnonzero(e.action_mask)).max(initial=1) > 1 for e in rollout.episodes)
    for row, episode in enumerate(rollout.episodes):
        ids = torch.from_numpy(episode.input_ids)[None]
        actions = np.flatnonzero(episode.action_mask)
        with torch.no_grad():
            own = policy.model(ids).logits[0].log_softmax(-1)[actions - 1, ids[0, actions]].numpy()
            ref = reference(ids).logits[0].log_softmax(-1)[actions - 1, ids[0, actions]].numpy()
            values = policy.value_head(policy.parts.module(ids).last_hidden_state)[0, actions - 1].numpy()
        n = len(actions)
        np.testing.assert_allclose(rollout.log_probs[row], own, atol=1e-5)
        np.testing.assert_allclose(rollout.values[row], values, atol=1e-5)
        expected = episode.turn_rewards - 0.3 * (own - ref)
        expected[-1] += rollout.rewards.scores[row]
        np.testing.assert_allclose(rollout.rewards.rewards[row, :n], expected, atol=1e-5)
        assert not rollout.rewards.rewards[row, n:].any()
    said = evaluated(policy, rollout.episodes)
    for one, other in zip(rollout.log_probs, said.log_probs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)  # the first ratio is 1


class Lines(KVWriter):
    """Keeps what was logged last."""

    def write(self, key_values, key_excluded, step=0):
        self.last = dict(key_values)


def test_what_is_logged_counts_actions():
    """Lengths, KL, entropy and the tokens trained on are those of the actions, whatever others say between them."""
    agent = TokenPPO(
        env=turn_env(reward_timing="deferred"),
        policy_kwargs={"model": Shared(tiny.tiny_gpt2(seed=2))},
        n_episodes=16,
        batch_size=16,
        n_epochs=1,
        learning_rate=0.0,
        seed=0,
        device="cpu",
    )
    lines = Lines()
    agent.set_logger(Logger(None, [lines]))
    agent.learn(1)
    episodes = agent.buffer.episodes
    actions = sum(e.response_length for e in episodes)
    assert agent.num_timesteps == agent.buffer.num_tokens == actions < sum(len(e.input_ids) - 3 for e in episodes)
    logged = lines.last
    assert logged["rlhf/response_length"] == pytest.approx(actions / 16)
    said = evaluated(agent.policy, episodes)
    pairs = zip(said.log_probs, agent.buffer.ref_log_probs.numpy(), strict=True)
    kl = np.mean([(own - ref[: len(own)]).sum() for own, ref in pairs])
    assert agent.mean_kl == pytest.approx(kl, abs=1e-4)
    states = torch.zeros(16, max(len(e.input_ids) for e in episodes), dtype=torch.int64)
    entropies = []
    for row, e in enumerate(episodes):
        states[row, : len(e.input_ids)] = torch.from_numpy(e.input_ids)
        with torch.no_grad():
            log_pi = agent.policy.model(states[row : row + 1]).logits[0].log_softmax(-1)
        places = np.flatnonzero(e.action_mask) - 1
        entropies += (-(log_pi.exp() * log_pi).sum(-1))[places].tolist()
    assert logged["rlhf/entropy"] == pytest.approx(np.mean(entropies), abs=1e-4)
    first = agent.generate(["the film"] * 16).generations  # a turn, no longer than the environment lets it be
    assert max(len(turn.response_ids) for turn in first) == agent.engine.max_turn_tokens == 3


class StopAt(BaseCallback):
    """Ends the run in the middle of a rollout, after so many actions."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.actions = actions

    def _on_step(self) -> bool:
        return self.num_timesteps < self.actions


def test_resumed_in_the_middle_is_never_stopped(tmp_path):
    def agent():
        return TokenRLOO(
            env=turn_env(samples_per_prompt=2),
            policy_kwargs={"model": Shared(tiny.tiny_gpt2(seed=2))},
            n_episodes=8,
            batch_size=8,
            seed=0,
            device="cpu",
        )

    whole = agent().learn(300)
    part = agent().learn(300, callback=StopAt(120))
    assert 0 < part.num_timesteps < 300
    part.save(tmp_path / "agent.zip")
    again = TokenRLOO.load(tmp_path / "agent.zip", env=turn_env(samples_per_prompt=2), device="cpu")
    again.learn(300 - again.num_timesteps, reset_num_timesteps=False)
    assert again.num_timesteps == whole.num_timesteps
    for one, other in zip(whole.policy.state_dict().values(), again.policy.state_dict().values(), strict=True):
        assert torch.equal(one, other)


# -- the optimum of two turns --------------------------------------------------------------------------------------


def close(task: EnumerableTask, model) -> None:
    print(f"J* − J = {task.best - task.objective(model):.4f}, TV = {task.total_variation(model):.4f}")
    assert task.total_variation(task.reference) > 0.1
    assert task.objective(model) >= task.best - 0.01
    assert task.total_variation(model) < 0.02


@pytest.mark.parametrize("seed", [10, 11, 12])
def test_the_division_of_grpo_pushes_away_from_the_optimum_where_others_are_random(seed):
    """Over all pairs of episodes the expected advantage of each first action at π* is 0 but for the division."""
    alone = make_tabular_toy(seed)
    for task, scale, fixed in (
        (alone, True, True),
        (with_replies(alone, seed), False, True),
        (with_replies(alone, seed), True, False),
    ):
        p = task.optimum  # (V^T,)
        returns = task.rewards - task.beta * (np.log(p) - task.log_probs(task.reference))  # (V^T,)
        pairs = torch.from_numpy(np.stack(np.broadcast_arrays(returns[:, None], returns), axis=-1).reshape(-1, 2))
        first = group_normalised_advantages(pairs, scale=scale)[:, 0].reshape(len(p), -1).numpy()  # (V^T, V^T)
        push = (p * (first @ p)).reshape(4, -1).sum(axis=1)  # (V,), times the action's probability
        assert (np.abs(push).max() < 1e-6) == fixed
        assert fixed or np.abs(push).max() > 0.01


def test_token_ppo_reaches_the_optimum_of_two_turns():
    """16,000 actions; scripts/compare_agents.py has all agents on 5 seeds."""
    task = with_replies(make_tabular_toy(10), 10)
    agent = TokenPPO(
        env=task.env(128),
        learning_rate=LinearSchedule(0.1, 0.0, 1.0),
        n_episodes=128,
        batch_size=128,
        n_epochs=4,
        seed=0,
        device="cpu",
        policy_kwargs={"use_cache": False},
        gae_lambda=1.0,
        normalize_advantage=False,
        clip_range_vf=None,
        vf_coef=0.5,
    )
    agent.learn(16_000)
    close(task, agent.policy.model)


@pytest.mark.filterwarnings("ignore:.*runs without a cache")
def test_stock_ppo_reaches_the_optimum_of_two_turns():
    """Stable-Baselines3's own PPO, which knows of no turns, on 40,000 actions."""
    task = with_replies(make_tabular_toy(10), 10)
    agent = PPO(
        LMActorCriticPolicy,
        SB3VecEnv(task.env(128, reward_timing="step")),
        learning_rate=LinearSchedule(0.05, 0.0, 1.0),
        n_steps=4,
        batch_size=512,
        n_epochs=4,
        gamma=1.0,
        gae_lambda=1.0,
        normalize_advantage=False,
        max_grad_norm=1.0,
        seed=10,
        device="cpu",
        policy_kwargs={"model": Shared(task.reference), "use_cache": False},
    )
    agent.learn(40_000, callback=AttachPolicy())
    close(task, agent.policy.model)
