"""A copy of a model in bf16 to act with, while the weights that are trained stay in fp32."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.parts import LMParts


class LowPrecisionActor:
    """Decodes with a bf16 copy of `model`, brought up to date when its weights have changed.

    A decode step reads every weight once and does little with it: half the bytes are half the time.

    Args:
        model: whose weights are followed.
        use_cache: see `Decoder`.
    """

    def __init__(self, model: PreTrainedModel, *, use_cache: bool | None = None) -> None:
        self._model = model
        copied = copy.deepcopy(model).requires_grad_(False).bfloat16().eval()
        self.decoder = Decoder(LMParts(copied), use_cache=use_cache)
        self._pairs = list(zip(copied.parameters(), model.parameters(), strict=True))
        self._version = self._current()

    def up_to_date(self) -> bool:
        """Whether the copy is of the weights as they are and where they are (what leaves no trace is not seen)."""
        return self._version == self._current()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights again."""
        torch._foreach_copy_([ours for ours, _ in self._pairs], [theirs for _, theirs in self._pairs])
        self.decoder.invalidate()
        self._version = self._current()

    @property
    def device(self) -> torch.device:
        """Where the copy is."""
        return self.decoder.parts.device

    def _current(self) -> int:
        return sum(parameter._version for parameter in self._model.parameters())
