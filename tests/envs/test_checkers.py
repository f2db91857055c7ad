"""Every registered environment passes the official checkers, and the vector ones a checker of ours (they have none)."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from rlhf_gym.envs import Reply, TokenEnv, TokenVectorEnv, Turns
from rlhf_gym.lm.loading import Shared
from tests import tiny
from tests.toy import PROMPTS, STOPS, word_settings

IDS = sorted(name for name in gym.registry if name.startswith("rlhf_gym/"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model with its tokenizer and a reward model, saved to folders."""
    root = tmp_path_factory.mktemp("models")
    tiny.tiny_gpt2(seed=1).save_pretrained(root / "reference")
    tiny.tiny_tokenizer().save_pretrained(root / "reference")
    tiny.tiny_reward_model(seed=3).save_pretrained(root / "reward")
    return root


def arguments(name, root):
    """What `gym.make` needs for this id, beside the id."""
    if name != "rlhf_gym/Token-v0":
        return {}
    prompts = ["good film", "the plot was", "we saw a bad scene of it"]
    return {"reference": root / "reference", "reward": root / "reward", "max_new_tokens": 6, "prompts": prompts}


def check_vector_env(env, again):
    """Spaces, dtypes, shapes, masks of the infos, seeds; `again` is a second environment like `env`."""
    n = env.num_envs
    assert isinstance(env.metadata["autoreset_mode"], AutoresetMode)
    assert env.observation_space == batch_space(env.single_observation_space, n)
    assert env.action_space == batch_space(env.single_action_space, n)
    env.action_space.seed(5)
    observation, info = env.reset(seed=7)
    twin, _ = again.reset(seed=7)
    keys = set(info)
    assert_masked(info, n)
    for _ in range(40):
        for key, space in env.observation_space.spaces.items():
            assert observation[key].dtype == space.dtype
            assert observation[key].shape == space.shape
            np.testing.assert_array_equal(observation[key], twin[key])
        assert env.observation_space.contains(observation)
        before = {key: value.copy() for key, value in observation.items()}
        actions = env.action_space.sample()
        result, other = env.step(actions), again.step(actions)
        for key, value in before.items():
            np.testing.assert_array_equal(observation[key], value, err_msg="a step wrote into an old observation")
        observation, rewards, terminated, truncated, info = result
        twin = other[0]
        assert rewards.shape == terminated.shape == truncated.shape == (n,)
        assert rewards.dtype.kind == "f"
        assert terminated.dtype == truncated.dtype == np.bool_
        assert not truncated.any()
        np.testing.assert_array_equal(rewards, other[1])
        np.testing.assert_array_equal(terminated, other[2])
        assert_same_infos(info, other[4])
        assert_masked(info, n)
        assert keys <= set(info)
        if terminated.any() and env.autoreset_mode == AutoresetMode.SAME_STEP:
            np.testing.assert_array_equal(info["_final_info"], terminated)
            assert keys == set(info["final_info"])
        else:
            assert keys == set(info)
    begun = []  # prompts, and what is replied to a first token: a game has one prompt
    for seed in range(1, 8):
        env.reset(seed=seed)
        begun.append(env.step(np.full(n, 3 * env.single_action_space.n // 4))[0]["input_ids"])
    assert any((begun[0] != ids).any() for ids in begun), "the seed reaches neither prompts nor replies"
    env.close()


def assert_masked(info, n):
    """Every key of a vector environment's infos is paired with a mask, as Gymnasium lays them out."""
    for key in [key for key in info if not key.startswith("_")]:
        assert info[f"_{key}"].dtype == np.bool_
        assert info[f"_{key}"].shape == (n,)
        if isinstance(info[key], dict):
            assert_masked(info[key], n)
        else:
            assert info[key].shape[0] == n


def assert_same_infos(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_same_infos(actual[key], value)
        elif key == "final_obs":
            for one, other in zip(actual[key], value, strict=True):
                assert (one is None) == (other is None)
                for part in other or {}:
                    np.testing.assert_array_equal(one[part], other[part])
        elif value.dtype.kind == "f":
            assert actual[key].dtype == value.dtype
            np.testing.assert_allclose(actual[key], value, atol=1e-5)
        else:
            assert actual[key].dtype == value.dtype
            np.testing.assert_array_equal(actual[key], value)


def test_the_ids_are_registered():
    assert IDS == ["rlhf_gym/Chat-v0", "rlhf_gym/Guess-v0", "rlhf_gym/Reviews-v0", "rlhf_gym/Token-v0"]


@pytest.mark.parametrize("render_mode", ["ansi", "rgb_array"])
@pytest.mark.parametrize("name", IDS)
def test_gymnasium_check_env(name, render_mode, folders):
    env = gym.make(name, render_mode=render_mode, **arguments(name, folders))
    check_env(env.unwrapped)


@pytest.mark.parametrize("render_mode", ["ansi", "rgb_array"])
@pytest.mark.parametrize("name", IDS)
def test_sb3_check_env(name, render_mode, folders):
    sb3_check_env(gym.make(name, render_mode=render_mode, **arguments(name, folders)))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("name", IDS)
def test_vector_checker(name, mode, folders):
    envs = [gym.make_vec(name, num_envs=3, autoreset_mode=mode, **arguments(name, folders)) for _ in range(2)]
    assert all(isinstance(env, TokenVectorEnv) for env in envs)
    assert envs[0].spec.id == name
    check_vector_env(*envs)


@pytest.mark.parametrize("name", IDS)
def test_same_seed_same_episode(name, folders):
    env = gym.make(name, **arguments(name, folders))

    def episode(seed):
        observation, _ = env.reset(seed=seed)
        env.action_space.seed(seed)
        trace, over = [observation["input_ids"]], False
        while not over:
            observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
            over = terminated or truncated
            trace += [observation["input_ids"], reward]
        return trace, info

    first, again = episode(11), episode(11)
    for one, other in zip(first[0], again[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert first[1] == again[1]
    begun = set()
    for seed in range(8):
        env.reset(seed=seed)
        begun.add(tuple(env.step(3 * env.action_space.n // 4)[0]["input_ids"]))
    assert len(begun) > 1


def test_gymnasium_can_make_it_from_the_module_name_alone(folders):
    env = gym.make("rlhf_gym:rlhf_gym/Token-v0", **arguments("rlhf_gym/Token-v0", folders))
    assert isinstance(env.unwrapped, TokenEnv)


@pytest.mark.parametrize("turns", [None, Turns(lambda turn: Reply(ids=(20, turn.number), reward=turn.number), 3, 2, 2)])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_step_by_step_as_sync_vector_env(mode, turns):
    """Observations, rewards, ends and infos are those of Gymnasium's own vectorisation of `TokenEnv`."""
    settings = word_settings(prompts=PROMPTS[:1], texts=True, turns=turns)
    ours = TokenVectorEnv(3, autoreset_mode=mode, **settings)
    theirs = SyncVectorEnv([lambda: TokenEnv(**settings)] * 3, autoreset_mode=mode)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    observation, info = ours.reset(seed=0)
    expected, expected_info = theirs.reset(seed=0)
    assert_same_infos(info, expected_info)
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(40):
        for key, value in expected.items():
            np.testing.assert_array_equal(observation[key], value)
            assert observation[key].dtype == value.dtype
        actions = rng.integers(ours.vocab_size, size=3)
        observation, rewards, terminated, truncated, info = ours.step(actions)
        expected, expected_rewards, expected_terminated, expected_truncated, expected_info = theirs.step(actions)
        np.testing.assert_allclose(rewards, expected_rewards, atol=1e-5)
        np.testing.assert_array_equal(terminated, expected_terminated)
        np.testing.assert_array_equal(truncated, expected_truncated)
        assert_same_infos(info, expected_info)
        ends += terminated.sum()
    assert ends > (15 if turns is None else 8)


def test_make_vec_shares_weights_and_gym_make_too():
    reference = tiny.tiny_gpt2(seed=1)
    reward = tiny.tiny_reward_model(seed=3)
    settings = word_settings(reference=Shared(reference), reward=Shared(reward), stop_token_ids=STOPS)
    vector = gym.make_vec("rlhf_gym/Token-v0", num_envs=2, **settings)
    single = gym.make("rlhf_gym/Token-v0", **settings).unwrapped
    sync = gym.make_vec("rlhf_gym/Token-v0", num_envs=2, vectorization_mode="sync", **settings)
    for engine in (vector, single.engine, *(env.unwrapped.engine for env in sync.envs)):
        assert engine.token_reward.reference.model is reference
        assert engine.token_reward.scorer.reward is reward


@pytest.mark.parametrize("make", [lambda **kw: gym.make_vec("rlhf_gym/Token-v0", num_envs=2, **kw), TokenEnv])
def test_a_bare_module_is_refused(make):
    with pytest.raises(TypeError, match=r"expected reference to be .* got the bare module.*Shared\(model\)"):
        make(**word_settings(reference=tiny.tiny_gpt2()))
    with pytest.raises(TypeError, match=r"expected reward to be .*Shared\(RewardModel\), got the bare module"):
        make(**word_settings(reward=tiny.tiny_reward_model()))
    with pytest.raises(TypeError, match="expected reference to be a folder, a name, Shared"):
        make(**word_settings(reference=3))


def test_the_reference_acts_without_dropout_however_it_comes():
    model = tiny.tiny_gpt2(seed=1, resid_pdrop=0.5, embd_pdrop=0.5).train()
    env = TokenVectorEnv(4, **word_settings(reference=Shared(model)))
    plain = TokenVectorEnv(4, **word_settings())
    env.reset(seed=0)
    plain.reset(seed=0)
    for token in (20, 21, 22):
        actions = np.full(4, token)
        np.testing.assert_allclose(env.step(actions)[1], plain.step(actions)[1], atol=1e-6)
