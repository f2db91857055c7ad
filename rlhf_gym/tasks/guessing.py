"""The embedded game: guess a secret number in 1 … n, told after each guess whether the secret is higher or lower.

A guess costs a reward of −1, so that an episode's return is minus its number of questions. The fewest questions on
average are known, `optimal_questions`: binary search needs them, about log₂ n.
"""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_gym.lm.tokens import encode_prompts, pad_rows

OPENING = "?"
HIGHER = "higher"
LOWER = "lower"
INVALID = "invalid"
RIGHT = "right"
PROMPT_LENGTH = 4
"""The tokens of the rules and the opening, "1 to 8 ?"."""
SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
ATTENTION = 0.5
"""The share of guesses for which the player of the demonstrations minds the answers it has had."""
DEMONSTRATIONS = 4_000
EPOCHS = 2
BATCH = 64


class GuessingGame(gym.Env[str, str]):
    """The game as an environment of texts: an action is a guess, an observation is the answer to it.

    A text that is no number of 1 … n is answered by "invalid" and costs as much as a guess.
    """

    def __init__(self, n: int) -> None:
        """
        Args:
            n: the secret is uniform on 1 … n.

        Raises:
            ValueError: n < 1.
        """
        if n < 1:
            raise ValueError(f"expected n >= 1 numbers to guess from, got {n}")
        self.n = n
        self.secret = 1
        """The number to guess, drawn at each reset."""
        self.observation_space = gym.spaces.Text(16, charset=string.printable)
        self.action_space = gym.spaces.Text(16, charset=string.printable)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw a secret number; the observation is "?"."""
        super().reset(seed=seed)
        self.secret = int(self.np_random.integers(1, self.n + 1))
        return OPENING, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answer a guess. The reward is −1, whatever the guess."""
        if action not in numbers(self.n):
            return INVALID, -1.0, False, False, {}
        guess = int(action)
        answer = RIGHT if guess == self.secret else HIGHER if guess < self.secret else LOWER
        return answer, -1.0, guess == self.secret, False, {}


def optimal_questions(n: int) -> float:
    """The expected number of guesses until the secret is named, at its smallest: c(n)/n.

    c(0) = 0 and c(m) = m + min_k [c(k) + c(m−1−k)]: summed over the secrets, m numbers cost a guess each, and then
    what the k numbers below the guess and the m−1−k above it cost (Knuth 1998, The Art of Computer Programming, vol. 3,
    6.2.1).

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"expected n >= 1 numbers to guess from, got {n}")
    costs = [0]
    for m in range(1, n + 1):
        costs.append(m + min(costs[k] + costs[m - 1 - k] for k in range(m)))
    return costs[n] / n


def rules(n: int) -> str:
    """What a game's prompt begins with, behind which the game says "?"."""
    return f"1 to {n} "


def guessing_tokenizer(n: int) -> PreTrainedTokenizerFast:
    """One token a word: the special ones, those of the prompt, the answers, then the numbers 1 … n."""
    pad, eos, unk = SPECIAL_TOKENS
    words = (*SPECIAL_TOKENS, "to", OPENING, HIGHER, LOWER, INVALID, *numbers(n))
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=unk))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, eos_token=eos, unk_token=unk, padding_side="right"
    )


def numbers(n: int) -> tuple[str, ...]:
    """The guesses that are answered, as words."""
    return tuple(str(number) for number in range(1, n + 1))


def demonstration(n: int, rng: np.random.Generator) -> list[str]:
    """A game of a mediocre player, n guesses at most: words of the prompt, then guesses and answers in turn.

    A guess is uniform on the numbers that the answers leave, or, with probability 1 − `ATTENTION`, on all of them.
    """
    game = GuessingGame(n)
    said, _ = game.reset(seed=int(rng.integers(2**31)))
    words = f"{rules(n)}{said}".split()
    low = 1
    high = n
    for _ in range(n):
        guess = int(rng.integers(low, high + 1) if rng.random() < ATTENTION else rng.integers(1, n + 1))
        answer, _, over, _, _ = game.step(str(guess))
        words += [str(guess), answer]
        if answer == HIGHER:
            low = max(low, guess + 1)
        elif answer == LOWER:
            high = min(high, guess - 1)
        if over:
            break
    return words[:-1]


@cache
def guessing_policy(n: int) -> GPT2LMHeadModel:
    """The SFT policy: a small GPT-2, fine-tuned on `DEMONSTRATIONS` games of a mediocre player.

    It is made once in a process, in seconds, from fixed seeds. Whoever trains it copies it first, as agents do.
    """
    tokenizer = guessing_tokenizer(n)
    rng = np.random.default_rng([n, 0])
    games = encode_prompts(tokenizer, [" ".join(demonstration(n, rng)) for _ in range(DEMONSTRATIONS)])
    ids = torch.from_numpy(pad_rows(games, length=PROMPT_LENGTH + 2 * n)[0])  # (G, L), padded by token 0
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=PROMPT_LENGTH + 2 * n,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.125,  # wide, as of the reviews task's model: it learns sooner
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(n)
        model = GPT2LMHeadModel(config)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(EPOCHS):
            for batch in ids[torch.randperm(len(ids))].split(BATCH):  # (B, L)
                guesses = batch[:, PROMPT_LENGTH::2]  # (B, n)
                real = (batch != tokenizer.pad_token_id).long()  # (B, L)
                logits = model(batch, attention_mask=real).logits[:, PROMPT_LENGTH - 1 : -1 : 2]  # (B, n, V)
                loss = cross_entropy(logits.flatten(0, 1), guesses.flatten(), ignore_index=tokenizer.pad_token_id)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval().requires_grad_(False)
