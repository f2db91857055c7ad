"""Slots: autoreset, parking, options of a reset, errors, the order of prompts, rendering."""

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from rlhf_gym.envs import TokenEnv, TokenVectorEnv
from rlhf_gym.envs.prompts import PromptFeed
from rlhf_gym.lm.loading import Shared
from tests import tiny
from tests.toy import PROMPTS, word_policy, word_settings


def vector_env(n=3, **overrides):
    return TokenVectorEnv(n, **word_settings(**overrides))


def rows(observation):
    return [ids[: mask.sum()].tolist() for ids, mask in zip(*observation.values(), strict=True)]


# -- autoreset -----------------------------------------------------------------------------------------------------


def test_same_step_gives_the_final_observation_and_the_next_prompt_at_once():
    env = vector_env(stop_token_ids=(1,), shuffle=False, kl_coef=0.0)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    observation, _ = env.reset()
    assert rows(observation) == PROMPTS[:3]
    observation, rewards, terminated, _, info = env.step(np.array([20, 1, 21]))
    assert terminated.tolist() == [False, True, False]
    assert rows(observation) == [[*PROMPTS[0], 20], PROMPTS[3], [*PROMPTS[2], 21]]
    assert info["_final_obs"].tolist() == info["_final_info"].tolist() == [False, True, False]
    final = info["final_obs"][1]
    assert final["input_ids"][: final["attention_mask"].sum()].tolist() == [*PROMPTS[1], 1]
    assert info["final_info"]["score"][1] == pytest.approx(rewards[1])
    assert info["final_info"]["stopped"].tolist() == [False, True, False]
    assert info["response_length"].tolist() == [1, 0, 1] and info["final_info"]["response_length"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_texts_are_empty_until_the_end(mode):
    env = vector_env(stop_token_ids=(1,), texts=True, autoreset_mode=mode)
    _, info = env.reset(options={"prompts": ["good film", "the plot", "we saw"]})
    assert info["prompt"].tolist() == info["response"].tolist() == ["", "", ""]
    *_, info = env.step(np.array([20, 1, 21]))
    final = info["final_info"] if mode == AutoresetMode.SAME_STEP else info
    assert (final["prompt"][1], final["response"][1]) == ("the plot", "")
    assert info["prompt"][0] == info["response"][0] == ""


def test_next_step_shows_the_final_observation_first_and_ignores_one_action():
    env = vector_env(stop_token_ids=(1,), shuffle=False, kl_coef=0.0, autoreset_mode="NextStep")
    env.reset()
    observation, rewards, terminated, _, info = env.step(np.array([20, 1, 21]))
    assert terminated.tolist() == [False, True, False]
    assert rows(observation)[1] == [*PROMPTS[1], 1]
    assert info["score"][1] == pytest.approx(rewards[1])
    assert info["stopped"].tolist() == [False, True, False]
    assert info["response_length"].tolist() == [1, 1, 1]
    keys = set(info)
    observation, rewards, terminated, _, info = env.step(np.array([20, 99_999, 21]))
    assert rows(observation)[1] == PROMPTS[3]
    assert rewards[1] == 0
    assert not terminated.any()
    assert info["response_length"].tolist() == [2, 0, 2]
    assert info["score"].tolist() == [0, 0, 0] and set(info) == keys


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_the_reset_step_earns_nothing_whatever_is_attached(mode):
    env = vector_env(stop_token_ids=(1,), autoreset_mode=mode)
    policy = word_policy(env)
    env.attach(policy)
    env.reset(seed=0)
    env.step(np.array([20, 1, 21]))
    _, rewards, *_ = env.step(np.array([20, 20, 21]))
    assert (rewards[1] == 0) == (mode == AutoresetMode.NEXT_STEP)
    assert rewards[0] != 0


# -- options and parking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("episodes", [1, 2, 3, 7])
def test_so_many_episodes_are_started_and_all_of_them_end(mode, episodes):
    env = vector_env(stop_token_ids=(1,), autoreset_mode=mode)
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0, options={"episodes": episodes})
    assert env.parked.sum() == max(0, 3 - episodes)
    ended = []
    for _ in range(200):
        if env.parked.all():
            break
        parked = env.parked
        assert (observation["attention_mask"].sum(1)[parked] == 0).all()
        actions = rng.choice([1, 20, 21], size=3)
        actions[parked] = -7  # not read
        observation, rewards, terminated, _, _ = env.step(actions)
        assert (rewards[parked] == 0).all()
        assert not terminated[parked].any()
        assert (env.last_step.log_ratios[parked] == 0).all()
        ended += [e.number for e in env.last_step.episodes]
    assert sorted(ended) == list(range(episodes))
    with pytest.raises(ResetNeeded, match="every slot is parked"):
        env.step(np.zeros(3, dtype=np.int64))
    env.reset()
    assert not env.parked.any()


def test_given_prompts_are_played_each_once_in_their_order():
    env = vector_env(2, stop_token_ids=(1,), max_prompt_length=6)
    wanted = [[7, 8], [9], [10, 11, 12], [13], [14, 15]]
    env.reset(options={"prompts": wanted})
    ended = []
    while not env.parked.all():
        env.step(np.array([1, 1]))
        ended += env.last_step.episodes
    ended.sort(key=lambda e: e.number)
    assert [e.prompt_ids.tolist() for e in ended] == wanted
    observation, _ = env.reset(options={"prompts": ["good film", "the plot was fun"]})
    tokenizer = tiny.tiny_tokenizer()
    assert rows(observation) == tokenizer(["good film", "the plot was fun"]).input_ids


def test_given_prompts_do_not_move_the_order_of_the_others():
    one, other = vector_env(), vector_env()
    one.reset(seed=4)
    other.reset(seed=4, options={"prompts": [[3], [4], [5]]})
    other.seed(4)
    np.testing.assert_array_equal(other.reset()[0]["input_ids"], one.reset(seed=4)[0]["input_ids"])


def test_single_environment_takes_a_prompt():
    env = TokenEnv(**word_settings(max_prompt_length=6))
    observation, _ = env.reset(options={"prompt": "good film"})
    assert rows({key: value[None] for key, value in observation.items()}) == [[3, 9]]
    observation, _ = env.reset(options={"prompt": [7, 8]})
    assert observation["input_ids"][:2].tolist() == [7, 8]
    with pytest.raises(ValueError, match="expected the option prompt, got prompts"):
        env.reset(options={"prompts": [[7]]})


def test_samples_per_prompt_come_in_a_row_and_every_prompt_once_a_pass():
    env = vector_env(4, samples_per_prompt=2, stop_token_ids=(1,))
    seen = []
    env.reset(seed=0, options={"episodes": 16})
    while not env.parked.all():
        env.step(np.full(4, 1))
        seen += env.last_step.episodes
    prompts = [tuple(e.prompt_ids) for e in sorted(seen, key=lambda e: e.number)]
    assert all(prompts[i] == prompts[i + 1] for i in range(0, 16, 2))
    for half in (prompts[:8], prompts[8:]):
        assert sorted(half) == sorted([tuple(p) for p in PROMPTS] * 2)


def test_prompt_feed_state():
    prompts = [[i] for i in range(5)]
    rng = np.random.default_rng(0)
    feed = PromptFeed(prompts, samples_per_prompt=2)
    [feed.draw(rng) for _ in range(7)]
    state, rng_state = feed.state_dict(), rng.bit_generator.state
    expected = [feed.draw(rng) for _ in range(20)]
    other, rng = PromptFeed(prompts, samples_per_prompt=2), np.random.default_rng(9)
    other.load_state_dict(state)
    rng.bit_generator.state = rng_state
    assert [other.draw(rng) for _ in range(20)] == expected
    with pytest.raises(ValueError, match="expected the state of 4 prompts, got that of 5"):
        PromptFeed(prompts[:4]).load_state_dict(state)
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptFeed([])
    with pytest.raises(ValueError, match="samples_per_prompt >= 1, got 0"):
        PromptFeed(prompts, samples_per_prompt=0)


def test_prompts_from_a_file(tmp_path):
    (tmp_path / "prompts.txt").write_text("good film\nthe plot\n")
    env = vector_env(2, prompts=tmp_path / "prompts.txt", shuffle=False)
    assert rows(env.reset()[0]) == [[3, 9], tiny.tiny_tokenizer()("the plot").input_ids]


# -- errors --------------------------------------------------------------------------------------------------------


def test_steps_before_a_reset_and_after_the_end():
    with pytest.raises(ResetNeeded, match="call reset"):
        vector_env().step(np.zeros(3, dtype=np.int64))
    env = TokenEnv(**word_settings(stop_token_ids=(1,)))
    with pytest.raises(ResetNeeded, match=r"expected reset\(\) before step\(\)"):
        env.step(3)
    env.reset()
    env.step(1)
    with pytest.raises(ResetNeeded, match=r"expected reset\(\) before step\(\)"):
        env.step(3)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([3, 29, 4]), r"expected actions in 0 … 28, got 29 in slot 1"),
        (np.array([3, 4, -1]), r"expected actions in 0 … 28, got -1 in slot 2"),
        (np.array([3, 4]), r"expected actions of shape \(3,\), got \(2,\)"),
        (np.array([[3], [4], [5]]), r"expected actions of shape \(3,\), got \(3, 1\)"),
        (np.array([3.0, 4.0, 5.0]), r"expected integer actions \(token ids\), got float64"),
    ],
)
def test_wrong_actions_change_nothing(actions, message):
    env = vector_env()
    before, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    after, *_ = env.step(torch.tensor([20, 21, 22]))
    assert rows(after) == [[*row, token] for row, token in zip(rows(before), (20, 21, 22), strict=True)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_prompt_length": 4}, "prompt 2 has 5 tokens, expected at most max_prompt_length=4"),
        ({"max_new_tokens": 60}, r"prompt 2 has 5 tokens.*expected at most 4 \(the model's context is 64\)"),
        ({"prompts": [[3], []]}, "prompt 1 is empty: expected at least one token"),
        ({"prompts": []}, "expected prompts: texts, token ids or a file"),
        ({"prompts": [[3, 29]]}, "prompt 0: expected token ids in 0 … 28"),
        ({"stop_token_ids": (1, 50256)}, r"expected stop_token_ids in 0 … 28, got \[1, 50256\]"),
        ({"max_new_tokens": 0}, "expected max_new_tokens >= 1, got 0"),
        ({"kl_coef": -0.1}, r"expected kl_coef >= 0, got -0\.1"),
        ({"kl_coef": float("nan")}, "expected kl_coef >= 0, got nan"),
        ({"kl_in": "both"}, "expected kl_in to be one of .* got 'both'"),
        ({"reward_timing": "later"}, "expected reward_timing to be one of .* got 'later'"),
        ({"autoreset_mode": AutoresetMode.DISABLED}, "expected autoreset_mode SAME_STEP or NEXT_STEP, got DISABLED"),
        ({"tokenizer": None}, "expected a tokenizer, or a reference given as a folder"),
        ({"samples_per_prompt": 0}, "samples_per_prompt >= 1, got 0"),
    ],
)
def test_wrong_arguments_say_what_was_expected(overrides, message):
    with pytest.raises(ValueError, match=message):
        vector_env(**overrides)


def test_no_slots_and_single_only_arguments():
    with pytest.raises(ValueError, match="expected num_envs >= 1, got 0"):
        vector_env(0)
    with pytest.raises(TypeError, match="expected neither num_envs nor autoreset_mode"):
        TokenEnv(**word_settings(autoreset_mode="SameStep"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "expected the option episodes to be an integer >= 1, got 0"),
        ({"episodes": 2.5}, r"expected the option episodes to be an integer >= 1, got 2\.5"),
        ({"episodes": 2, "prompts": [[3]]}, "either the option episodes or the option prompts"),
        ({"epsiodes": 2}, "expected the options episodes or prompts, got epsiodes"),
        ({"prompts": [[3], []]}, "prompt 1 is empty"),
        ({"prompts": [[3] * 6]}, "prompt 0 has 6 tokens, expected at most max_prompt_length=5"),
        ({"prompts": [[77]]}, "prompt 0: expected token ids in 0 … 28"),
    ],
)
def test_wrong_options_change_nothing(options, message):
    env = vector_env()
    env.reset(seed=0)
    expected = vector_env()
    expected.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.reset(seed=1, options=options)
    actions = np.array([20, 21, 22])
    np.testing.assert_array_equal(env.step(actions)[0]["input_ids"], expected.step(actions)[0]["input_ids"])
    np.testing.assert_array_equal(env.reset()[0]["input_ids"], expected.reset()[0]["input_ids"])


def test_a_prompt_given_at_reset_must_leave_room_in_the_context():
    env = vector_env(max_prompt_length=60, max_new_tokens=8)
    with pytest.raises(ValueError, match=r"prompt 0 has 57 tokens.*expected at most 56"):
        env.reset(options={"prompts": [[3] * 57]})
    env.reset(options={"prompts": [[3] * 56]})


def test_another_reward_vocabulary_needs_a_text_route():
    reward = tiny.tiny_reward_model(vocab_size=40)
    reward.tokenizer = None
    with pytest.raises(ValueError, match="expected a reward model with the policy's vocabulary of 29"):
        vector_env(reward=Shared(reward))
    other = tiny.tiny_reward_model(tiny.tiny_tokenizer([*tiny.WORDS[::-1], "more"]))
    env = vector_env(reward=Shared(other))
    assert env.token_reward.scorer.routes == ("text",)
    env.reset(seed=0)
    env.step(np.full(3, 1))


def test_what_is_no_reward_is_refused():
    with pytest.raises(TypeError, match="expected a RewardModel, a RewardEnsemble or a callable"):
        vector_env(reward=3)
    env = vector_env(reward=lambda prompts, responses: np.zeros((len(prompts), 1)))
    env.reset()
    with pytest.raises(ValueError, match=r"to return 3 scores of shape \(3,\), got shape \(3, 1\)"):
        env.step(np.full(3, 1))


def test_a_vocabulary_larger_than_the_tokenizers():
    """Embeddings are often padded to a multiple of 64; their tokens are actions too, and decode to nothing."""
    env = vector_env(reference=Shared(tiny.tiny_gpt2(40, seed=1)))
    assert env.single_action_space.n == 40
    env.reset(seed=0)
    env.step(np.full(3, 39))
    env.step(np.full(3, 1))


# -- rendering -----------------------------------------------------------------------------------------------------


def test_render_ansi_shows_kl_reward_and_with_a_critic_values():
    env = TokenEnv(render_mode="ansi", **word_settings(texts=True))
    env.reset(options={"prompt": "good film"})
    assert "good film" in env.render()
    assert "value" not in env.render()
    env.step(6)
    *_, info = env.step(1)
    text = env.render()
    assert "\x1b[" in text
    for part in ("prompt", "KL", "reward", "poor", "<eos>"):
        assert part in text
    assert info["response"] == "poor"
    assert info["prompt"] == "good film"
    policy = word_policy(env)
    torch.nn.init.constant_(policy.value_head.linear.bias, 2.5)
    env.attach(policy)
    assert "+2.50 … +2.50" in env.render()
    vector = vector_env(2, render_mode="ansi")
    vector.reset(seed=0)
    assert len(vector.render()) == 2


def test_render_without_a_mode_warns():
    env = vector_env()
    env.reset()
    with pytest.warns(UserWarning, match="without a render_mode"):
        assert env.render() is None
