"""Stable-Baselines3's own agents learn on token environments, with the language model as their policy."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback

from rlhf_gym.agents import AttachPolicy, LMActorCriticPolicy
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from tests import tiny
from tests.toy import word_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_gpt2(seed=2).save_pretrained(path)
    return str(path)


def vector_env(**overrides):
    return SB3VecEnv(TokenVectorEnv(8, **word_settings(**overrides)))


def single_env():
    return gym.make("rlhf_gym/Token-v0", **word_settings())


AGENTS = {
    "ppo": (PPO, {"n_steps": 32, "batch_size": 64, "n_epochs": 2, "gamma": 1.0}),
    "a2c": (A2C, {"n_steps": 8, "gamma": 1.0}),
}


class Ends(BaseCallback):
    """Keeps the infos of ended episodes, and checks that each carries a whole KL."""

    def __init__(self):
        super().__init__()
        self.infos = []

    def _on_step(self):
        self.infos += [info for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True) if done]
        return True


def attached(env):
    """The policy the environment itself asks."""
    return env.engine._policy if isinstance(env, SB3VecEnv) else env.envs[0].unwrapped.engine._policy


@pytest.mark.parametrize("make_env", [vector_env, single_env])
@pytest.mark.parametrize("name", AGENTS)
def test_stock_agents_learn(name, make_env, folder):
    kind, settings = AGENTS[name]
    env = make_env()
    if make_env is single_env:
        settings = settings | {"n_steps": 64}
    model = kind(LMActorCriticPolicy, env, policy_kwargs={"model": folder}, seed=0, device="cpu", **settings)
    before = [parameter.clone() for parameter in model.policy.model.parameters()]
    ends = Ends()
    model.learn(400, callback=[AttachPolicy(), ends])
    assert attached(model.get_env()) is model.policy
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.model.parameters(), strict=True))
    assert len(ends.infos) > 20
    for info in ends.infos:
        assert info["score"] - 0.1 * info["kl"] == pytest.approx(info["episode"]["r"], abs=1e-4)
        assert info["response_length"] == info["episode"]["l"]


def test_attaching_by_env_method_reaches_through_sb3s_wrappers(folder):
    model = PPO(
        LMActorCriticPolicy, single_env(), policy_kwargs={"model": folder}, device="cpu", n_steps=16, batch_size=16
    )
    model.get_env().env_method("attach", model.policy)
    assert attached(model.get_env()) is model.policy


def test_the_ratio_is_one_before_the_first_update(folder):
    """The buffer's log-probabilities, made step by step, are those of the packed evaluation."""
    kind, settings = AGENTS["ppo"]
    model = kind(LMActorCriticPolicy, vector_env(), policy_kwargs={"model": folder}, seed=0, device="cpu", **settings)
    _, callback = model._setup_learn(400, AttachPolicy())
    callback.on_training_start({}, {})
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 32)
    model.policy.set_training_mode(True)
    for data in model.rollout_buffer.get(64):
        values, log_probs, _ = model.policy.evaluate_actions(data.observations, data.actions.flatten())
        torch.testing.assert_close(log_probs, data.old_log_prob, atol=1e-4, rtol=0)
        torch.testing.assert_close(values.flatten(), data.old_values, atol=1e-4, rtol=0)


def test_save_load_predict_and_evaluation(folder, tmp_path):
    kind, settings = AGENTS["ppo"]
    model = kind(LMActorCriticPolicy, vector_env(), policy_kwargs={"model": folder}, seed=0, device="cpu", **settings)
    callback = EvalCallback(vector_env(), n_eval_episodes=8, eval_freq=16, log_path=str(tmp_path), verbose=0)
    model.learn(256, callback=[AttachPolicy(), callback])
    assert np.load(tmp_path / "evaluations.npz")["results"].shape[1] == 8
    model.save(tmp_path / "ppo")
    loaded = kind.load(tmp_path / "ppo", device="cpu")
    observation = vector_env().reset()
    np.testing.assert_array_equal(*(m.predict(observation, deterministic=True)[0] for m in (model, loaded)))
    for one, other in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_trpo_with_its_line_search(folder):
    contrib = pytest.importorskip("sb3_contrib")
    model = contrib.TRPO(
        LMActorCriticPolicy,
        vector_env(),
        policy_kwargs={"model": folder, "critic": "separate"},
        n_steps=32,
        batch_size=64,
        cg_max_steps=4,
        n_critic_updates=2,
        gamma=1.0,
        seed=0,
        device="cpu",
    )
    model.policy.model.set_attn_implementation("eager")  # TRPO differentiates twice; the fused kernels only once
    before = [parameter.clone() for parameter in model.policy.model.parameters()]
    model.learn(256, callback=AttachPolicy())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.model.parameters(), strict=True))
    model.policy.set_training_mode(False)
    observation = model.env.reset()
    actions, _, log_probs = model.policy.act(observation)
    with torch.no_grad():
        for slot, n in enumerate(observation["attention_mask"].sum(1)):
            row = torch.from_numpy(observation["input_ids"][slot, :n])[None]
            expected = model.policy.model(row).logits[0, -1].log_softmax(-1)[actions[slot]]
            torch.testing.assert_close(log_probs[slot], expected, atol=1e-5, rtol=1e-5)
