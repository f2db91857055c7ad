"""`TabularLM`: a causal language model that is a table, for environments small enough to enumerate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput


class TabularConfig(PreTrainedConfig):
    """Shape of a `TabularLM`.

    Args:
        vocab_size: V.
        horizon: T, the longest response.
    """

    model_type = "tabular"

    def __init__(self, vocab_size: int = 4, horizon: int = 3, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        self.horizon = horizon
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

    def forward(
        self, inputs_embeds: Tensor | None = None, input_ids: Tensor | None = None, **_: Any
    ) -> BaseModelOutput:
        if input_ids is None:
            assert inputs_embeds is not None
            input_ids = inputs_embeds.argmax(-1)  # (B, L)
        code = torch.zeros_like(input_ids[:, 0])
        first = 0
        states = []
        for t in range(input_ids.shape[1]):
            code = code * self.config.vocab_size + input_ids[:, t] if t else code  # (B,)
            states.append(first + code if t < self.config.horizon else torch.zeros_like(code))
            first += self.config.vocab_size**t
        hidden = nn.functional.one_hot(torch.stack(states, dim=1), self.config.hidden_size)  # (B, L, H)
        return BaseModelOutput(last_hidden_state=hidden.float())  # type: ignore[arg-type]


class TabularLM(PreTrainedModel):
    """A causal LM with one row of logits for each prefix of the response; value heads on it are tables too.

    Rows are in the order of their length, then of their tokens read as a number to the base V: the empty response, the
    V of one token, the V² of two, … H = Σ_{t<T} V^t rows in all. The prompt is one token, and plays no part.

    It learns like any model (`LMActorCriticPolicy` takes it), without approximation: what an agent misses on it, the
    agent misses. It has no keys and values to cache: give the policy `use_cache=False`.
    """

    config_class = TabularConfig

    def __init__(self, config: TabularConfig) -> None:
        super().__init__(config)
        self.trunk = _PrefixTrunk(config)
        self.table = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def get_decoder(self) -> PreTrainedModel:
        return self.trunk

    def get_output_embeddings(self) -> nn.Linear:
        return self.table

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        hidden = self.trunk(self.trunk.embed(input_ids)).last_hidden_state  # (B, L, H)
        return CausalLMOutput(logits=self.table(hidden))


def tabular_lm(probabilities: np.ndarray, vocab_size: int, horizon: int) -> TabularLM:
    """The `TabularLM` that gives each response its probability.

    Args:
        probabilities: of the responses of `horizon` tokens in their order, (V^T,).
        vocab_size: V.
        horizon: T.
    """
    if np.shape(probabilities) != (vocab_size**horizon,):
        raise ValueError(
            f"expected the probabilities of V^T = {vocab_size**horizon} responses, got {np.shape(probabilities)}"
        )
    model = TabularLM(TabularConfig(vocab_size, horizon)).eval()
    rows = []
    for t in range(horizon):
        mass = np.asarray(probabilities, dtype=np.float64).reshape(vocab_size**t, vocab_size, -1).sum(-1)  # (V^t, V)
        rows.append(mass / mass.sum(1, keepdims=True))
    with torch.no_grad():
        model.table.weight.copy_(torch.from_numpy(np.log(np.concatenate(rows))).T)
    return model
