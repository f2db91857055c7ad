"""Heads on a trunk's hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """V(s) = w·h + b in fp32, zero at the start (Huang et al. 2024, arXiv:2403.17031)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) → (...)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float())[..., 0]
