"""Gates of lesson 0: text as a Markov decision process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rlhf_gym.lessons.answers import ask, explain, fail, near, number, numbers, require


class _Script:
    """An environment whose rewards are known, and which ends after three steps."""

    def __init__(self, *, truncates: bool) -> None:
        self.truncates = truncates
        self.played: list[Any] = []
        self.rewards = [0.25, -0.5, 1.5]

    def reset(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self.played = []
        return {}, {}

    def step(self, token: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if len(self.played) == 3:
            word = "truncated" if self.truncates else "terminated"
            fail(f"`play` goes on after the episode is {word}. Nothing may be played then.")
        self.played.append(token)
        over = len(self.played) == 3
        return {}, self.rewards[len(self.played) - 1], over and not self.truncates, over and self.truncates, {}


def playing(play: Any) -> None:
    """You can play an episode token by token, and you know when it is over."""
    for truncates in (False, True):
        env = _Script(truncates=truncates)
        require(callable(play), "`play` must be a function.")
        rewards = play(env, "a prompt", [11, 12, 13, 14, 15])
        require(env.played == [11, 12, 13][: len(env.played)], f"Given tokens 11, 12, 13, `play` plays {env.played}.")
        require(len(env.played) == 3, f"`play` stops after {len(env.played)} tokens, but that episode has 3.")
        found = numbers("play(…)", rewards, 3).tolist()
        require(found == env.rewards, f"The environment gives the rewards {env.rewards}, but `play` returns {found}.")


def by_hand(probability: Any, log_probability: Any) -> None:
    """You can work out the probability of a response and its logarithm."""
    p = number("probability", probability)
    if not near(p, 0.01, 1e-4):
        mistakes = {
            "You added the probabilities. All three tokens must occur, so think of independent throws of dice.": 0.8,
            "This is the mean of the three probabilities. The probability of all three together is smaller.": 0.8 / 3,
        }
        explain("probability", p, mistakes, "It must be smaller than each token's own probability.")
    log_p = number("log_probability", log_probability)
    if not near(log_p, -4.60517):
        mistakes = {
            "A probability below 1 has a negative logarithm.": 4.605,
            "This is the logarithm to the base 10. Use the natural logarithm.": -2.0,
            "This is the mean over tokens. log π(y|x) is the sum.": -4.605 / 3,
        }
        explain("log_probability", log_p, mistakes, "Add the logarithms of the three probabilities.")


def from_logits(response_log_prob: Any) -> None:
    """You know which row of the logits is about which token."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5, generator=generator)  # (L, V)
    ids = torch.tensor([1, 4, 0, 2, 2, 3, 0])  # (L,)
    log_probs = torch.log_softmax(logits, dim=-1)  # (L, V)

    def total(table: torch.Tensor, first: int, shift: int) -> float:
        return float(sum(table[i - shift, ids[i]] for i in range(first, len(ids))))

    found = number("response_log_prob(…)", ask("response_log_prob", response_log_prob, logits, ids, 3))
    right = total(log_probs, 3, 1)
    if not near(found, right, 1e-4):
        mistakes = {
            "Row i is read for token i. The model has seen token i there: row i is about the next one.": total(
                log_probs, 3, 0
            ),
            "The prompt's tokens are counted too. The policy did not choose them.": total(log_probs, 1, 1),
            "The first token of the response is missing.": total(log_probs, 4, 1),
            "These are logits, not logarithms of probabilities.": total(logits, 3, 1),
            "This is the mean over tokens. log π(y|x) is the sum.": right / 4,
        }
        explain("response_log_prob(…)", found, mistakes, "Which row is about token i, and which column is its own?")


def discounted(returns: Any) -> None:
    """You can work out returns, and you know why γ is 1 here."""
    rewards = [1.0, 0.0, -2.0, 4.0]
    undiscounted = numbers("returns(…)", ask("returns", returns, rewards, 1.0), 4).tolist()
    if undiscounted == rewards:
        fail("The returns are the rewards themselves. A return also counts what comes later.")
    if undiscounted == [4.0, 2.0, 2.0, 3.0] or undiscounted == [1.0, 1.0, -1.0, 3.0]:
        fail("These are sums of the past. A return is about what is still to come.")
    right = [3.0, 2.0, 2.0, 4.0]
    require(
        undiscounted == right,
        f"With γ = 1 the return of the last step is its reward, 4, and that of the first is the sum of all, 3. "
        f"Yours are {undiscounted}.",
    )
    halved = numbers("returns(…)", ask("returns", returns, rewards, 0.5), 4).tolist()
    if halved == right:
        fail("With γ = .5 nothing is discounted.")
    if halved == [0.5, 0.0, 0.0, 2.0]:
        fail("γ discounts the reward of the step itself too. Only what comes after it is discounted.")
    wanted = [1.0, 0.0, 0.0, 4.0]
    require(
        all(near(a, b, 1e-6) for a, b in zip(halved, wanted, strict=True)),
        f"With γ = .5 the step before the last has −2 + .5 · 4 = 0. Yours are {halved}.",
    )


GATES: dict[str, Callable[..., None]] = {"0a": playing, "0b": by_hand, "0c": from_logits, "0d": discounted}
