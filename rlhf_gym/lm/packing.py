"""Matrix products with weights laid out beforehand for the CPU's own kernels.

A decode step multiplies a few rows by every weight of the model. A plain product lays the weight out anew each time,
which at so few rows costs as much as the product; between two updates the weights stand still, so they are laid out
once (oneDNN's packed format). Which products, is a question of their shapes alone, never of the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

WORTH_PACKING = 1 << 17
"""Elements of a weight from which on packing pays; smaller ones stay in the cores' own caches anyway."""
ROWS = 64
"""Rows of a product that the layout is made for; it serves other numbers as well."""


class PackedProducts(TorchFunctionMode):
    """While this mode is on, products with the large ones among `parameters` use packed copies of them.

    The copies are made when they are first needed after `drop()`, and take as much memory as the weights they are of.

    Args:
        parameters: what may be packed; only 2-D fp32 CPU tensors are.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        ours = [
            p
            for p in parameters
            if p.ndim == 2 and p.numel() >= WORTH_PACKING and p.dtype == torch.float32 and p.device.type == "cpu"
        ]
        self._parameters = tuple(ours if self.supported() else [])
        self._sizes = {p.data_ptr(): sorted(p.shape) for p in self._parameters}
        self._packed: dict[int, Tensor] = {}
        self._version = -1

    def __bool__(self) -> bool:
        """Whether there is anything to pack."""
        return bool(self._parameters)

    @staticmethod
    def supported() -> bool:
        """Whether this build of torch has the kernels."""
        return torch.backends.mkldnn.is_available() and all(
            torch._C._dispatch_has_kernel_for_dispatch_key(f"mkldnn::{name}", "CPU")
            for name in ("_reorder_linear_weight", "_linear_pointwise")
        )

    def drop(self) -> None:
        """The weights have changed: forget the copies."""
        self._packed.clear()

    def refresh(self) -> PackedProducts:
        """Forget the copies if a weight was changed in place since the last time."""
        version = sum(parameter._version for parameter in self._parameters)
        if version != self._version:
            self._version = version
            self.drop()
        return self

    def has(self, weight: Tensor) -> bool:
        """Whether a product with this weight, (N, K) or (K, N), is one of ours."""
        return self._sizes.get(weight.data_ptr()) == sorted(weight.shape)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x·Wᵀ + b of rows (…, K) with a weight (N, K) that `has` knows: (…, N)."""
        packed = self._packed.get(weight.data_ptr())
        if packed is None:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
            self._packed[weight.data_ptr()] = packed
        rows = x.reshape(-1, x.shape[-1])
        return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "").view(
            *x.shape[:-1], weight.shape[0]
        )

    def through(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function with this mode on."""

        def packed(*args: Tensor) -> Tensor:
            with self:
                return function(*args)

        return packed

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and self.has(args[1]):
            return self.product(args[0], args[1], args[2] if len(args) > 2 else None)
        if func is torch.addmm and not kwargs and self.has(args[2]):
            return self.product(args[1], args[2].t(), args[0])
        return func(*args, **(kwargs or {}))

    def substitute(self, module: fx.GraphModule, constant: Callable[[fx.GraphModule, str], Tensor]) -> None:
        """Let a recorded graph's products with our weights, read by `constant`, go through `product`."""
        aten = torch.ops.aten
        for node in list(module.graph.nodes):
            if node.target == aten.addmm.default and len(node.args) == 3 and not node.kwargs:
                bias, x, weight = node.args
            elif node.target == aten.mm.default:
                bias, (x, weight) = None, node.args
            else:
                continue
            if weight.op != "get_attr":
                continue
            value = constant(module, weight.target)  # (K, N)
            if not self.has(value):
                continue
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.call_function(_PackedProduct(self, value.t()), (x, bias)))
            module.graph.erase_node(node)


class _PackedProduct:
    """One product of a recorded graph."""

    def __init__(self, products: PackedProducts, weight: Tensor) -> None:
        self.products, self.weight = products, weight
        self.__name__ = self.__qualname__ = "packed_product"  # what fx calls it by

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.products.product(x, self.weight, bias)
