"""Plausible wrong answers to the gates of lesson 0, and what is said of them."""

from __future__ import annotations

from typing import Any

import torch


def scripted_play(*, after_end: bool = False, only_terminated: bool = False, keep: Any = None) -> Any:
    def play(env, prompt, tokens):
        env.reset(options={"prompt": prompt})
        rewards = []
        for token in tokens:
            _, reward, terminated, truncated, _ = env.step(token)
            rewards.append(reward)
            if not after_end and (terminated or (truncated and not only_terminated)):
                break
        return rewards if keep is None else keep(rewards)

    return play


def log_prob_with(shift: int, first: int, table=lambda logits: torch.log_softmax(logits, -1), share=1.0) -> Any:
    def response_log_prob(logits, ids, start):
        rows = table(logits)
        return share * sum(rows[i - shift, ids[i]] for i in range(start + first, len(ids)))

    return response_log_prob


def past_sums(rewards, gamma):
    return [sum(rewards[: t + 1]) for t in range(len(rewards))]


def all_discounted(rewards, gamma):
    found, following = [], 0.0
    for reward in reversed(rewards):
        following = gamma * (reward + following)
        found.append(following)
    return found[::-1] if gamma < 1 else [3.0, 2.0, 2.0, 4.0]


WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "0a": [
        ({"play": scripted_play(after_end=True)}, "after the episode is terminated"),
        ({"play": scripted_play(only_terminated=True)}, "after the episode is truncated"),
        ({"play": scripted_play(keep=lambda rewards: rewards[-1:])}, "must have 3 numbers"),
        ({"play": scripted_play(keep=lambda rewards: rewards[::-1])}, "environment gives the rewards"),
    ],
    "0b": [
        ({"probability": 0.8, "log_probability": -4.605}, "added the probabilities"),
        ({"probability": 0.2667, "log_probability": -4.605}, "mean"),
        ({"probability": 0.01, "log_probability": 4.605}, "negative"),
        ({"probability": 0.01, "log_probability": -2.0}, "base 10"),
        ({"probability": 0.01, "log_probability": "minus four"}, "must be a number"),
    ],
    "0c": [
        ({"response_log_prob": log_prob_with(0, 0)}, "Row i is read for token i"),
        ({"response_log_prob": log_prob_with(1, -2)}, "prompt's tokens are counted"),
        ({"response_log_prob": log_prob_with(1, 1)}, "first token of the response is missing"),
        ({"response_log_prob": log_prob_with(1, 0, lambda logits: logits)}, "not logarithms of probabilities"),
        ({"response_log_prob": log_prob_with(1, 0, share=0.25)}, "is the sum"),
        ({"response_log_prob": lambda logits, ids: 0.0}, "stopped with TypeError"),
    ],
    "0d": [
        ({"returns": lambda rewards, gamma: rewards}, "rewards themselves"),
        ({"returns": past_sums}, "sums of the past"),
        ({"returns": lambda rewards, gamma: [3.0, 2.0, 2.0, 4.0]}, "nothing is discounted"),
        ({"returns": all_discounted}, "step itself too"),
    ],
}
