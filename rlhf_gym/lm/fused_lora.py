"""An adapter's layer, y = x Wᵀ + b + s·(x Aᵀ) Bᵀ, in fewer passes over memory than peft's; the numbers are the same.

peft computes the two terms apart, scales one and adds them, and autograd does likewise on the way back. Each of these
passes reads and writes whole activations. Where r is small, they take longer than the products with A and B. Here what
the adapter adds is added by the product itself.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear


def fuse_adapter(model: nn.Module) -> None:
    """Let the LoRA layers over `nn.Linear` in a model compute so, in place. What is saved of them stays as it was."""
    for layer in model.modules():
        if type(layer) is Linear:
            layer.__class__ = FusedLinear


class FusedLinear(Linear):
    """peft's layer; whatever is not one plain adapter over a frozen weight of the same kind of number is left to it."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(…, K) → (…, N)."""
        if args or kwargs or not self._plain(x):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        flat = x.reshape(-1, x.shape[-1])  # (n, K)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight  # (r, K) and (N, r)
        base: Any = self.base_layer
        given: Any = flat, base.weight, base.bias, a, b, self.scaling[name]
        result = _Product.apply(*given) if torch.is_grad_enabled() else _product(*given)[0]  # (n, N)
        return result.view(*x.shape[:-1], -1)

    def _plain(self, x: Tensor) -> bool:
        base, names = self.base_layer, self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A:
            return False
        if type(base) is not nn.Linear or base.weight.requires_grad or torch.is_autocast_enabled(x.device.type):
            return False
        (name,) = names
        dropped = self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        if dropped or name in self.lora_variant or self.lora_bias[name]:
            return False
        return x.dtype == base.weight.dtype == self.lora_A[name].weight.dtype == self.lora_B[name].weight.dtype


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """(n, K), (N, K), (N,), (r, K), (N, r) → (n, N), and u = x Aᵀ, (n, r)."""
    inner = linear(x, a)
    return linear(x, weight, bias).addmm_(inner, b.t(), alpha=scaling), inner


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        result, inner = _product(x, weight, bias, a, b, scaling)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scaling = scaling
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, inner = ctx.saved_tensors
        if torch.is_grad_enabled():  # this gradient has one, too: u is then a function of x and A
            inner = linear(x, a)
        inner_grad = torch.mm(grad, b).mul_(ctx.scaling)  # (n, r)
        x_grad = torch.mm(grad, weight).addmm_(inner_grad, a) if ctx.needs_input_grad[0] else None  # (n, K)
        a_grad = torch.mm(x.t(), inner_grad).t()  # (r, K)
        b_grad = torch.mm(grad.t(), inner).mul_(ctx.scaling)  # (N, r)
        return x_grad, None, None, a_grad, b_grad, None
