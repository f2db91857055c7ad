"""Gymnasium's own wrappers around our environments: what works, what does not, and that the documentation says so."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as vector_wrappers

from rlhf_gym.agents import TokenPPO
from rlhf_gym.envs import TokenEnv, TokenVectorEnv
from tests.toy import PROMPTS, word_settings

BETA, N = 0.1, 3
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
LOOPS = (Path(__file__).resolve().parents[2] / "docs" / "loops.md").read_text()


class Uniform:
    """A policy that knows its log-probabilities, and notes the states it was asked about."""

    def __init__(self):
        self.asked = []

    def action_log_prob(self, observation, action):
        self.asked.append({key: value.copy() for key, value in observation.items()})
        return np.full(len(action), -np.log(29))


def single(**overrides):
    """Stops at token 5 only."""
    render_mode = overrides.pop("render_mode", None)
    return TokenEnv(render_mode=render_mode, **(word_settings(stop_token_ids=(5,)) | overrides))


def vector(mode=AutoresetMode.SAME_STEP, **overrides):
    return TokenVectorEnv(N, **(word_settings(stop_token_ids=(5,), autoreset_mode=mode) | overrides))


def run(env, actions=(20, 21, 5)):
    """One episode: what each step returned."""
    env.reset(seed=0)
    return [env.step(action) for action in actions]


def plain(**overrides):
    """The same episode without a wrapper, with `Uniform` attached."""
    env = single(**overrides)
    env.attach(Uniform())
    return run(env)


def run_vector(env, steps=12):
    """Some steps of random actions: rewards, ends and infos."""
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    return [env.step(rng.choice([5, 20, 21, 22], size=N))[1:] for _ in range(steps)]


# -- one environment -----------------------------------------------------------------------------------------------


def test_attach_reaches_the_environment_through_any_wrapper():
    env = wrappers.TransformReward(wrappers.RecordEpisodeStatistics(wrappers.TimeLimit(single(), 8)), lambda r: r)
    env.unwrapped.attach(Uniform())
    *_, info = run(env)[-1]
    assert info["kl"] == pytest.approx(plain()[-1][4]["kl"], abs=1e-6)
    with pytest.raises(AttributeError):
        env.attach(Uniform())  # Gymnasium's wrappers forward no attributes
    made = gym.make("rlhf_gym/Token-v0", **word_settings(stop_token_ids=(5,)))
    made.unwrapped.attach(Uniform())
    assert "kl" in run(made)[-1][4]


def test_record_episode_statistics():
    env = wrappers.RecordEpisodeStatistics(single())
    env.unwrapped.attach(Uniform())
    *_, info = run(env)[-1]
    assert info["episode"]["l"] == info["response_length"] == 3
    assert info["episode"]["r"] == pytest.approx(info["score"] - BETA * info["kl"], abs=1e-5)


def test_time_limit_truncates_without_a_score_and_at_the_horizon_says_both():
    env = wrappers.TimeLimit(single(), 2)
    env.reset(seed=0)
    env.step(20)
    _, _, terminated, truncated, info = env.step(20)
    assert (terminated, truncated) == (False, True)
    assert info["score"] == 0
    env = gym.make("rlhf_gym/Token-v0", max_episode_steps=8, **word_settings(stop_token_ids=(5,)))
    _, _, terminated, truncated, info = run(env, [20] * 8)[-1]
    assert (terminated, truncated) == (True, True)
    assert info["stopped"] is False


def test_reward_wrappers_see_the_reward_of_every_token():
    expected = [step[1] for step in plain()]
    for env, function in (
        (wrappers.TransformReward(single(), lambda r: 3 * r), lambda r: 3 * r),
        (wrappers.ClipReward(single(), -0.2, 0.2), lambda r: np.clip(r, -0.2, 0.2)),
    ):
        env.unwrapped.attach(Uniform())
        steps = run(env)
        assert [step[1] for step in steps] == pytest.approx([function(r) for r in expected], abs=1e-6)
        assert steps[-1][4]["score"] == pytest.approx(plain()[-1][4]["score"])


def test_normalize_reward_gives_each_token_another_unit():
    """Why scores are normalised by `shaping`: Σ r = score − β·KL is gone."""
    env = wrappers.NormalizeReward(single(), gamma=1.0)
    env.unwrapped.attach(Uniform())
    scales = [ours / theirs[1] for (_, ours, *_), theirs in zip(run(env), plain(), strict=True)]
    assert np.isfinite(scales).all()
    assert np.ptp(scales) > 0.01


def test_reward_wrappers_do_not_reach_deferred_rewards():
    env = wrappers.TransformReward(single(reward_timing="deferred"), lambda r: r + 7)
    assert [step[1] for step in run(env)] == [7, 7, 7]
    earned = env.unwrapped.score_episodes(env.unwrapped.pending_episodes)
    bare = single(reward_timing="deferred")
    run(bare)
    np.testing.assert_array_equal(earned.rewards, bare.score_episodes(bare.pending_episodes).rewards)


def test_observation_wrappers_change_what_the_agent_sees_not_what_a_policy_is_asked_about():
    width = single().observation_space["input_ids"].shape[0]
    space = single().observation_space["input_ids"]
    for env, check in (
        (wrappers.FlattenObservation(single()), lambda o: o.shape == (2 * width,)),
        (wrappers.FilterObservation(single(), ["input_ids"]), lambda o: list(o) == ["input_ids"]),
        (wrappers.TransformObservation(single(), lambda o: o["input_ids"], space), lambda o: o.shape == (width,)),
        (wrappers.FrameStackObservation(single(), 2), lambda o: o["input_ids"].shape == (2, width)),
        (wrappers.DelayObservation(single(), 1), lambda o: o["input_ids"].shape == (width,)),
    ):
        policy = Uniform()
        env.unwrapped.attach(policy)
        observation, _ = env.reset(seed=0)
        assert observation in env.observation_space
        observation, *_ = env.step(20)
        assert check(observation)
        assert observation in env.observation_space
        assert policy.asked[0]["input_ids"].shape == (1, width)
    delayed = wrappers.DelayObservation(single(), 1)
    assert delayed.reset(seed=0)[0]["attention_mask"].sum() == 0
    length = delayed.unwrapped.engine._slots.lengths[0]
    assert delayed.step(20)[0]["attention_mask"].sum() == length


def test_time_aware_observation_counts_tokens():
    env = wrappers.TimeAwareObservation(wrappers.TimeLimit(single(), 8), flatten=False)
    assert [step[0]["time"].item() for step in run(env)] == [1, 2, 3]
    with pytest.raises(ValueError, match="must be wrapped by a TimeLimit"):
        wrappers.TimeAwareObservation(single())


def test_action_wrappers_play_another_token_than_the_one_chosen():
    env = wrappers.TransformAction(single(), lambda a: a + 1, gym.spaces.Discrete(28))
    assert run(env, [20])[-1][0]["input_ids"][:6].tolist().count(21) == 1
    *_, info = run(wrappers.RepeatAction(single(), 2), [20, 5])[-1]
    assert info["response_length"] == 3
    sticky = wrappers.StickyAction(single(stop_token_ids=()), 0.9)
    observation = run(sticky, [20, 21, 22, 23])[-1][0]["input_ids"]
    assert np.bincount(observation[observation >= 20]).max() > 1


def test_autoreset_wrapper_resets_on_the_next_step():
    env = wrappers.Autoreset(single(shuffle=False))
    *_, last = run(env)
    assert last[2]
    observation, reward, terminated, _, info = env.step(20)
    assert (reward, terminated) == (0, False)
    assert info == {"score": 0, "ref_log_prob": 0, "response_length": 0, "stopped": False}
    assert observation["attention_mask"].sum() == len(PROMPTS[1])


def test_order_enforcing_and_passive_checker():
    env = wrappers.OrderEnforcing(wrappers.PassiveEnvChecker(single()))
    with pytest.raises(ResetNeeded, match=r"before calling env\.reset"):
        env.step(20)
    assert run(env)[-1][2]


def test_rendered_text_can_be_collected():
    env = wrappers.RenderCollection(single(render_mode="ansi"))
    run(env)
    frames = env.render()
    assert len(frames) == 4
    assert all(isinstance(frame, str) for frame in frames)


BOX_ONLY = {
    "DtypeObservation": lambda env: wrappers.DtypeObservation(env, np.int32),
    "DiscretizeObservation": lambda env: wrappers.DiscretizeObservation(env, 3),
    "GrayscaleObservation": wrappers.GrayscaleObservation,
    "ResizeObservation": lambda env: wrappers.ResizeObservation(env, (2, 2)),
    "ReshapeObservation": lambda env: wrappers.ReshapeObservation(env, (2, 2)),
    "RescaleObservation": lambda env: wrappers.RescaleObservation(env, np.float32(0), np.float32(1)),
    "ClipAction": wrappers.ClipAction,
    "RescaleAction": lambda env: wrappers.RescaleAction(env, 0, 1),
    "DiscretizeAction": lambda env: wrappers.DiscretizeAction(env, 3),
}
NEEDS_PIXELS = {
    "RecordVideo": lambda env: wrappers.RecordVideo(env, "videos"),
    "HumanRendering": wrappers.HumanRendering,
    "AddRenderObservation": wrappers.AddRenderObservation,
    "MaxAndSkipObservation": wrappers.MaxAndSkipObservation,
    "NormalizeObservation": wrappers.NormalizeObservation,
    "AtariPreprocessing": wrappers.AtariPreprocessing,
}


@pytest.mark.parametrize("name", BOX_ONLY)
def test_wrappers_for_numbers_refuse_tokens(name):
    with pytest.raises(TypeError, match="Box"):
        BOX_ONLY[name](single())


@pytest.mark.parametrize("name", NEEDS_PIXELS)
def test_wrappers_for_images_refuse_text(name):
    with pytest.raises((ValueError, TypeError, DependencyNotInstalled, AttributeError)):
        NEEDS_PIXELS[name](single(render_mode="ansi"))


IMAGES = {
    "AddWhiteNoise": lambda env: wrappers.AddWhiteNoise(env, 0.5),
    "ObstructView": lambda env: wrappers.ObstructView(env, 0.5, 2),
}


@pytest.mark.parametrize("name", IMAGES)
def test_wrappers_of_rendered_images_want_images(name):
    env = IMAGES[name](single(render_mode="ansi"))
    run(env)
    with pytest.raises(AttributeError, match="'str' object"):
        env.render()
    env = IMAGES[name](single(render_mode="rgb_array"))
    run(env)
    assert env.render().shape == (480, 800, 3)


def test_images_can_be_the_observation():
    env = wrappers.AddRenderObservation(single(render_mode="rgb_array"))
    (first, *_), *_, (last, *_) = run(env)
    assert first.shape == (480, 800, 3) and (first != last).any()


# -- many at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_vector_record_episode_statistics(mode):
    env = vector_wrappers.RecordEpisodeStatistics(vector(mode))
    env.unwrapped.attach(Uniform())
    ends = 0
    for _, terminated, _, infos in run_vector(env, 30):
        if terminated.any():
            final = infos["final_info"] if mode == AutoresetMode.SAME_STEP else infos
            expected = (final["score"] - BETA * final["kl"])[terminated]
            np.testing.assert_allclose(infos["episode"]["r"][terminated], expected, atol=1e-5)
            np.testing.assert_array_equal(infos["episode"]["l"][terminated], final["response_length"][terminated])
            ends += terminated.sum()
    assert ends == env.episode_count > 10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("wrap", "function"),
    [
        (lambda env: vector_wrappers.TransformReward(env, lambda r: 3 * r), lambda r: 3 * r),
        (lambda env: vector_wrappers.ClipReward(env, -0.2, 0.2), lambda r: np.clip(r, -0.2, 0.2)),
        (
            lambda env: vector_wrappers.VectorizeTransformReward(env, wrappers.TransformReward, func=lambda r: 3 * r),
            lambda r: 3 * r,
        ),
    ],
)
def test_vector_reward_wrappers(mode, wrap, function):
    """They change the reward returned and nothing the environment keeps: rendering and infos are as they were."""
    bare, wrapped = vector(mode, render_mode="ansi"), wrap(vector(mode, render_mode="ansi"))
    for theirs, ours in zip(run_vector(bare), run_vector(wrapped), strict=True):
        np.testing.assert_allclose(ours[0], function(theirs[0]), atol=1e-6)
        assert str(ours[3]) == str(theirs[3])
    assert wrapped.render() == bare.render()


@pytest.mark.parametrize("mode", MODES)
def test_vector_normalize_reward_leaves_reset_steps_out(mode):
    env = vector_wrappers.NormalizeReward(vector(mode), gamma=1.0)
    steps = run_vector(env)
    assert all(np.isfinite(rewards).all() for rewards, *_ in steps)
    resets = 0 if mode == AutoresetMode.SAME_STEP else sum(step[1].sum() for step in steps[:-1])
    assert round(env.return_rms.count) == 12 * N - resets


@pytest.mark.parametrize("mode", MODES)
def test_vector_dict_info_to_list(mode):
    env = vector_wrappers.DictInfoToList(vector_wrappers.RecordEpisodeStatistics(vector(mode)))
    for _, terminated, _, infos in run_vector(env):
        for slot in range(N):
            own = infos[slot].get("final_info") if mode == AutoresetMode.SAME_STEP else infos[slot]
            assert ("episode" in infos[slot]) == terminated[slot]
            assert not terminated[slot] or own["response_length"] == infos[slot]["episode"]["l"]


def test_vector_observation_wrappers_want_next_step():
    width = vector().single_observation_space["input_ids"].shape[0]
    space = vector().single_observation_space["input_ids"]
    wraps = (
        (vector_wrappers.FlattenObservation, lambda o: o.shape == (N, 2 * width)),
        (lambda env: vector_wrappers.FilterObservation(env, ["input_ids"]), lambda o: list(o) == ["input_ids"]),
        (
            lambda env: vector_wrappers.TransformObservation(
                env, lambda o: o["input_ids"], single_observation_space=space
            ),
            lambda o: o.shape == (N, width),
        ),
        (
            lambda env: vector_wrappers.VectorizeTransformObservation(
                env, wrappers.TransformObservation, func=lambda o: o["input_ids"], observation_space=space
            ),
            lambda o: o.shape == (N, width),
        ),
    )
    for wrap, check in wraps:
        env = wrap(vector(AutoresetMode.NEXT_STEP))
        env.unwrapped.attach(Uniform())
        env.reset(seed=0)
        observation, *_ = env.step(np.array([5, 20, 21]))
        assert check(observation)
        assert observation in env.observation_space
        with pytest.raises(ValueError, match=r"Expected autoreset_mode to be NEXT_STEP or DISABLED, got .*SAME_STEP"):
            wrap(vector(AutoresetMode.SAME_STEP))


@pytest.mark.parametrize("mode", MODES)
def test_vector_action_wrappers(mode):
    for env in (
        vector_wrappers.TransformAction(vector(mode), lambda a: a + 1),
        vector_wrappers.VectorizeTransformAction(
            vector(mode), wrappers.TransformAction, func=lambda a: a + 1, action_space=None
        ),
    ):
        env.reset(seed=0)
        observation, *_ = env.step(np.array([19, 20, 21]))
        last = observation["attention_mask"].sum(1) - 1
        assert observation["input_ids"][np.arange(N), last].tolist() == [20, 21, 22]


VECTOR_REFUSED = {
    "GrayscaleObservation": vector_wrappers.GrayscaleObservation,
    "ResizeObservation": lambda env: vector_wrappers.ResizeObservation(env, (2, 2)),
    "ReshapeObservation": lambda env: vector_wrappers.ReshapeObservation(env, (2, 2)),
    "RescaleObservation": lambda env: vector_wrappers.RescaleObservation(env, 0, 1),
    "DtypeObservation": lambda env: vector_wrappers.DtypeObservation(env, np.int32),
    "NormalizeObservation": vector_wrappers.NormalizeObservation,
    "ClipAction": vector_wrappers.ClipAction,
    "RescaleAction": lambda env: vector_wrappers.RescaleAction(env, 0, 1),
    "RecordVideo": lambda env: vector_wrappers.RecordVideo(env, "videos"),
    "HumanRendering": vector_wrappers.HumanRendering,
}


@pytest.mark.parametrize("name", VECTOR_REFUSED)
def test_vector_wrappers_for_numbers_and_images_refuse(name):
    def use():
        env = VECTOR_REFUSED[name](vector(AutoresetMode.NEXT_STEP, render_mode="ansi"))
        env.reset(seed=0)

    with pytest.raises((TypeError, ValueError)):  # NumPy's AxisError, of NormalizeObservation, is a ValueError
        use()


def test_the_token_agents_take_no_wrapper():
    with pytest.raises(TypeError, match="expected a TokenVectorEnv or the id of one, got RecordEpisodeStatistics"):
        TokenPPO(env=vector_wrappers.RecordEpisodeStatistics(vector(reward_timing="deferred")))


def test_conversion_to_torch():
    """One environment, and many with NEXT_STEP. With SAME_STEP it fails at the first end, as around any environment."""
    pytest.importorskip("array_api_compat", reason="gymnasium[array-api] is not installed")
    env = wrappers.NumpyToTorch(single())
    keys = set(env.reset(seed=0)[1])
    for action in (20, 5):
        observation, _, terminated, _, info = env.step(torch.tensor(action))
        assert isinstance(observation["input_ids"], torch.Tensor)
        assert terminated == info["stopped"] == (action == 5)
        assert set(info) == keys
        assert all(isinstance(value, torch.Tensor) for value in info.values())
    many = vector_wrappers.NumpyToTorch(vector(AutoresetMode.NEXT_STEP))
    many.reset(seed=0)
    *_, infos = many.step(torch.tensor([5, 20, 20]))
    assert infos["stopped"].tolist() == [True, False, False]
    assert infos["score"][1:].tolist() == [0, 0] and infos["score"][0] != 0
    many = vector_wrappers.NumpyToTorch(vector())
    many.reset(seed=0)
    many.step(torch.tensor([20, 20, 20]))
    with pytest.raises(BufferError):
        many.step(torch.tensor([5, 20, 20]))


def test_actions_may_be_tensors_without_a_wrapper():
    env = vector()
    env.reset(seed=0)
    assert env.step(torch.tensor([5, 20, 21]))[2].tolist() == [True, False, False]


# -- Gymnasium's own vectorisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_sync_vector_env(mode):
    env = gym.make_vec(
        "rlhf_gym/Token-v0",
        num_envs=N,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        wrappers=[wrappers.RecordEpisodeStatistics],
        **word_settings(stop_token_ids=(5,)),
    )
    policy = Uniform()
    env.call("attach", policy)
    steps = run_vector(env)
    same = mode == AutoresetMode.SAME_STEP
    finals = [infos["final_info"] if same else infos for _, terminated, _, infos in steps if terminated.any()]
    assert all("kl" in final for final in finals)
    assert all(len(asked["input_ids"]) == 1 for asked in policy.asked)  # a batch of one each: slow
    env.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_async_vector_env():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # forked processes inherit it; OpenMP's pool of threads does not survive a fork
    env = gym.make_vec(
        "rlhf_gym/Token-v0", num_envs=2, vectorization_mode="async", **word_settings(stop_token_ids=(5,))
    )
    try:
        env.reset(seed=0)
        _, rewards, terminated, _, infos = env.step(np.array([5, 20]))
        assert terminated.tolist() == [True, False]
        assert infos["stopped"].tolist() == [True, False]
        assert infos["response_length"].tolist() == [1, 1]
        assert np.isfinite(rewards).all()
    finally:
        env.close()
        torch.set_num_threads(threads)


# -- the two modes -------------------------------------------------------------------------------------------------


def test_both_modes_tell_the_same_story():
    """NEXT_STEP is SAME_STEP with a reset step after every end; `final_obs` and `final_info` are its obs and info."""
    streams = {}
    for mode in MODES:
        env = TokenVectorEnv(1, **word_settings(stop_token_ids=(5,), autoreset_mode=mode, shuffle=False, texts=True))
        policy = Uniform()
        env.attach(policy)
        observation, _ = env.reset(seed=0)
        rng, waiting, rows = np.random.default_rng(0), False, []
        for _ in range(60):
            if waiting:
                assert rows[-1]["end"]
                action = 10**9  # not read
            else:
                seen = observation
                action = rng.choice([5, 20, 21])
            observation, rewards, terminated, truncated, infos = env.step(np.array([action]))
            assert not truncated.any()
            if waiting:
                assert (rewards[0], terminated[0], infos["response_length"][0]) == (0, False, 0)
                assert observation["attention_mask"].sum() == len(PROMPTS[(env._feed.started - 1) % len(PROMPTS)])
                waiting = False
                continue
            row = {"state": seen, "action": action, "reward": rewards[0], "end": bool(terminated[0])}
            if terminated[0]:
                same = mode == AutoresetMode.SAME_STEP
                final = infos["final_info"] if same else infos
                last = infos["final_obs"][0] if same else {key: value[0] for key, value in observation.items()}
                row |= {"final": {key: value[0] for key, value in final.items()}, "final_obs": last}
                waiting = not same
            rows.append(row)
        streams[mode] = rows
    shorter = len(streams[AutoresetMode.NEXT_STEP])
    ends = 0
    for one, other in zip(streams[AutoresetMode.SAME_STEP][:shorter], streams[AutoresetMode.NEXT_STEP], strict=True):
        assert one.keys() == other.keys()
        for key in ("action", "end", "final"):
            assert one.get(key) == other.get(key)
        assert one["reward"] == pytest.approx(other["reward"], abs=1e-6)
        for key in ("input_ids", "attention_mask"):
            np.testing.assert_array_equal(one["state"][key], other["state"][key])
            if one["end"]:
                np.testing.assert_array_equal(one["final_obs"][key], other["final_obs"][key])
        ends += one["end"]
    assert 5 < ends < shorter
    assert shorter == 60 - ends or shorter == 60 - ends + 1


def test_disabled_autoreset_is_for_gymnasiums_own_vectorisation():
    with pytest.raises(ValueError, match="expected autoreset_mode SAME_STEP or NEXT_STEP, got DISABLED"):
        vector(AutoresetMode.DISABLED)
    env = vector()
    with pytest.raises(ValueError, match="expected the options episodes or prompts, got reset_mask"):
        env.reset(options={"reset_mask": np.ones(N, dtype=bool)})


# -- the documentation ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not gym.__version__.startswith("1.4."), reason="the tables are those of Gymnasium 1.4")
@pytest.mark.parametrize(("heading", "module"), [("one environment", wrappers), ("many", vector_wrappers)])
def test_the_tables_name_every_wrapper(heading, module):
    table = re.search(rf"### Around {heading}\n(.*?)(\n#|\Z)", LOOPS, flags=re.DOTALL).group(1)
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row[1])]
    assert sorted(named) == sorted(set(module.__all__) - {"vector"})
    assert {row[2].strip() for row in rows} == {"works", "works, but", "cannot"}
