"""The learning rate of an agent that is not told one: that of the table, by what its policy begins with."""

import pytest

from rlhf_gym.agents import DPO, TokenA2C, TokenGRPO, TokenPPO, TokenReinforce, TokenRLOO
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm import Shared
from rlhf_gym.settings.defaults import row
from tests.tiny import tiny_gpt2
from tests.toy import word_settings

WIDE = 512


@pytest.fixture(scope="module")
def wide():
    return tiny_gpt2(seed=1, n_embd=WIDE, n_layer=1, n_head=2)


def environment(model, k=1):
    settings = word_settings(reference=Shared(model), samples_per_prompt=k)
    return TokenVectorEnv(2, reward_timing="deferred", **settings)


@pytest.mark.parametrize(
    ("kind", "name", "k"),
    [
        (TokenPPO, "ppo", 1),
        (TokenA2C, "a2c", 1),
        (TokenReinforce, "reinforce", 1),
        (TokenRLOO, "rloo", 2),
        (TokenGRPO, "grpo", 2),
        (DPO, "dpo", 2),
    ],
)
def test_it_is_the_tables_for_a_pretrained_model_and_for_a_small_one(kind, name, k, wide):
    agent = kind("LMPolicy", environment(wide, k), device="cpu")
    assert agent.learning_rate == row(name, "pretrained").rate(WIDE) < 1e-4
    assert {group["lr"] for group in agent.policy.optimizer.param_groups} == {agent.learning_rate}
    small = kind("LMPolicy", environment(tiny_gpt2(seed=1), k), device="cpu")
    assert small.learning_rate == row(name, "scratch").learning_rate >= 1e-4


def test_random_weights_are_learned_as_from_scratch_and_an_adapter_faster(wide):
    agent = TokenPPO("LMPolicy", environment(wide), policy_kwargs={"model": wide.config}, device="cpu")
    assert agent.learning_rate == row("ppo", "scratch").learning_rate
    pytest.importorskip("peft")
    agent = TokenPPO("LMPolicy", environment(wide), policy_kwargs={"lora": {"r": 2}}, device="cpu")
    assert agent.learning_rate == row("ppo", "lora").rate(WIDE)


def test_one_that_is_given_stays_and_is_kept_in_the_file(wide, tmp_path):
    env = environment(wide)
    agent = TokenPPO("LMPolicy", env, learning_rate=3e-4, device="cpu")
    assert agent.learning_rate == 3e-4
    chosen = TokenPPO("LMPolicy", env, device="cpu")
    chosen.save(tmp_path / "agent.zip")
    loaded = TokenPPO.load(tmp_path / "agent.zip", env=env, device="cpu")
    assert loaded.learning_rate == chosen.learning_rate == row("ppo", "pretrained").rate(WIDE)


def test_a_small_model_moves_by_the_defaults():
    """At 1e-5, a rate for large models, it is at KL 0.00 after as many tokens."""
    agent = TokenPPO("LMPolicy", environment(tiny_gpt2(seed=1)), n_episodes=32, seed=0, device="cpu").learn(1_000)
    assert agent.mean_kl > 0.02
