"""The environment as Stable-Baselines3's `VecEnv`."""

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from rlhf_gym.envs import SB3VecEnv, TokenEnv, TokenVectorEnv
from tests.toy import word_policy, word_settings


def adapter(n=3, **overrides):
    return SB3VecEnv(TokenVectorEnv(n, **word_settings(**overrides)))


def test_infos_are_one_dict_a_slot_with_what_monitor_writes():
    env = adapter()
    env.engine.attach(word_policy(env.engine))
    env.seed(0)
    env.reset()
    rng = np.random.default_rng(0)
    returns, lengths, ends = np.zeros(3), np.zeros(3, int), 0
    for _ in range(40):
        observation, rewards, dones, infos = env.step(rng.integers(29, size=3))
        returns += rewards
        lengths += 1
        assert len(infos) == 3
        for slot, (done, info) in enumerate(zip(dones, infos, strict=True)):
            assert info["response_length"] == lengths[slot]
            if not done:
                assert set(info) == {"score", "kl", "ref_log_prob", "response_length", "stopped", "TimeLimit.truncated"}
                assert info["score"] == 0
                assert -0.1 * info["kl"] == pytest.approx(returns[slot], abs=1e-5)
                continue
            ends += 1
            assert info["TimeLimit.truncated"] is False
            assert info["episode"]["r"] == pytest.approx(returns[slot], abs=1e-5)
            assert info["episode"]["l"] == lengths[slot] == info["response_length"]
            assert info["score"] - 0.1 * info["kl"] == pytest.approx(returns[slot], abs=1e-5)
            final = info["terminal_observation"]
            assert final["attention_mask"].sum() > observation["attention_mask"][slot].sum() - 5
            assert env.engine.single_observation_space.contains(final)
            returns[slot] = lengths[slot] = 0
    assert ends > 10


def test_seed_begins_the_prompts_anew():
    env = adapter()
    env.seed(5)
    first = env.reset()["input_ids"]
    env.reset()
    env.seed(5)
    np.testing.assert_array_equal(env.reset()["input_ids"], first)


def test_attributes_and_methods_are_the_engines():
    env = adapter(render_mode="ansi")
    policy = word_policy(env.engine)
    assert env.env_method("attach", policy) == [None] * 3
    assert env.engine._policy is policy
    assert env.get_attr("max_new_tokens") == [8, 8, 8]
    assert env.get_attr("max_new_tokens", indices=[1]) == [8]
    env.set_attr("kl_coef", 0.7)
    assert env.engine.kl_coef == 0.7
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(TimeLimit) == [False] * 3
    with pytest.raises(ValueError, match="cannot call attach for some slots only: expected indices=None"):
        env.env_method("attach", policy, indices=[0])
    env.set_options({"prompts": [[3], [4]]})
    assert env.reset()["attention_mask"].sum(1).tolist() == [1, 1, 0]
    assert env.reset()["attention_mask"].sum(1).min() > 0
    env.close()


def test_what_it_does_not_take():
    with pytest.raises(TypeError, match="expected a TokenVectorEnv, got TokenEnv"):
        SB3VecEnv(TokenEnv(**word_settings()))
    with pytest.raises(ValueError, match="expected autoreset_mode SAME_STEP, as SB3 resets, got NEXT_STEP"):
        adapter(autoreset_mode="NextStep")


def test_evaluate_policy_needs_no_monitor_and_counts_whole_episodes():
    env = adapter()
    policy = word_policy(env.engine)
    env.engine.attach(policy)
    returns, lengths = evaluate_policy(policy, env, n_eval_episodes=10, return_episode_rewards=True)
    assert len(returns) == len(lengths) == 10
    greedy, _ = evaluate_policy(policy, env, n_eval_episodes=10, return_episode_rewards=True, deterministic=True)
    assert sorted(set(np.round(greedy, 4))) == sorted(set(np.round(returns, 4)))  # greedy by default: four prompts
