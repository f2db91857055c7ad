"""What an agent that takes masks may choose from: by hand, per slot, and at no further forward of the reference."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from rlhf_gym.envs import ActionMask, SB3VecEnv, TokenVectorEnv
from tests.toy import STOPS, bandit, make_tabular_toy, word_settings

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
FRESH = np.array([0, 2])
"""Response tokens so far of the two rows."""

BY_HAND = {
    "all": (ActionMask(), [[1, 1, 1, 1], [1, 1, 1, 1]]),
    "top k": (ActionMask(top_k=2), [[1, 1, 0, 0], [0, 0, 1, 1]]),
    "top p": (ActionMask(top_p=0.6), [[1, 1, 0, 0], [0, 0, 1, 1]]),
    "top p, the likeliest alone": (ActionMask(top_p=0.01), [[1, 0, 0, 0], [0, 0, 0, 1]]),
    "forbidden": (ActionMask(forbidden_token_ids=(0, 1)), [[0, 0, 1, 1], [0, 0, 1, 1]]),
    "minimum length": (ActionMask(min_new_tokens=2), [[0, 1, 1, 0], [1, 1, 1, 1]]),
    "top k of what is left": (ActionMask(top_k=1, min_new_tokens=1), [[0, 1, 0, 0], [0, 0, 0, 1]]),
    "top p of what is left": (ActionMask(top_p=0.5, forbidden_token_ids=(0,)), [[0, 1, 0, 0], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_masks_by_hand(name):
    mask, expected = BY_HAND[name]
    allowed = mask.allowed(LOGITS, response_lengths=FRESH, stop_token_ids=(0, 3))
    assert allowed.int().tolist() == expected


def test_the_bandits_masks():
    """π_ref = (.5, .3, .2)."""
    env = bandit(1.0).env(2, action_mask=ActionMask(top_k=2))
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="runs without a cache"):  # a table has no keys and values
        masks = env.action_masks()
    assert masks.tolist() == [[True, True, False]] * 2


def masked_env(n=3, **overrides):
    settings = {"action_mask": ActionMask(top_k=5, min_new_tokens=3, forbidden_token_ids=(7,))}
    return TokenVectorEnv(n, **word_settings(**(settings | overrides)))


def test_each_slot_has_its_own_and_it_is_that_of_the_slot_alone():
    env = masked_env()
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    born = observation["attention_mask"].sum(1)
    for _ in range(30):
        masks = env.action_masks()
        assert masks.shape == (3, 29)
        assert masks.dtype == bool
        for slot in range(3):
            ids = torch.from_numpy(observation["input_ids"][slot, : observation["attention_mask"][slot].sum()])
            logits = env.token_reward.reference.model(ids[None]).logits[0, -1]
            logits[7] = -torch.inf
            if len(ids) - born[slot] < 3:
                logits[list(STOPS)] = -torch.inf
            assert set(np.flatnonzero(masks[slot])) == set(logits.topk(5).indices.tolist())
        actions = [rng.choice(np.flatnonzero(mask)) for mask in masks]
        observation, _, ended, _, infos = env.step(np.array(actions))
        born = np.where(ended, observation["attention_mask"].sum(1), born)
        for slot in np.flatnonzero(ended):
            assert infos["final_info"]["response_length"][slot] >= 3


def test_asking_for_masks_costs_no_further_forward_and_changes_no_reward():
    with_masks, without = masked_env(), masked_env(action_mask=None)
    counts = [[], []]
    for env, count in zip((with_masks, without), counts, strict=True):
        env.token_reward.reference.module.register_forward_hook(lambda *_, count=count: count.append(1))
        env.reset(seed=0)
    rng = np.random.default_rng(1)
    for _ in range(20):
        with_masks.action_masks()
        actions = rng.integers(29, size=3)  # obeying none of them: any token is taken
        one, other = with_masks.step(actions), without.step(actions)
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[0]["input_ids"], other[0]["input_ids"])
    assert len(counts[0]) == len(counts[1])


@pytest.mark.filterwarnings("ignore:.*runs without a cache")  # a table has no keys and values
def test_a_model_without_a_cache_is_run_once_a_step():
    env = make_tabular_toy(0).env(4, reward_timing="step")
    env.reset(seed=0)
    env.step(np.zeros(4, dtype=np.int64))  # the decoder's check of the model, once
    forwards = []
    env.token_reward.reference.module.register_forward_hook(lambda *_: forwards.append(1))
    env.step(np.zeros(4, dtype=np.int64))
    assert len(forwards) == 1


def test_parked_and_waiting_slots_allow_everything():
    env = masked_env(autoreset_mode="NextStep", max_new_tokens=1)
    env.reset(seed=0, options={"prompts": [[3], [4, 5]]})
    assert env.action_masks().sum(1).tolist() == [5, 5, 29]
    env.step(np.array([2, 2, 2]))
    assert env.action_masks().sum(1).tolist() == [29, 29, 29]


def test_a_mask_without_a_reference_may_name_tokens():
    mask = ActionMask(min_new_tokens=1, forbidden_token_ids=[2])
    env = masked_env(reference=None, kl_coef=0, vocab_size=29, action_mask=mask)
    env.reset(seed=0)
    assert set(np.flatnonzero(~env.action_masks()[0])) == {2, *STOPS}


def test_the_ways_sb3_contrib_asks():
    utils = pytest.importorskip("sb3_contrib.common.maskable.utils")
    engine = masked_env()
    with pytest.warns(UserWarning, match="already wrapped"):  # its infos are a monitor's
        env = VecMonitor(SB3VecEnv(engine))
    env.seed(0)
    env.reset()
    assert utils.is_masking_supported(env)
    masks = utils.get_action_masks(env)
    np.testing.assert_array_equal(masks, engine.action_masks())
    assert env.env_method("action_masks", indices=[1])[0].tolist() == masks[1].tolist()

    single = gym.make("rlhf_gym/Token-v0", **word_settings(action_mask=ActionMask(top_k=4)))
    single.reset(seed=0)
    assert utils.is_masking_supported(single)
    assert utils.get_action_masks(single).shape == (29,)
    assert utils.get_action_masks(single).sum() == 4
    wrapped = DummyVecEnv([lambda: single])
    wrapped.reset()
    assert utils.get_action_masks(wrapped).shape == (1, 29)


@pytest.mark.parametrize(
    ("mask", "settings", "message"),
    [
        ({"top_k": -1}, {}, "expected top_k >= 0"),
        ({"top_p": 0.0}, {}, r"expected top_p in \(0, 1\]"),
        ({"forbidden_token_ids": (29,)}, {}, "expected forbidden_token_ids in 0 … 28, got \\[29\\]"),
        ({"forbidden_token_ids": range(29)}, {}, "leaves a token to choose, got 29 of 29 tokens barred"),
        (
            {"forbidden_token_ids": set(range(29)) - set(STOPS), "min_new_tokens": 1},
            {},
            "leaves a token to choose, got 29 of 29",
        ),
        ({"top_k": 3}, {"reference": None, "kl_coef": 0, "vocab_size": 29}, "expected a reference for an ActionMask"),
    ],
)
def test_what_it_does_not_take(mask, settings, message):
    with pytest.raises(ValueError, match=message):
        masked_env(action_mask=ActionMask(**mask), **settings)


def test_without_a_mask_every_token_is_allowed():
    env = masked_env(action_mask=None)
    env.reset(seed=0)
    assert env.action_masks().shape == (env.num_envs, 29) and env.action_masks().all()
