"""A token environment small enough to enumerate: V tokens, T steps, no stop token, one prompt, a reward per string."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from rlhf_gym.envs import TokenVectorEnv
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.shared import Shared
from tests.tiny import tiny_gpt2

LETTERS = "abcdefghij"


def letter_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """The letters a, b, c … as tokens 0, 1, 2 …, and no special token at all."""
    inner = Tokenizer(WordLevel({letter: i for i, letter in enumerate(LETTERS[:vocab_size])}, unk_token="a"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=None)


@dataclass(frozen=True)
class Toy:
    """The environment's parts, and what enumeration says of it."""

    reference: PreTrainedModel
    """π_ref."""
    strings: torch.Tensor
    """All responses, shape (V^T, T)."""
    rewards: np.ndarray
    """Score of each, shape (V^T,)."""
    beta: float
    """β."""

    def log_probs(self, model: PreTrainedModel) -> np.ndarray:
        """log π(y|x) of every response, shape (V^T,), float64."""
        ids = torch.cat([torch.zeros(len(self.strings), 1, dtype=torch.int64), self.strings], dim=1)
        lengths = torch.full((len(ids),), ids.shape[1])
        return token_log_probs(model, ids, lengths, batch_size=4096).double().sum(dim=1).numpy()

    @property
    def optimum(self) -> np.ndarray:
        """π* ∝ π_ref·e^{r/β}, shape (V^T,)."""
        weights = np.exp(self.log_probs(self.reference) + self.rewards / self.beta)
        return weights / weights.sum()

    @property
    def best(self) -> float:
        """J* = β·log Σ π_ref·e^{r/β}."""
        return float(self.beta * np.log(np.exp(self.log_probs(self.reference) + self.rewards / self.beta).sum()))

    def objective(self, model: PreTrainedModel) -> float:
        """J(π) = E_π[r] − β·KL(π‖π_ref), exactly."""
        log_probs = self.log_probs(model)
        kl = log_probs - self.log_probs(self.reference)
        return float((np.exp(log_probs) * (self.rewards - self.beta * kl)).sum())

    def total_variation(self, model: PreTrainedModel) -> float:
        """½·Σ|π − π*|."""
        return float(0.5 * np.abs(np.exp(self.log_probs(model)) - self.optimum).sum())

    def env(self, num_envs: int, **overrides) -> TokenVectorEnv:
        """The environment; deferred rewards unless told otherwise."""
        vocab_size = self.reference.config.vocab_size
        table = {" ".join(LETTERS[i] for i in s): r for s, r in zip(self.strings.tolist(), self.rewards, strict=True)}
        settings = {
            "prompts": [[0]],
            "reward": lambda prompts, responses: [table[response] for response in responses],
            "reference": Shared(self.reference),
            "tokenizer": letter_tokenizer(vocab_size),
            "max_new_tokens": self.strings.shape[1],
            "kl_coef": self.beta,
            "stop_token_ids": (),
            "reward_timing": "deferred",
        }
        return TokenVectorEnv(num_envs, **(settings | overrides))


def make_toy(seed: int, *, vocab_size: int = 4, horizon: int = 3, beta: float = 0.5, **model_overrides) -> Toy:
    """r ~ U[0, 2] per string; π_ref a random GPT-2 (2 layers, 32 wide)."""
    strings = torch.tensor(list(itertools.product(range(vocab_size), repeat=horizon)))
    rewards = np.random.default_rng(seed).uniform(0, 2, size=len(strings))
    settings = {"n_layer": 2, "n_embd": 32, "n_positions": 8, "seed": seed} | model_overrides
    return Toy(tiny_gpt2(vocab_size, **settings), strings, rewards, beta)
