"""Actions as places among the reference's likeliest tokens."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from rlhf_gym.envs import ActionMask, SB3VecEnv, ShortlistActions, ShortlistVectorActions, TokenEnv, TokenVectorEnv
from tests.toy import STOPS, word_policy, word_settings


def vector_env(k=5, n=3, **overrides):
    return ShortlistVectorActions(TokenVectorEnv(n, **word_settings(**overrides)), k)


@torch.no_grad()
def reference_logits(env, observation, row):
    ids = torch.from_numpy(observation["input_ids"][row, : observation["attention_mask"][row].sum()])
    model = env.unwrapped.token_reward.reference.model
    return model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, -1]


def test_places_are_the_likeliest_tokens_in_order_and_rewards_hold_their_exact_log_prob():
    env = vector_env()
    assert env.single_action_space == gym.spaces.Discrete(5)
    assert env.action_space.shape == (3,)
    observation, _ = env.reset(seed=0)
    env.shortlist()  # the decoder's check of the model, once
    forwards = []
    env.unwrapped.token_reward.reference.module.register_forward_hook(lambda *_: forwards.append(1))
    rng = np.random.default_rng(0)
    for _ in range(25):
        forwards.clear()
        shortlist = env.shortlist()
        places = rng.integers(5, size=3)
        before = env.shortlist()[np.arange(3), places], observation
        observation, _, ended, _, _ = env.step(places)
        assert len(forwards) <= 2  # one step; a refilled slot's prompt comes first
        for slot in range(3):
            logits = reference_logits(env, before[1], slot)
            assert shortlist[slot].tolist() == logits.topk(5).indices.tolist()
            expected = -float(logits.log_softmax(-1)[before[0][slot]])  # over the vocabulary, not the shortlist
            assert env.unwrapped.last_step.log_ratios[slot] == pytest.approx(expected, abs=1e-5)
            if not ended[slot]:
                length = before[1]["attention_mask"][slot].sum()
                assert observation["input_ids"][slot, length] == before[0][slot]


def test_one_alone_is_the_vectors():
    vector, single = vector_env(n=1, autoreset_mode="NextStep"), ShortlistActions(TokenEnv(**word_settings()), 5)
    vector.reset(seed=3)
    single.reset(seed=3)
    for place in (0, 4, 2):
        assert single.shortlist().tolist() == vector.shortlist()[0].tolist()
        one, other = vector.step(np.array([place])), single.step(place)
        np.testing.assert_array_equal(one[0]["input_ids"][0], other[0]["input_ids"])
        assert one[1][0] == pytest.approx(other[1])
        if other[2]:
            break


def test_of_the_tokens_a_mask_allows():
    barred = tuple(range(3, 29))
    env = vector_env(k=5, action_mask=ActionMask(forbidden_token_ids=barred, min_new_tokens=2))
    env.reset(seed=0)
    shortlist, own = env.shortlist(), env.action_masks()
    assert own.tolist() == [[True, True, False, False, False]] * 3
    assert all(set(row) == {0, 2} for row in shortlist)  # 1 is a stop token
    assert 1 in STOPS
    np.testing.assert_array_equal(shortlist[:, 2:], shortlist[:, :1].repeat(3, axis=1))


def test_checkers():
    env = gym.make("rlhf_gym/Token-v0", **word_settings(texts=True))
    check_env(ShortlistActions(env, 4).unwrapped, skip_render_check=True)
    sb3_check_env(ShortlistActions(gym.make("rlhf_gym/Token-v0", **word_settings()), 4))
    assert ShortlistActions(env, 4).spec is not None


def test_as_sb3s_vector_environment():
    env = SB3VecEnv(vector_env())
    assert env.action_space == gym.spaces.Discrete(5)
    env.seed(0)
    env.reset()
    assert env.env_method("shortlist")[0].shape == (3, 5)
    assert env.env_method("action_masks")[0].tolist() == [True] * 5
    assert env.get_attr("max_new_tokens") == [8] * 3
    for _ in range(10):
        _, _, dones, infos = env.step(np.array([0, 1, 4]))
        for done, info in zip(dones, infos, strict=True):
            assert done == ("episode" in info)
            assert info["ref_log_prob"] < 0 and "kl" not in info
    with pytest.raises(TypeError, match="expected no policy to attach, got LMActorCriticPolicy"):
        env.env_method("attach", word_policy(env.engine))
    assert env.env_method("attach", None) == [None] * 3


def test_what_they_do_not_take():
    with pytest.raises(ValueError, match="expected k in 1 … 29"):
        vector_env(k=30)
    with pytest.raises(ValueError, match="expected an environment with a reference"):
        vector_env(reference=None, kl_coef=0, vocab_size=29)
    with pytest.raises(TypeError, match="expected a TokenVectorEnv, got TokenEnv"):
        ShortlistVectorActions(TokenEnv(**word_settings()), 3)
    with pytest.raises(TypeError, match="expected a TokenEnv, got CartPoleEnv"):
        ShortlistActions(gym.make("CartPole-v1"), 3)
    env = vector_env()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected actions in 0 … 4 \(places in the shortlist\), got 5"):
        env.step(np.array([0, 5, 1]))
    with pytest.raises(ValueError, match="expected integer actions"):
        env.step(np.array([0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"expected actions of shape \(3,\), got \(2,\)"):
        env.step(np.array([0, 1]))
