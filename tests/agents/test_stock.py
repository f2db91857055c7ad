"""Stable-Baselines3's own agents learn on token environments, with the language model as their policy."""

import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

from rlhf_gym.agents import AttachPolicy, LMActorCriticPolicy
from rlhf_gym.agents.observations import pack_prefixes, read
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.lm import Shared, load_causal_lm
from rlhf_gym.tasks import reviews_task
from tests import tiny
from tests.toy import make_tabular_toy, word_settings


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
        assert info["score"] - 0.1 * info["kl"] == pytest.approx(info["episode"]["r"], abs=1e-5)
        assert info["response_length"] == info["episode"]["l"]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (PPO, {"n_steps": 8, "batch_size": 8, "n_epochs": 1}),
        (A2C, {"n_steps": 8}),
        (DQN, {"buffer_size": 50, "learning_starts": 4}),
    ],
)
@pytest.mark.parametrize("name", ["rlhf_gym/Reviews-v0", "rlhf_gym:rlhf_gym/Reviews-v0"])
def test_stock_agents_take_an_id(kind, settings, name):
    agent = kind("MultiInputPolicy", name, seed=0, device="cpu", **settings).learn(8)
    assert agent.num_timesteps == 8
    assert agent.get_env().render().shape == (480, 800, 3), "SB3 asks for images, as for a video"


def test_make_vec_env_takes_an_id(folder):
    env = make_vec_env("rlhf_gym/Token-v0", n_envs=3, seed=0, env_kwargs=word_settings())
    env.reset()
    _, _, dones, infos = env.step(np.array([20, 21, 5]))
    assert dones.tolist() == [False, False, True]
    assert [info["response_length"] for info in infos] == [1, 1, 1]
    assert [image.shape for image in env.get_images()] == [(480, 800, 3)] * 3
    settings = {"n_steps": 8, "batch_size": 24, "gamma": 1.0, "device": "cpu"}
    agent = PPO(LMActorCriticPolicy, env, policy_kwargs={"model": folder}, **settings)
    agent.learn(24, callback=AttachPolicy())
    native = SB3VecEnv(TokenVectorEnv(2, render_mode="rgb_array", **word_settings()))
    native.reset()
    assert native.render().shape == (960, 800, 3), "tiled"


@pytest.mark.slow  # two processes that each import torch
def test_processes_take_the_id_with_its_module():
    """A new process has not imported rlhf_gym: "module:id" makes Gymnasium do it."""
    env = make_vec_env("rlhf_gym:rlhf_gym/Reviews-v0", n_envs=2, vec_env_cls=SubprocVecEnv)
    try:
        assert env.reset()["input_ids"].shape[0] == 2
        _, rewards, _, infos = env.step(np.array([3, 4]))
        assert (rewards < 0).all() and [info["response_length"] for info in infos] == [1, 1]
    finally:
        env.close()


class Says:
    """A policy that answers what it is told to."""

    def __init__(self, answer):
        self.answer = answer

    def action_log_prob(self, observation, action):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            np.full((3, 1), -1.0),
            r"expected log π\(a\|s\) of shape \(3,\) from Says.action_log_prob, got shape \(3, 1\)",
        ),
        (torch.tensor(-1.0), r"of shape \(3,\) .*got shape \(\)"),
        (np.array([-1, -2, -3]), "as floating-point numbers .*got int64"),
        (np.array([-1.0, np.nan, -1.0]), r"finite and <= 0, got nan at 1 \(1 of 3 are so\)"),
        (torch.tensor([-1.0, -1.0, -torch.inf]), "finite and <= 0, got -inf at 2"),
        (np.array([0.3, 0.2, 0.5]), r"finite and <= 0, got 0.3 at 0 \(3 of 3 are so\)"),  # probabilities
    ],
)
def test_what_an_attached_policy_answers_is_checked(answer, message):
    env = TokenVectorEnv(3, **word_settings())
    env.attach(Says(answer))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(np.array([20, 21, 22]))


def test_answers_for_slots_that_do_not_act_are_not_read():
    env = TokenVectorEnv(3, **word_settings())
    env.attach(Says(torch.tensor([-1.0, np.nan, 7.0], dtype=torch.bfloat16)))
    env.reset(seed=0, options={"prompts": [[3]]})
    *_, infos = env.step(np.array([20, 0, 0]))
    assert infos["kl"].tolist()[1:] == [0, 0] and infos["_kl"].tolist() == [True, False, False]


def test_log_probs_given_for_deferred_rewards_are_checked():
    env = TokenVectorEnv(1, reward_timing="deferred", **word_settings())
    env.reset(seed=0, options={"prompts": [[3]]})
    env.step(np.array([5]))
    with pytest.raises(ValueError, match="from log_probs of episode 0, finite and <= 0, got nan at 0"):
        env.score_episodes(env.pending_episodes, [np.array([np.nan], dtype=np.float32)])


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


def wrapped(name):
    """Stock wrappers around the environment, and how to its engine."""
    if name == "VecNormalize":
        inner = vector_env()
        return VecNormalize(inner, norm_obs=False, norm_reward=True, gamma=1.0), inner.engine
    if name == "VecNormalize(VecMonitor)":
        inner = vector_env()
        with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):  # its infos are a monitor's
            monitored = VecMonitor(inner)
        return VecNormalize(monitored, norm_obs=False, norm_reward=False), inner.engine
    if name == "Monitor":
        env = Monitor(single_env())
        return env, env.unwrapped.engine
    envs = [single_env() for _ in range(2)]
    return VecMonitor(DummyVecEnv([lambda env=env: env for env in envs])), envs[1].unwrapped.engine


@pytest.mark.parametrize("name", ["VecNormalize", "VecNormalize(VecMonitor)", "Monitor", "VecMonitor(DummyVecEnv)"])
def test_attaching_reaches_through_wrappers_and_the_ratio_is_one(name, folder):
    env, engine = wrapped(name)
    settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "gamma": 1.0, "seed": 0, "device": "cpu"}
    model = PPO(LMActorCriticPolicy, env, policy_kwargs={"model": folder}, **settings)
    ends = Ends()
    model.learn(16 * model.n_envs, callback=[AttachPolicy(), ends])
    assert engine._policy is model.policy
    assert ends.infos
    assert all("kl" in info for info in ends.infos)
    if name != "VecNormalize":
        for info in ends.infos:
            assert info["score"] - 0.1 * info["kl"] == pytest.approx(info["episode"]["r"], abs=1e-5)


def test_what_would_go_wrong_in_silence_does_not(folder):
    def agent(env, **settings):
        return PPO(LMActorCriticPolicy, env, policy_kwargs={"model": folder}, n_steps=8, device="cpu", **settings)

    with pytest.warns(UserWarning, match=r"gamma=0.99 discounts the score .* Expected gamma=1.0"):
        agent(vector_env()).learn(8, callback=AttachPolicy())
    normalised = agent(VecNormalize(vector_env(), norm_obs=True), gamma=1.0)
    with pytest.raises(ValueError, match="got fractions: with VecNormalize say norm_obs=False"):
        normalised.learn(64, callback=AttachPolicy())
    with pytest.raises(TypeError, match=r"expected a policy with action_log_prob\(observation, action\)"):
        vector_env().env_method("attach", torch.nn.Linear(1, 1))


def cheap_env():
    return gym.make("CartPole-v1")


def test_environments_in_other_processes_are_refused(folder):
    env = SubprocVecEnv([cheap_env], start_method="fork")
    callback = AttachPolicy()
    callback.model = PPO(LMActorCriticPolicy, vector_env(), policy_kwargs={"model": folder}, n_steps=8, device="cpu")
    callback.model.env = env
    with pytest.raises(TypeError, match="got a SubprocVecEnv: it would ask a copy of the policy that never learns"):
        callback._on_training_start()
    env.close()


def test_evaluation_in_between_leaves_the_rollout_alone(folder, tmp_path):
    """Every other step, with three slots where training has eight: the decoder holds other rows each time."""
    settings = {"n_steps": 24, "batch_size": 64, "gamma": 1.0, "seed": 0, "device": "cpu"}
    rollouts = []
    for evaluate in (False, True):
        torch.manual_seed(0)
        model = PPO(LMActorCriticPolicy, vector_env(), policy_kwargs={"model": folder}, **settings)
        other = SB3VecEnv(TokenVectorEnv(3, **word_settings()))
        other.env_method("attach", model.policy)
        callbacks = [AttachPolicy()]
        if evaluate:
            callbacks.append(EvalCallback(other, n_eval_episodes=3, eval_freq=2, verbose=0))
        _, callback = model._setup_learn(400, callbacks)
        callback.on_training_start({}, {})
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 24)
        rollouts.append(model.rollout_buffer)
    assert callbacks[1].evaluations_timesteps == [] and callbacks[1].n_calls == 24
    np.testing.assert_array_equal(rollouts[0].actions, rollouts[1].actions)
    np.testing.assert_allclose(rollouts[0].log_probs, rollouts[1].log_probs, atol=1e-5)
    np.testing.assert_allclose(rollouts[0].rewards, rollouts[1].rewards, atol=1e-5)
    model.policy.set_training_mode(True)
    for data in model.rollout_buffer.get(64):
        _, log_probs, _ = model.policy.evaluate_actions(data.observations, data.actions.flatten())
        torch.testing.assert_close(log_probs, data.old_log_prob, atol=1e-4, rtol=0)


def test_checkpoints_load_and_predict_the_same(folder, tmp_path):
    kind, settings = AGENTS["a2c"]
    settings = settings | {"learning_rate": 0.0}  # SB3 learns once more after the step of the checkpoint
    model = kind(LMActorCriticPolicy, vector_env(), policy_kwargs={"model": folder}, seed=0, device="cpu", **settings)
    model.learn(128, callback=[AttachPolicy(), CheckpointCallback(16, str(tmp_path), name_prefix="a2c")])
    assert {path.name for path in tmp_path.glob("*.zip")} == {"a2c_128_steps.zip"}
    loaded = kind.load(tmp_path / "a2c_128_steps.zip", env=vector_env(), device="cpu")
    observation = vector_env().reset()
    (one, _), (other, _) = (m.predict(observation, deterministic=True) for m in (model, loaded))
    np.testing.assert_array_equal(one, other)
    returns, lengths = evaluate_policy(loaded, vector_env(), n_eval_episodes=8, return_episode_rewards=True)
    assert len(returns) == len(lengths) == 8
    loaded.learn(64, callback=AttachPolicy(), reset_num_timesteps=False)
    assert loaded.num_timesteps == 192


@pytest.mark.filterwarnings("ignore:.*runs without a cache")  # a table has no keys and values
def test_stock_ppo_reaches_the_toys_optimum():
    """J* − J ≤ .01 at the final policy.

    From π_ref, .335 away. An agent whose policy is not attached is rewarded as if it were deterministic and goes to the
    mode of π*, .83 away; an agent that sees the score alone goes to the best string, further still.
    """
    toy = make_tabular_toy(0)
    mode = (
        toy.rewards + toy.beta * toy.log_probs(toy.reference)
    ).max()  # J of a deterministic policy, the best of them
    start, broken = toy.best - toy.objective(toy.reference), toy.best - mode
    model = PPO(
        LMActorCriticPolicy,
        SB3VecEnv(toy.env(64, reward_timing="step")),
        policy_kwargs={"model": Shared(toy.reference), "use_cache": False},
        learning_rate=lambda left: 0.01 * left,
        n_steps=12,
        batch_size=192,
        n_epochs=4,
        gamma=1.0,
        normalize_advantage=False,
        seed=0,
        device="cpu",
    )
    model.learn(24_576, callback=AttachPolicy())
    gap = toy.best - toy.objective(model.policy.model)
    print(
        f"J* − J = {gap:.4f} after {model.num_timesteps} tokens; π_ref {start:.3f}, the best single string {broken:.3f}"
    )
    assert start > 0.3
    assert broken > 0.3
    assert gap <= 0.01


@pytest.mark.parametrize("name", AGENTS)
def test_the_reviews_from_end_to_end(name):
    kind, _ = AGENTS[name]
    env = SB3VecEnv(gym.make_vec("rlhf_gym/Reviews-v0", num_envs=16))
    settings = {"n_steps": 16, "gamma": 1.0, "seed": 0, "device": "cpu"}
    settings |= {"batch_size": 256, "n_epochs": 1} if kind is PPO else {}
    model = kind(LMActorCriticPolicy, env, policy_kwargs={"model": str(reviews_task().sft)}, **settings)
    ends = Ends()
    model.learn(512, callback=[AttachPolicy(), ends])
    assert len(ends.infos) > 10
    before_any_update = [info["kl"] for info in ends.infos][:2]
    assert all(abs(kl) < 1e-3 for kl in before_any_update)
    assert model.policy.optimizer.state


def test_a_large_minibatch_shares_prefixes():
    """Stock PPO shuffles single steps; the policy runs each episode of a minibatch once, however many steps it gives.

    With `-s` this prints the table of docs/bring_your_own_agent.md: one epoch over one rollout, by minibatch size.
    """
    slots, n_steps = 32, 48
    env = SB3VecEnv(gym.make_vec("rlhf_gym/Reviews-v0", num_envs=slots))
    settings = {"n_steps": n_steps, "batch_size": slots * n_steps, "n_epochs": 1, "gamma": 1.0, "learning_rate": 1e-5}
    model = {"model": str(reviews_task().sft)}
    agent = PPO(LMActorCriticPolicy, env, policy_kwargs=model, seed=0, device="cpu", **settings)
    _, callback = agent._setup_learn(slots * n_steps, AttachPolicy())
    callback.on_training_start({}, {})
    agent.collect_rollouts(env, callback, agent.rollout_buffer, n_steps)
    saved = []
    for agent.batch_size in (32, 96, 384, 768, slots * n_steps):
        np.random.seed(0)  # noqa: NPY002 (SB3's buffer shuffles by it)
        rows = [read(data.observations) for data in agent.rollout_buffer.get(agent.batch_size)]
        unpacked = sum(len(ids) * int(lengths.max()) for ids, lengths in rows)
        packed = sum(len(pack_prefixes(ids, lengths).leaders) * int(lengths.max()) for ids, lengths in rows)
        started = time.perf_counter()
        agent.train()
        seconds = time.perf_counter() - started
        saved.append(unpacked / packed)
        print(f"| {agent.batch_size} | {len(rows)} | {unpacked:,} | {packed:,} | {saved[-1]:.1f}× | {seconds:.1f} |")
    assert saved == sorted(saved) and saved[0] > 1 and saved[-1] > 8


class EveryPrefix(BaseFeaturesExtractor):
    """What one writes without thinking of caches: the model over the whole padded observation, for each transition."""

    def __init__(self, observation_space, model):
        super().__init__(observation_space, features_dim=model.config.hidden_size)
        self.model = model.get_decoder()

    def forward(self, observations):
        mask = observations["attention_mask"].long()  # (B, L)
        ids = observations["input_ids"].long()  # (B, L)
        hidden = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B, L, H)
        return hidden[torch.arange(len(ids)), mask.sum(dim=1) - 1]  # (B, H)


def test_our_policy_makes_stock_ppo_several_times_faster():
    """One iteration, after one of ours by which the decoder records its steps; with `-s` the tokens a second."""
    slots, n_steps = 16, 48
    settings = {"n_steps": n_steps, "batch_size": slots * n_steps // 4, "n_epochs": 4, "gamma": 1.0, "device": "cpu"}
    naive = {
        "features_extractor_class": EveryPrefix,
        "features_extractor_kwargs": {"model": load_causal_lm(reviews_task().sft)},
        "net_arch": [],
    }
    rates = []
    for policy, kwargs, turns in (
        (LMActorCriticPolicy, {"model": str(reviews_task().sft)}, 2),
        ("MultiInputPolicy", naive, 1),
    ):
        env = SB3VecEnv(gym.make_vec("rlhf_gym/Reviews-v0", num_envs=slots))
        agent = PPO(policy, env, policy_kwargs=kwargs, seed=0, **settings)
        for _ in range(turns):
            started = time.process_time()
            agent.learn(slots * n_steps, callback=AttachPolicy() if turns == 2 else None)
        rates.append(slots * n_steps / (time.process_time() - started))
    print(f"tokens a second of CPU time: {rates[0]:.0f} with our policy, {rates[1]:.0f} with a naive one")
    assert rates[0] > 2 * rates[1]
