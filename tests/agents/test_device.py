"""One device for agent and environment: the models that an environment has loaded follow the policy."""

import warnings

import pytest
import torch

from rlhf_gym.agents import TokenPPO
from rlhf_gym.agents.saving import device_rng_state, set_device_rng_state
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm import Shared
from tests import tiny
from tests.toy import word_settings

META = "meta"
"""A device that every machine has: its tensors have a shape and hold nothing, so that moving there can be seen."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny.tiny_gpt2(seed=1).save_pretrained(root / "reference")
    tiny.tiny_reward_model(seed=3).save_pretrained(root / "reward")
    return {"reference": root / "reference", "reward": root / "reward"}


def devices(env):
    reward = env.token_reward
    return [reward.reference.model.device.type, reward.scorer.reward.device.type]


def environment(**overrides):
    return TokenVectorEnv(2, **(word_settings(reward_timing="deferred") | overrides))


def test_what_was_loaded_without_a_device_follows_the_agent(folders):
    env = environment(**folders)
    assert devices(env) == ["cpu", "cpu"]
    agent = TokenPPO("LMPolicy", env, n_episodes=4, batch_size=4, device=META)
    assert devices(env) == [META, META] and agent.policy.device.type == META


def test_an_agent_on_the_same_device_moves_and_says_nothing(folders):
    env = environment(**folders, device="cpu")
    agent = TokenPPO("LMPolicy", env, n_episodes=4, batch_size=4, device="cpu")
    agent.learn(8)
    assert devices(env) == ["cpu", "cpu"]


def test_what_was_placed_by_hand_stays_and_a_warning_says_so(folders):
    env = environment(**folders, device="cpu")
    with pytest.warns(UserWarning, match="the policy is on meta") as said:
        env.follow(META)
    assert [str(w.message).partition(":")[0] for w in said] == [
        "the policy is on meta and π_ref on cpu",
        "the policy is on meta and r_φ on cpu",
    ]
    assert devices(env) == ["cpu", "cpu"]


def test_shared_models_and_functions_stay():
    model = tiny.tiny_gpt2(seed=1)
    env = environment(reference=Shared(model))
    with pytest.warns(UserWarning, match="the policy is on meta and π_ref on cpu: what they exchange is copied"):
        env.follow(META)
    assert model.device.type == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.follow("cpu")


def test_another_environment_follows_too(folders):
    first, second = environment(**folders), environment(**folders)
    agent = TokenPPO("LMPolicy", first, n_episodes=4, batch_size=4, device=META)
    agent.set_env(second)
    assert devices(second) == [META, META]


def test_a_device_without_random_numbers_of_its_own_has_no_state():
    for name in ("cpu", META):
        assert device_rng_state(torch.device(name)) is None
        set_device_rng_state(torch.device(name), [1, 2, 3])
