"""A token environment small enough to enumerate: V tokens, T steps, no stop token, one prompt, a reward per string."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from rlhf_gym.agents import LMActorCriticPolicy
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.shared import Shared
from tests.tiny import tiny_gpt2, tiny_tokenizer

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


class TabularConfig(PreTrainedConfig):
    """Shape of a `TabularLM`."""

    model_type = "tabular"

    def __init__(self, vocab_size: int = 4, horizon: int = 3, **kwargs) -> None:
        self.vocab_size, self.horizon = vocab_size, horizon
        self.hidden_size = sum(vocab_size**t for t in range(horizon))
        super().__init__(**kwargs)


class _PrefixTrunk(PreTrainedModel):
    """The hidden state of a token is the one-hot number of the response up to it; the prompt is one token."""

    config_class = TabularConfig

    def __init__(self, config: TabularConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding.from_pretrained(torch.eye(config.vocab_size))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def forward(self, inputs_embeds=None, input_ids=None, **_) -> BaseModelOutput:
        tokens = inputs_embeds.argmax(-1) if input_ids is None else input_ids  # (B, L)
        code, first, states = torch.zeros_like(tokens[:, 0]), 0, []
        for t in range(tokens.shape[1]):
            code = code * self.config.vocab_size + tokens[:, t] if t else code  # (B,)
            states.append(first + code if t < self.config.horizon else torch.zeros_like(code))
            first += self.config.vocab_size**t
        hidden = nn.functional.one_hot(torch.stack(states, dim=1), self.config.hidden_size)  # (B, L, H)
        return BaseModelOutput(last_hidden_state=hidden.float())


class TabularLM(PreTrainedModel):
    """A causal LM with one row of logits for each prefix of the response; value heads on it are tables too."""

    config_class = TabularConfig

    def __init__(self, config: TabularConfig) -> None:
        super().__init__(config)
        self.trunk = _PrefixTrunk(config)
        self.table = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def get_decoder(self) -> PreTrainedModel:
        return self.trunk

    def get_output_embeddings(self) -> nn.Linear:
        return self.table

    def forward(self, input_ids, **_) -> CausalLMOutput:
        return CausalLMOutput(logits=self.table(self.trunk(self.trunk.embed(input_ids)).last_hidden_state))


def tabular_model(probabilities: np.ndarray, vocab_size: int, horizon: int) -> TabularLM:
    """The `TabularLM` that gives each response its probability, (V^T,)."""
    model = TabularLM(TabularConfig(vocab_size, horizon)).eval()
    rows = []
    for t in range(horizon):
        mass = np.asarray(probabilities, dtype=np.float64).reshape(vocab_size**t, vocab_size, -1).sum(-1)  # (V^t, V)
        rows.append(mass / mass.sum(1, keepdims=True))
    with torch.no_grad():
        model.table.weight.copy_(torch.from_numpy(np.log(np.concatenate(rows))).T)
    return model


def make_tabular_toy(seed: int, *, vocab_size: int = 4, horizon: int = 3, beta: float = 0.5) -> Toy:
    """`make_toy`'s rewards with a π_ref drawn from a Dirichlet distribution at each prefix."""
    toy = make_toy(seed, vocab_size=vocab_size, horizon=horizon, beta=beta)
    generator = np.random.default_rng([seed, 1])
    probabilities = np.ones(1)
    for t in range(horizon):
        step = generator.dirichlet(np.full(vocab_size, 2.0), size=vocab_size**t)  # (V^t, V)
        probabilities = (probabilities[:, None] * step).reshape(-1)
    return replace(toy, reference=tabular_model(probabilities, vocab_size, horizon))


def bandit(beta: float) -> Toy:
    """One step, π_ref = (.5, .3, .2), r = (0, 1, 2)."""
    reference = tabular_model(np.array([0.5, 0.3, 0.2]), 3, 1)
    return Toy(reference, torch.arange(3)[:, None], np.array([0.0, 1.0, 2.0]), beta)


PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11, 12], [13]]
STOPS = (1, 5, 9, 13, 17)
"""Several, so that random policies end some responses early and others at the horizon."""


def word_reward(prompts: list[str], responses: list[str]) -> list[float]:
    """Some function of the words: letters a word, and a bonus for each "good"."""
    pairs = zip(prompts, responses, strict=True)
    return [0.2 * len(r) / (1 + r.count(" ")) + r.count("good") - 0.1 * len(p) for p, r in pairs]


def word_settings(**overrides) -> dict:
    """Arguments of a token environment over `tiny_tokenizer`'s words, with ragged prompts and ragged responses."""
    settings = {
        "prompts": PROMPTS,
        "tokenizer": tiny_tokenizer(),
        "reference": Shared(tiny_gpt2(seed=1)),
        "reward": word_reward,
        "max_new_tokens": 8,
        "kl_coef": 0.1,
        "stop_token_ids": STOPS,
    }
    return settings | overrides


def word_policy(env, *, seed: int = 2, **policy_kwargs) -> LMActorCriticPolicy:
    """A policy for `env` that is not its π_ref, ready to act."""
    observation_space = getattr(env, "single_observation_space", None) or env.observation_space
    action_space = getattr(env, "single_action_space", None) or env.action_space
    settings = {"model": Shared(tiny_gpt2(seed=seed))} | policy_kwargs
    policy = LMActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, **settings)
    policy.set_training_mode(False)
    return policy
