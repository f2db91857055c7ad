"""Replaying the one-token step without the modelling code around it.

At small sizes most of a step is Python: modules, hooks, argument handling. The step has fixed shapes, so it is recorded
once and then replayed: on a CPU as the flat list of the tensor operations that the model ran, on a GPU as a CUDA graph.
Both run the very same operations as the model's own forward, on the same weights, so nothing is written by hand for one
architecture and the numbers are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(tokens, positions, columns), each (B, 1) → hidden states (B, 1, H)."""

_ALIASES = (torch.ops.aten.alias.default, torch.ops.aten.detach.default, torch.ops.aten.lift_fresh_copy.default)


def record(step: Step, tokens: Tensor, positions: Tensor, columns: Tensor) -> Step:
    """The step as a replay for these shapes.

    Raises:
        RuntimeError: the step cannot be recorded, e.g. because what it runs depends on values.
    """
    if tokens.device.type == "cuda":
        return _CUDAGraph(step, tokens, positions, columns)
    try:
        graph = make_fx(step)(tokens, positions, columns)
    except Exception as problem:  # whatever a model's code may raise when its tensors are traced
        raise RuntimeError(f"{type(problem).__name__}: {problem}") from problem
    _simplify(graph)
    return graph


def _simplify(module: fx.GraphModule) -> None:
    """Drop what does nothing: aliases, and results that nobody reads."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _ALIASES:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code(lambda node: node.is_impure() or _writes(node))
    module.recompile()


def _writes(node: fx.Node) -> bool:
    """In-place operations are the point of the step (they fill the cache), whether or not their result is read."""
    return (
        node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    )


class _CUDAGraph:
    """One captured graph with inputs of its own; calling it copies the arguments in and launches once."""

    def __init__(self, step: Step, tokens: Tensor, positions: Tensor, columns: Tensor) -> None:
        self.inputs = tokens.clone(), positions.clone(), columns.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # capture wants every lazy initialisation behind it
            for _ in range(3):
                step(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = step(*self.inputs)

    def __call__(self, tokens: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
        for own, given in zip(self.inputs, (tokens, positions, columns), strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.output
