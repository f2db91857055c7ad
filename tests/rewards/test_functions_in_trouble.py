"""Reward functions that raise or never end: the error says whose it was and about which responses."""

from __future__ import annotations

import threading

import pytest

from rlhf_gym import agents, envs
from rlhf_gym.files import reason
from rlhf_gym.rewards import FunctionReward


def fails(prompts, responses):
    return [1 / 0 for _ in responses]


def test_what_a_function_raises_says_whose_it_is_and_about_what():
    with pytest.raises(ZeroDivisionError) as raised:
        FunctionReward(fails)(["p", "p"], ["a text", "b"])
    (note,) = raised.value.__notes__
    assert "the reward function <function fails>" in note and "2 responses, 'a text' first" in note
    assert reason(raised.value) == f"ZeroDivisionError: division by zero; {note}"


def test_in_an_environment_too_and_learning_stops_there():
    env = envs.tabular_task(0).env(4, reward=fails)
    agent = agents.TokenReinforce(env=env, n_episodes=4, policy_kwargs={"use_cache": False})
    with pytest.raises(ZeroDivisionError) as raised:
        agent.learn(100)
    assert any("4 responses" in note for note in raised.value.__notes__)


def test_a_function_that_never_ends_is_left_behind():
    never = threading.Event()
    slow = FunctionReward(lambda prompts, responses: never.wait(60), seconds=0.05)
    with pytest.raises(TimeoutError, match=r"expected an answer within 0.05 s, got none"):
        slow(["p"], ["a"])
    never.set()


@pytest.mark.parametrize("seconds", [None, 30.0, 1e12])
def test_one_that_ends_in_time_is_as_without_a_limit(seconds):
    quick = FunctionReward(lambda prompts, responses: [float(len(text)) for text in responses], seconds=seconds)
    assert quick(["p", "p"], ["ab", "c"]) == [2.0, 1.0]
    with pytest.raises(ZeroDivisionError):
        FunctionReward(fails, seconds=seconds)(["p"], ["a"])
