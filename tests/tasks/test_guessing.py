"""The guessing game: its optimum, its answers, its secrets, and that an agent learns to halve the range."""

from __future__ import annotations

from functools import cache

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import rlhf_gym  # noqa: F401 (registers the id)
from rlhf_gym.agents import TokenPPO
from rlhf_gym.tasks import GuessingGame, guessing_policy, guessing_tokenizer, optimal_questions

RULES = {"reference": None, "kl_coef": 0.0}  # without π_ref, so that rewards are the game's alone


def make(n=8, num_envs=1, **settings):
    return gym.make_vec("rlhf_gym/Guess-v0", num_envs=num_envs, n=n, **RULES, **settings)


def play(env, guesses, episodes, seed=0):
    """Episodes in which `guesses(answers)` says the next number, `answers` being pairs of guess and answer."""
    tokenizer = env.tokenizer
    observation, _ = env.reset(seed=seed, options={"episodes": episodes})
    ended = []
    while not env.parked.all():
        actions = []
        for row, mask in zip(observation["input_ids"], observation["attention_mask"], strict=True):
            words = tokenizer.convert_ids_to_tokens(row[mask == 1].tolist())[4:]
            answers = list(zip(map(int, words[::2]), words[1::2], strict=True))
            actions.append(tokenizer.convert_tokens_to_ids(str(guesses(answers))))
        observation, *_ = env.step(np.array(actions))
        ended += env.last_step.episodes
    return ended


def halve(answers, n):
    """The middle of what is left."""
    low = max([guess + 1 for guess, answer in answers if answer == "higher"], default=1)
    high = min([guess - 1 for guess, answer in answers if answer == "lower"], default=n)
    return (low + high) // 2


def secret(episode, tokenizer):
    """The number named last."""
    return int(tokenizer.decode(episode.response_ids[-1:]))


# -- the optimum ----------------------------------------------------------------------------------------------------


def test_the_optimum_is_that_of_all_strategies():
    """Against brute force: every first guess, every strategy behind it on either side."""

    @cache
    def strategies(low, high):
        """The numbers of questions for each secret low … high, of every way to ask."""
        if low > high:
            return {()}
        found = set()
        for guess in range(low, high + 1):
            for below in strategies(low, guess - 1):
                for above in strategies(guess + 1, high):
                    found.add((*(c + 1 for c in below), 1, *(c + 1 for c in above)))
        return found

    for n in range(1, 8):
        assert optimal_questions(n) == pytest.approx(min(map(sum, strategies(1, n))) / n)


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (2, 3 / 2), (8, 21 / 8), (15, 49 / 15), (16, 54 / 16)])
def test_known_optima(n, expected):
    assert optimal_questions(n) == pytest.approx(expected)


@pytest.mark.parametrize("call", [GuessingGame, optimal_questions])
def test_there_is_a_number_to_guess(call):
    with pytest.raises(ValueError, match="expected n >= 1 numbers to guess from, got 0"):
        call(0)


@pytest.mark.parametrize(
    ("n", "message"),
    [
        (0, "expected n >= 1, got 0"),
        (2.5, "expected a whole number as n, got 2.5"),
        ("8", "whole number as n, got '8'"),
    ],
)
def test_the_environment_names_a_wrong_n(n, message):
    with pytest.raises(ValueError, match=message):
        make(n)


def test_a_game_of_one_number_is_one_guess():
    """The SFT policy has room for 6 tokens there, fewer than a model is otherwise looked at with."""
    env = gym.make("rlhf_gym/Guess-v0", n=1, kl_coef=0.0)
    env.reset(seed=0)
    guess = guessing_tokenizer(1).convert_tokens_to_ids("1")
    _, reward, terminated, truncated, info = env.step(guess)
    assert (reward, terminated, truncated, info["turns"]) == (-1.0, True, False, 1)


# -- the game -------------------------------------------------------------------------------------------------------


def test_the_answers():
    game = GuessingGame(8)
    assert game.reset(seed=3)[0] == "?"
    game.secret = 5
    assert game.step("4") == ("higher", -1.0, False, False, {})
    assert game.step("8") == ("lower", -1.0, False, False, {})
    for text in ("", "9", "0", "05", "<eos>", "higher", "4 5"):
        assert game.step(text) == ("invalid", -1.0, False, False, {})
    assert game.step("5")[1:4] == (-1.0, True, False)


def test_gymnasium_check_env():
    check_env(GuessingGame(8), skip_render_check=True)


def test_secrets_are_uniform_and_those_of_the_seed():
    game = GuessingGame(4)
    drawn = []
    for seed in range(400):
        game.reset(seed=seed)
        drawn.append(game.secret)
    assert game.reset(seed=7) and game.secret == drawn[7]
    assert np.bincount(drawn, minlength=5)[1:].min() > 70 and set(drawn) == {1, 2, 3, 4}


@pytest.mark.parametrize("n", [8, 15])
def test_halving_the_range_takes_as_many_questions_as_the_optimum(n):
    env = make(n, num_envs=16)
    episodes = play(env, lambda answers: halve(answers, n), 40 * n)
    taken = {}
    for episode in episodes:
        number = secret(episode, env.tokenizer)
        assert episode.finish_reason == "stop"
        assert episode.turn_rewards.tolist() == [-1.0] * len(episode.response_ids)
        assert taken.setdefault(number, len(episode.response_ids)) == len(episode.response_ids)
    assert sorted(taken) == list(range(1, n + 1))  # every secret came
    assert sum(taken.values()) / n == pytest.approx(optimal_questions(n))


def test_by_hand_one_step_after_another():
    env = gym.make("rlhf_gym/Guess-v0", n=8, **RULES)
    total = 0.0
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        answers = []
        over = False
        while not over:
            guess = halve(answers, 8)
            token = env.unwrapped.tokenizer.convert_tokens_to_ids(str(guess))
            observation, reward, over, truncated, info = env.step(token)
            total += reward
            assert reward == -1.0 and not truncated
            last = observation["input_ids"][observation["attention_mask"] == 1][-1:]
            answers.append((guess, env.unwrapped.tokenizer.decode(last)))
        assert info["turn_reward"] == -info["turns"] and info["stopped"]
    assert -80 <= total <= -20


def test_the_secret_depends_on_seed_and_episode_alone():
    """Not on the number of slots, nor on what was asked before."""

    def secrets(num_envs, guesses, seed=3):
        env = make(8, num_envs)
        return [secret(e, env.tokenizer) for e in sorted(play(env, guesses, 24, seed), key=lambda e: e.number)]

    def count(answers):
        return len(answers) + 1

    assert secrets(1, count) == secrets(5, count) == secrets(5, lambda answers: halve(answers, 8))
    assert secrets(5, count, seed=4) != secrets(5, count)


def test_a_group_has_one_secret():
    env = make(8, 4, samples_per_prompt=4)
    found = {}
    for episode in play(env, lambda answers: halve(answers, 8), 32):
        found.setdefault(episode.number // 4, set()).add(secret(episode, env.tokenizer))
    assert len(found) == 8 and all(len(numbers) == 1 for numbers in found.values())
    assert len(set.union(*found.values())) > 2


def test_a_game_that_is_not_won_costs_n_questions():
    env = make(4, num_envs=4)
    env.reset(seed=0, options={"episodes": 4})
    for _ in range(4):
        env.step(np.full(4, env.tokenizer.eos_token_id))
    for episode in env.last_step.episodes:
        assert episode.finish_reason == "length" and episode.turn_rewards.sum() == -4.0
    assert len(env.last_step.episodes) == 4
    ids = env.last_step.episodes[0].input_ids
    words = env.tokenizer.convert_ids_to_tokens(ids.tolist())
    assert words == ["1", "to", "4", "?", *["<eos>", "invalid"] * 3, "<eos>"]


# -- learning -------------------------------------------------------------------------------------------------------


def test_the_policy_is_made_once_and_knows_the_rules():
    model = guessing_policy(4)
    assert guessing_policy(4) is model and not model.training
    tokenizer = guessing_tokenizer(4)
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(["1", "to", "4", "?", "2", "higher"])])
    likely = model(ids).logits[0, -1].softmax(-1)[tokenizer.convert_tokens_to_ids(["1", "2", "3", "4"])]
    assert likely.sum() > 0.95 and likely[2:].sum() > 0.6  # .75 in the demonstrations


def test_an_agent_learns_to_halve():
    """n = 4: c(4)/4 = 2; counting up takes 2.5. An agent that learns nothing stays at π_ref's 2.5 or more."""
    env = gym.make_vec("rlhf_gym/Guess-v0", num_envs=64, n=4, reward_timing="deferred")
    agent = TokenPPO("LMPolicy", env, seed=0, device="cpu", n_episodes=64, batch_size=32, learning_rate=5e-3)
    agent.learn(4_000)
    played = make(4, num_envs=64)
    observation, _ = played.reset(seed=1, options={"episodes": 64})
    taken = {}
    while not played.parked.all():
        actions, _ = agent.predict(observation, deterministic=True)
        observation, *_ = played.step(actions)
        taken |= {secret(e, env.tokenizer): -e.turn_rewards.sum() for e in played.last_step.episodes}
    assert sorted(taken) == [1, 2, 3, 4]
    assert np.mean(list(taken.values())) == optimal_questions(4)
