"""An environment small enough to enumerate, whose optimum is known in closed form.

    task = tabular_task(seed=0)                  # 4 tokens, 3 steps: 64 responses; π_ref a table
    agent = TokenPPO("LMPolicy", task.env(128), policy_kwargs={"use_cache": False})
    agent.learn(36_000)
    task.best - task.objective(agent.policy.model)        # J* − J
    task.total_variation(agent.policy.model)              # from π*

The objective is that of any token environment, J(π) = E_π[r] − β·KL(π‖π_ref). Its maximum is at π*(y) ∝
π_ref(y)·e^{r(y)/β}, with J* = β·log E_ref[e^{r/β}] (Ziebart 2010; Rafailov et al. 2023, arXiv:2305.18290, appendix
A.1). An agent whose signs, masks or indices are wrong misses it.
"""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_gym.envs.vector_env import TokenVectorEnv
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.loading import Shared
from rlhf_gym.lm.tabular import tabular_lm

LETTERS = string.ascii_lowercase


@dataclass(frozen=True, eq=False)
class EnumerableTask:
    """One prompt, V tokens, T steps, no stop token, a reward for each of the V^T responses.

    A *policy* is given as a causal LM or as the probability of each response, (V^T,), in the order of `strings`.
    """

    reference: PreTrainedModel
    """The reference policy π_ref."""
    strings: torch.Tensor
    """All responses, (V^T, T), in the order of `all_responses`."""
    rewards: np.ndarray
    """The score of each response, (V^T,)."""
    beta: float
    """The coefficient β > 0 of the KL."""

    def __post_init__(self) -> None:
        vocab_size = self.reference.config.vocab_size
        count = vocab_size ** self.strings.shape[1]
        if len(self.strings) != count or np.shape(self.rewards) != (count,):
            raise ValueError(
                f"expected V^T = {count} responses and as many rewards, got {len(self.strings)} and "
                f"{np.shape(self.rewards)}"
            )
        if not self.beta > 0:
            raise ValueError(f"expected beta > 0, got {self.beta}")

    # -- the optimum ------------------------------------------------------------------------------------------------

    @cached_property
    def optimum(self) -> np.ndarray:
        """The optimal policy π* ∝ π_ref·e^{r/β}, (V^T,)."""
        return np.exp(self._log_weights - self.best / self.beta)

    @cached_property
    def best(self) -> float:
        """J* = β·log Σ_y π_ref(y)·e^{r(y)/β}, the objective of π*, which no other policy reaches."""
        top = self._log_weights.max()
        return float(self.beta * (top + np.log(np.exp(self._log_weights - top).sum())))

    @cached_property
    def state_values(self) -> np.ndarray:
        """V*(s) = β·log E_ref[e^{r/β} | s] of every prefix s, (Σ_{t<T} V^t,), in the order of `TabularLM`'s rows.

        The first is J*. Along any response, V*(s_{t+1}) − β·log(π*/π_ref)(a_t|s_t) = V*(s_t).
        """
        weights = np.exp(self._log_weights)  # (V^T,)
        prior = np.exp(self._reference_log_probs)  # (V^T,)
        tables = []
        for t in range(self.strings.shape[1]):
            count = self.reference.config.vocab_size**t
            total = weights.reshape(count, -1).sum(1)  # (V^t,)
            mass = prior.reshape(count, -1).sum(1)  # (V^t,)
            tables.append(self.beta * np.log(total / mass))
        return np.concatenate(tables)

    @property
    def mode(self) -> int:
        """The place in `strings` of π*'s likeliest response, which the best *deterministic* policy gives."""
        return int(self._log_weights.argmax())

    def best_of(self, n: int) -> np.ndarray:
        """The distribution of the best of n responses of π_ref, (V^T,): F(r)^n − F(r−)^n.

        F is the distribution function of π_ref's rewards. Responses with the same reward share their mass as in π_ref.
        """
        if n < 1:
            raise ValueError(f"expected n >= 1, got {n}")
        prior = np.exp(self._reference_log_probs)  # (V^T,)
        levels, level_of = np.unique(self.rewards, return_inverse=True)  # (R,), (V^T,)
        mass = np.bincount(level_of, weights=prior, minlength=len(levels))  # (R,)
        chosen = np.diff(np.cumsum(mass / mass.sum()) ** n, prepend=0.0)  # (R,)
        return chosen[level_of] * prior / mass[level_of]

    # -- a policy ---------------------------------------------------------------------------------------------------

    def log_probs(self, model: PreTrainedModel) -> np.ndarray:
        """log π(y|x) of every response, (V^T,), float64."""
        ids = torch.cat([torch.zeros(len(self.strings), 1, dtype=torch.int64), self.strings], dim=1)  # (V^T, 1 + T)
        lengths = torch.full((len(ids),), ids.shape[1])
        return token_log_probs(model, ids, lengths, batch_size=4096).double().sum(dim=1).numpy()

    def probabilities(self, policy: PreTrainedModel | np.ndarray) -> np.ndarray:
        """π(y|x) of every response, (V^T,), float64."""
        return policy if isinstance(policy, np.ndarray) else np.exp(self.log_probs(policy))

    def kl(self, policy: PreTrainedModel | np.ndarray) -> float:
        """KL(π‖π_ref) in nats, exactly."""
        p = self.probabilities(policy)
        return float((p * (np.log(np.where(p > 0, p, 1.0)) - self._reference_log_probs)).sum())

    def objective(self, policy: PreTrainedModel | np.ndarray) -> float:
        """J(π) = E_π[r] − β·KL(π‖π_ref), exactly."""
        p = self.probabilities(policy)
        return float((p * self.rewards).sum()) - self.beta * self.kl(p)

    def total_variation(self, policy: PreTrainedModel | np.ndarray) -> float:
        """½·Σ_y|π(y) − π*(y)|: 0 at the optimum, at most 1."""
        return float(0.5 * np.abs(self.probabilities(policy) - self.optimum).sum())

    # -- the environment --------------------------------------------------------------------------------------------

    def env(self, num_envs: int, **overrides: Any) -> TokenVectorEnv:
        """The environment; deferred rewards unless told otherwise.

        Args:
            num_envs: N.
            overrides: any argument of `TokenVectorEnv`.
        """
        tokenizer = letter_tokenizer(self.reference.config.vocab_size)
        table = {" ".join(LETTERS[i] for i in s): r for s, r in zip(self.strings.tolist(), self.rewards, strict=True)}
        settings: dict[str, Any] = {
            "prompts": [[0]],
            "reward": lambda prompts, responses: [table[response] for response in responses],
            "reference": Shared(self.reference),
            "tokenizer": tokenizer,
            "max_new_tokens": self.strings.shape[1],
            "kl_coef": self.beta,
            "stop_token_ids": (),
            "reward_timing": "deferred",
        }
        return TokenVectorEnv(num_envs, **(settings | overrides))

    @cached_property
    def _reference_log_probs(self) -> np.ndarray:
        return self.log_probs(self.reference)

    @property
    def _log_weights(self) -> np.ndarray:
        """The logarithm of π_ref·e^{r/β}, (V^T,)."""
        return self._reference_log_probs + self.rewards / self.beta


def tabular_task(seed: int, *, vocab_size: int = 4, horizon: int = 3, beta: float = 0.5) -> EnumerableTask:
    """r ~ U[0, 2] for each response; π_ref a `TabularLM`, Dirichlet(2, …, 2) at each prefix."""
    generator = np.random.default_rng([seed, 1])
    probabilities = np.ones(1)
    for t in range(horizon):
        step = generator.dirichlet(np.full(vocab_size, 2.0), size=vocab_size**t)  # (V^t, V)
        probabilities = (probabilities[:, None] * step).reshape(-1)  # (V^{t+1},)
    reference = tabular_lm(probabilities, vocab_size, horizon)
    return EnumerableTask(reference, all_responses(vocab_size, horizon), _rewards(seed, vocab_size, horizon), beta)


def gpt2_task(seed: int, *, vocab_size: int = 4, horizon: int = 3, beta: float = 0.5, **config: Any) -> EnumerableTask:
    """r ~ U[0, 2] for each response, the same as `tabular_task`'s; π_ref a random GPT-2, 2 layers and 32 wide.

    Args:
        seed: of rewards and weights; the global generator is left as it was.
        vocab_size: V.
        horizon: T.
        beta: β.
        config: other arguments of `GPT2Config`. Weights are drawn wide, so that π_ref is far from uniform.
    """
    settings: dict[str, Any] = {
        "n_layer": 2,
        "n_embd": 32,
        "n_head": 2,
        "n_positions": 8,
        "initializer_range": 0.2,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reference = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **(settings | config))).eval()
    return EnumerableTask(reference, all_responses(vocab_size, horizon), _rewards(seed, vocab_size, horizon), beta)


def all_responses(vocab_size: int, horizon: int) -> torch.Tensor:
    """Every response of T tokens, (V^T, T) int64, the last token running fastest."""
    return torch.tensor(list(itertools.product(range(vocab_size), repeat=horizon)))


def letter_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """The letters a, b, c … as tokens 0, 1, 2 …, without any special token."""
    if not 1 <= vocab_size <= len(LETTERS):
        raise ValueError(f"expected vocab_size in 1 … {len(LETTERS)} (letters), got {vocab_size}")
    inner = Tokenizer(WordLevel({letter: i for i, letter in enumerate(LETTERS[:vocab_size])}, unk_token="a"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=None)


def _rewards(seed: int, vocab_size: int, horizon: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 2, size=vocab_size**horizon)
