"""Replaying the one-token step without the modelling code around it.

At small sizes most of a step is Python: modules, hooks, argument handling. The step has fixed shapes, so it is recorded
once and then replayed: on a CPU as the flat list of the tensor operations that the model ran, on a GPU as a CUDA graph.
Both run the same operations as the model's own forward, on the same weights, so the numbers are the same bit for bit.
`scripts/benchmark.py --only replay` measures what a replay gains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(tokens, positions, columns), each (B, 1) → hidden states (B, 1, H)."""

aten = torch.ops.aten

_IDENTITIES = (aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default)

# The same operations by an entry point that takes a third of the time to call.
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.mm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.addmm.default: torch.addmm,
    aten.pow.Tensor_Scalar: torch.pow,
    aten.mean.dim: torch.mean,
    aten.rsqrt.default: torch.rsqrt,
    aten.neg.default: torch.neg,
    aten.cos.default: torch.cos,
    aten.sin.default: torch.sin,
    aten.tanh.default: torch.tanh,
    aten.cat.default: torch.cat,
    aten.embedding.default: torch.embedding,
    aten.native_layer_norm.default: torch.native_layer_norm,
    aten.view.default: Tensor.view,
    aten.transpose.int: Tensor.transpose,
    aten.unsqueeze.default: Tensor.unsqueeze,
    aten.t.default: Tensor.t,
}


def record(step: Step, tokens: Tensor, positions: Tensor, columns: Tensor) -> Step:
    """The step as a replay for these shapes.

    Raises:
        RuntimeError: the step cannot be recorded, e.g. because what it runs depends on values.
    """
    if tokens.device.type == "cuda":
        return _CUDAGraph(step, tokens, positions, columns)
    try:
        module = make_fx(step)(tokens, positions, columns)
    except Exception as problem:  # whatever a model's code may raise when its tensors are traced
        raise RuntimeError(f"{type(problem).__name__}: {problem}") from problem
    for node in list(module.graph.nodes):
        if node.target in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]
    module.recompile()
    for node in module.graph.find_nodes(op="get_attr"):  # where Python finds tensors without `Module.__getattr__`
        module.__dict__[node.target] = getattr(module, node.target)
    return torch.inference_mode()(module.forward)


class _CUDAGraph:
    """One captured graph with inputs of its own; calling it copies the arguments in and launches once.

    All graphs share one pool of memory: they run one after another, and what one returns is read before the next runs.
    """

    _pool: ClassVar[Any] = None

    def __init__(self, step: Step, tokens: Tensor, positions: Tensor, columns: Tensor) -> None:
        self.inputs = tokens.clone(), positions.clone(), columns.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # capture wants every lazy initialisation behind it
            for _ in range(3):
                step(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        if _CUDAGraph._pool is None:
            _CUDAGraph._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(self.graph, pool=_CUDAGraph._pool):
            self.output = step(*self.inputs)

    def __call__(self, tokens: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
        for own, given in zip(self.inputs, (tokens, positions, columns), strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.output
