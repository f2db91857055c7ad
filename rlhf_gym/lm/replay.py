"""Replaying the one-token step without the modelling code around it.

At small sizes most of a step is Python: modules, hooks, argument handling. The step has fixed shapes, so it is recorded
once and then replayed: on a CPU as the flat list of the tensor operations that the model ran, on a GPU as a CUDA graph.
Both run the very same operations as the model's own forward, on the same weights, so nothing is written by hand for one
architecture and the numbers are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
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
}
_METHODS = {
    aten.view.default: "view",
    aten._unsafe_view.default: "view",
    aten.transpose.int: "transpose",
    aten.unsqueeze.default: "unsqueeze",
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
    _drop_identities(module.graph)
    _fold_constants(module)
    _merge_views(module.graph)
    module.graph.eliminate_dead_code(lambda node: node.is_impure() or _writes(node))
    _use_fast_entry_points(module.graph)
    module.recompile()
    for node in module.graph.nodes:  # where Python finds attributes without asking `Module.__getattr__`
        if node.op == "get_attr":
            module.__dict__[node.target] = _attribute(module, str(node.target))
    return torch.inference_mode()(module.forward)


def _drop_identities(graph: fx.Graph) -> None:
    """Aliases are what they alias, and what an in-place operation returns is what it wrote to."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif _writes(node):
            node.replace_all_uses_with(node.args[0])


def _fold_constants(module: fx.GraphModule) -> None:
    """Compute once what is always the same: ranges of columns, and views of weights and cache (which stay views)."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, OpOverload) or _writes(node):
            continue
        if any(source.op != "get_attr" for source in node.all_input_nodes) or any(
            _writes(u) and u.args[0] is node for u in node.users
        ):
            continue
        if node.all_input_nodes and not _views(node):
            continue  # a copy would not follow the weights
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        args = fx.map_arg(node.args, lambda source: _attribute(module, str(source.target)))
        kwargs = fx.map_arg(node.kwargs, lambda source: _attribute(module, str(source.target)))
        value = node.target(*args, **kwargs)
        if not isinstance(value, Tensor):
            continue
        name = f"_folded_{node.name}"
        module.register_buffer(name, value, persistent=False)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))
        graph.erase_node(node)


def _merge_views(graph: fx.Graph) -> None:
    """A view of a view is a view, and a transposition undoes itself."""
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or node.target != source.target:
            continue
        if node.target == aten.view.default:
            node.args = (source.args[0], node.args[1])
        elif node.target == aten.transpose.int and node.args[1:] == source.args[1:]:
            node.replace_all_uses_with(source.args[0])


def _use_fast_entry_points(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]
        elif node.target in _METHODS:
            node.op, node.target = "call_method", _METHODS[node.target]


def _writes(node: fx.Node) -> bool:
    """In-place operations are the point of the step (they fill the cache), whether or not their result is read."""
    return node.op == "call_function" and isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _views(node: fx.Node) -> bool:
    """Whether what the operation returns shares memory with what it was given."""
    return any(result.alias_info is not None for result in node.target._schema.returns)  # type: ignore[union-attr]


def _attribute(module: fx.GraphModule, name: str) -> Tensor:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


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
