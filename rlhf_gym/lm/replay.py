"""Replaying the one-token step without the modelling code around it.

At small sizes most of a step is Python: modules, hooks, argument handling. The step has fixed shapes, so it is recorded
once and then replayed: on a CPU as the flat list of the tensor operations that the model ran, on a GPU as a CUDA graph.
Both run the same operations as the model's own forward, on the same weights, so the numbers are the same bit for bit.
`scripts/benchmark.py --only replay` measures what a replay gains.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(tokens, positions, columns), each (B, 1) → hidden states (B, 1, H)."""

aten = torch.ops.aten

_IDENTITIES = (aten.alias.default, aten.detach.default, aten.lift_fresh.default)
"""What looks at the same memory in the same way."""

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
    recorder = _Recorder(tokens, positions, columns)
    try:
        with torch.inference_mode(), _NoValues(), recorder:
            recorder.finish(step(tokens, positions, columns))
    except Exception as problem:  # whatever a model's code may raise when its tensors are watched
        raise RuntimeError(f"{type(problem).__name__}: {problem}") from problem
    module = GraphModule(recorder.constants, recorder.graph)
    for node in module.graph.find_nodes(op="get_attr"):  # where Python finds tensors without `Module.__getattr__`
        module.__dict__[node.target] = getattr(module, node.target)
    return torch.inference_mode()(module.forward)


class _Recorder(TorchDispatchMode):
    """Writes down the tensor operations that run in it.

    `make_fx` does as much in ten times the time, which at 30 layers is that of some 50 steps.
    A tensor is known by the memory that it looks at, as long as that is alive. No result is kept: at long contexts the
    copies that all layers make would be more than the model.
    """

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.graph = Graph()
        self.constants = torch.nn.Module()
        self._nodes: dict[tuple[Any, ...], tuple[Node, StorageWeakRef]] = {}
        for number, tensor in enumerate(inputs):
            self._know(tensor, self.graph.placeholder(f"input_{number}"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _shape_depends_on_values(func, args):
            raise RuntimeError(f"the shape of what {func} returns depends on values")
        given = tree_map_only(Tensor, self._node, (args, kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, bool | int | float):
            raise RuntimeError(f"{func} gives Python a value")
        if func in _IDENTITIES:
            return result
        node = self.graph.call_function(_FUNCTIONS.get(func, func), *given)
        if isinstance(result, Tensor):
            self._know(result, node)
        else:
            for number, part in enumerate(result or ()):
                if isinstance(part, Tensor):
                    self._know(part, self.graph.call_function(getitem, (node, number)))
        return result

    def finish(self, result: Tensor) -> None:
        """What the recorded operations return."""
        self.graph.output(self._node(result))

    def _node(self, tensor: Tensor) -> Node:
        """Where a tensor comes from: an input, an operation's result, or what was there before."""
        node, memory = self._nodes.get(_place(tensor), (None, None))
        if node is None or memory is None or memory.expired():
            name = f"constant_{len(self.graph.nodes)}"
            setattr(self.constants, name, tensor)
            node = self.graph.get_attr(name)
            self._know(tensor, node)
        return node

    def _know(self, tensor: Tensor, node: Node) -> None:
        self._nodes[_place(tensor)] = node, StorageWeakRef(tensor.untyped_storage())


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """The memory that a tensor looks at, and how; the same of all that stand for it."""
    start = tensor.untyped_storage().data_ptr()
    return start, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


class _NoValues(TorchFunctionMode):
    """Refuses what hands values to Python without an operation that could be recorded."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__):
            raise RuntimeError(f"{func} gives Python values")
        return func(*args, **(kwargs or {}))


def _shape_depends_on_values(func: Any, args: tuple[Any, ...]) -> bool:
    if func in (aten.index.Tensor, aten.index_put_.default):
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


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
