"""Value-based agents, unchanged: a shortlist of actions, and a frozen language model's features."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN

from rlhf_gym.agents import AttachPolicy, LMFeaturesExtractor
from rlhf_gym.envs import SB3VecEnv, ShortlistActions, ShortlistVectorActions, TokenVectorEnv
from rlhf_gym.lm import Shared
from rlhf_gym.tasks import reviews_task
from tests import tiny
from tests.toy import make_toy, word_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_gpt2(seed=2).save_pretrained(path)
    return str(path)


def features_of(model, **kwargs):
    return {"features_extractor_class": LMFeaturesExtractor, "features_extractor_kwargs": {"model": model}} | kwargs


def short_env(n=4, k=5, **overrides):
    return SB3VecEnv(ShortlistVectorActions(TokenVectorEnv(n, **word_settings(**overrides)), k))


def tensors(observation):
    """As SB3 hands them to an extractor: as floats."""
    return {key: torch.from_numpy(value).float() for key, value in observation.items()}


@torch.no_grad()
def last_hidden(model, observation):
    rows = []
    for ids, mask in zip(observation["input_ids"], observation["attention_mask"], strict=True):
        row = torch.from_numpy(ids[: mask.sum()])[None]
        rows.append(model.transformer(row, attention_mask=torch.ones_like(row)).last_hidden_state[0, -1])
    return torch.stack(rows)


def test_features_are_the_last_hidden_state_at_the_last_real_token():
    """Stepped, after refills, for a minibatch of other rows in between, and padded with anything."""
    model = tiny.tiny_gpt2(seed=2)
    env = TokenVectorEnv(4, **word_settings())
    extractor = LMFeaturesExtractor(env.single_observation_space, model=Shared(model)).eval()
    assert extractor.features_dim == 32
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    seen = []
    for step in range(20):
        seen.append(observation)
        torch.testing.assert_close(extractor(tensors(observation)), last_hidden(model, observation), atol=1e-5, rtol=0)
        if step % 5 == 4:
            rows = rng.integers(4 * len(seen), size=16)
            batch = {key: np.stack([seen[row // 4][key][row % 4] for row in rows]) for key in observation}
            batch["input_ids"] = np.where(batch["attention_mask"] == 1, batch["input_ids"], 17)
            expected = last_hidden(model, batch)
            for mode in (True, False):
                torch.testing.assert_close(extractor.train(mode)(tensors(batch)), expected, atol=1e-5, rtol=0)
        observation, *_ = env.step(rng.integers(29, size=4))


def test_acting_feeds_one_token_a_row_and_a_minibatch_each_prefix_once():
    model = tiny.tiny_gpt2(seed=2)
    env = TokenVectorEnv(4, **word_settings(stop_token_ids=(), max_new_tokens=20))
    extractor = LMFeaturesExtractor(env.single_observation_space, model=Shared(model)).eval()
    observation, _ = env.reset(seed=0)
    seen = []
    for _ in range(6):
        seen.append(observation)
        extractor(tensors(observation))
        observation, *_ = env.step(np.full(4, 2))
    fed = []
    model.transformer.register_forward_hook(lambda _, args, kwargs, out: fed.append(out[0].shape[:2]), with_kwargs=True)
    extractor(tensors(observation))
    assert fed == [(4, 1)]
    fed.clear()
    batch = {key: np.concatenate([states[key] for states in seen]) for key in observation}  # 24 rows, 4 episodes
    extractor.train()(tensors(batch))
    assert fed == [(4, int(batch["attention_mask"].sum(1).max()))]


def test_the_model_is_frozen_shared_and_not_averaged_into_the_target(folder):
    env = short_env()
    agent = DQN("MultiInputPolicy", env, policy_kwargs=features_of(folder), tau=0.5, gamma=1.0, device="cpu")
    extractors = [agent.q_net.features_extractor, agent.q_net_target.features_extractor]
    one, other = (extractor._trunk.module for extractor in extractors)
    assert one is other
    assert not list(extractors[0].parameters())
    before = [parameter.clone() for parameter in one.parameters()]
    agent.learning_starts = 10
    agent.target_update_interval = 10
    agent.learn(120)
    assert all(torch.equal(a, b) for a, b in zip(before, one.parameters(), strict=True))


@pytest.mark.parametrize("vectorised", [True, False])
def test_dqn_learns_saves_and_loads(folder, vectorised, tmp_path):
    env = short_env() if vectorised else ShortlistActions(gym.make("rlhf_gym/Token-v0", **word_settings()), 5)
    agent = DQN(
        "MultiInputPolicy",
        env,
        policy_kwargs=features_of(folder, net_arch=[16]),
        learning_starts=32,
        buffer_size=500,
        gamma=1.0,
        seed=0,
        device="cpu",
    )
    before = agent.q_net.q_net[0].weight.clone()
    agent.learn(120)
    assert not torch.equal(agent.q_net.q_net[0].weight, before)
    agent.save(tmp_path / "dqn")
    assert (tmp_path / "dqn.zip").stat().st_size < 100_000  # the language model is not in it
    loaded = DQN.load(tmp_path / "dqn", device="cpu")
    observation = short_env().reset()
    one, other = (model.predict(observation, deterministic=True)[0] for model in (agent, loaded))
    np.testing.assert_array_equal(one, other)


def test_a_value_based_agent_is_not_attached(folder):
    agent = DQN("MultiInputPolicy", short_env(), policy_kwargs=features_of(folder), gamma=1.0, device="cpu")
    with pytest.raises(
        TypeError, match="expected a policy with action_log_prob, such as LMActorCriticPolicy, got Multi"
    ):
        agent.learn(8, callback=AttachPolicy())


def test_dqn_finds_the_mode_of_the_optimal_policy():
    """With log π = 0 the return of a string is r + β·log π_ref: the best one is argmax π_ref·e^{r/β}, the mode of π*.

    Here that is string 9 of 64. Who read the score alone would answer 26; who kept to π_ref's likeliest, 63 or what
    greedy decoding of it gives.
    """
    toy = make_toy(0)
    best = int(toy.optimum.argmax())
    assert best == 9
    assert int(toy.rewards.argmax()) == 26
    assert int(toy.log_probs(toy.reference).argmax()) == 63
    agent = DQN(
        "MultiInputPolicy",
        SB3VecEnv(ShortlistVectorActions(toy.env(8, reward_timing="step"), 4)),
        policy_kwargs=features_of(Shared(toy.reference), net_arch=[64]),
        learning_rate=3e-3,
        buffer_size=4_000,
        learning_starts=200,
        batch_size=64,
        gamma=1.0,
        train_freq=1,
        target_update_interval=80,
        exploration_fraction=0.6,
        exploration_final_eps=0.1,
        seed=0,
        device="cpu",
    )
    agent.learn(3_200)
    env = ShortlistVectorActions(toy.env(1, reward_timing="step"), 4)
    observation, _ = env.reset()
    tokens, total = [], 0.0
    for _ in range(3):
        place, _ = agent.predict(observation, deterministic=True)
        tokens.append(int(env.shortlist()[0, place[0]]))
        observation, reward, *_ = env.step(place)
        total += float(reward[0])
    assert tokens == toy.strings[best].tolist()
    assert total == pytest.approx(toy.rewards[best] + toy.beta * toy.log_probs(toy.reference)[best], abs=1e-4)


def test_qrdqn_takes_the_same(folder):
    contrib = pytest.importorskip("sb3_contrib")
    agent = contrib.QRDQN(
        "MultiInputPolicy",
        short_env(),
        policy_kwargs=features_of(folder, net_arch=[16], n_quantiles=8),
        learning_starts=16,
        buffer_size=200,
        gamma=1.0,
        device="cpu",
    )
    agent.learn(64)
    assert agent._n_updates > 0


def test_dqn_on_the_reviews():
    sft = str(reviews_task().sft)
    env = SB3VecEnv(ShortlistVectorActions(gym.make_vec("rlhf_gym/Reviews-v0", num_envs=4), 8))
    agent = DQN(
        "MultiInputPolicy",
        env,
        policy_kwargs=features_of(sft),
        learning_starts=64,
        buffer_size=1_000,
        train_freq=4,
        gamma=1.0,
        device="cpu",
    )
    agent.learn(256)
    assert agent._n_updates > 5
    assert len(agent.ep_info_buffer) > 2
