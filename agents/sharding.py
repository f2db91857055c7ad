"""FSDP2 for the networks of a policy: each rank keeps a part of every weight that is trained (docs/scaling.md).

While it acts, a policy has whole weights, in networks that know nothing of this. For an update there is a second set of
them, whose trained weights, gradients and moments are spread over the ranks by `fully_shard`. Only one of the two has
memory at a time.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rlhf_gym.lm.parts import LMParts, Trunk, ValueHead
from rlhf_gym.lm.split import Split, layers_of
from rlhf_gym.ranks import ranks

Sharding = Literal["none", "full"]
Result = TypeVar("Result")


class Networks(NamedTuple):
    """What a policy computes with."""

    model: PreTrainedModel
    """The actor."""
    parts: LMParts
    """Its trunk and head."""
    split: Split | None
    """Where its frozen lower layers end; None where none are frozen."""
    value_trunk: nn.Module | None
    """The critic's own trunk; None where it is the actor's."""
    value_parts: Trunk
    """The trunk that the value head reads."""
    value_head: ValueHead
    """The critic's head."""

    def together(self) -> nn.ModuleList:
        """All of them as one module."""
        return nn.ModuleList(m for m in (self.model, self.value_trunk, self.value_head) if m is not None)


class Shards:
    """The networks of a policy a second time, their trained weights spread over the ranks, for updates.

    Frozen weights are not spread: both sets of networks have the same ones, and π_ref may have them too.

    Args:
        networks: those with whole weights; every rank has the same.
        optimizer: of the trained weights; it has taken no step. It goes on with the parts.

    Raises:
        ImportError, ValueError: see `check_backend`.
    """

    def __init__(self, networks: Networks, optimizer: torch.optim.Optimizer) -> None:
        device = networks.parts.device
        check_backend(device)
        self.whole = networks
        modules = networks.together()
        self._trained = {name: p for name, p in modules.named_parameters() if p.requires_grad}
        for weight in self._trained.values():
            storage = weight.untyped_storage()
            if storage.nbytes() != weight.nbytes or not storage.resizable():  # it is freed and made again below
                weight.data = weight.detach().clone()
        self.spread: Networks = copy.deepcopy(networks, {id(p): p for p in modules.parameters()})
        self._root = _Root(self.spread.together())
        mesh = init_device_mesh(device.type, (ranks().size,))
        frozen = {parameter for parameter in modules.parameters() if not parameter.requires_grad}
        names = {id(parameter): name for name, parameter in self._trained.items()}
        self._units: list[tuple[FSDPModule, list[str]]] = []
        left = set(self._trained)
        for layer in _spread_alone(self.spread):
            own = [names[id(parameter)] for parameter in layer.parameters()]
            self._units.append((fully_shard(layer, mesh=mesh), own))
            left -= set(own)
        self._units.append((fully_shard(self._root, mesh=mesh, ignored_params=frozen), sorted(left)))
        for unit, _ in self._units:
            unit.set_custom_all_gather(_Gathered())  # type: ignore[arg-type]  # FSDP's own classes are private
            unit.set_custom_reduce_scatter(_Summed())  # type: ignore[arg-type]
            unit.set_gradient_divide_factor(1.0)
        spread = dict(self._root.networks.named_parameters())
        self._parts: dict[str, DTensor] = {name: spread[name] for name in self._trained}  # type: ignore[misc]
        for group in optimizer.param_groups:
            group["params"] = [self._parts[names[id(parameter)]] for parameter in group["params"]]
        for part in self._parts.values():
            _free(_local(part))

    def forward(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """`function(*args, **kwargs)`, which may be differentiated, with every weight at hand that it needs."""
        return self._root(function, *args, **kwargs)

    @torch.no_grad()
    def scatter(self) -> None:
        """Give each rank its part of the whole weights, and free these."""
        group = ranks()
        for name, whole in self._trained.items():
            part = _local(self._parts[name])
            _make(part, -(-len(whole) // group.size) * whole[:1].nbytes)
            if part.numel():
                part.copy_(whole.chunk(group.size)[group.rank])
            _free(whole)

    @torch.no_grad()
    def gather(self) -> None:
        """Make the whole weights again from the parts of all ranks, and free the parts."""
        networks = self._root.networks
        for unit, names in self._units:
            unit.unshard()
            for name in names:
                whole = self._trained[name]
                _make(whole, whole.nbytes)
                whole.copy_(networks.get_parameter(name))
            unit.reshard()
            for name in names:
                _free(_local(self._parts[name]))

    def lose(self) -> None:
        """Let no network have trained weights: an update broke off on some of the ranks, and the weights with it."""
        for whole in self._trained.values():
            whole.data = whole.new_empty(0)

    def whole_weights(self) -> list[nn.Parameter]:
        """The whole weights that are trained; they have no memory during an update."""
        return list(self._trained.values())

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale the gradients down to a norm of at most `max_norm` over all ranks; returns what it was."""
        gradients = [_local(part.grad) for part in self._parts.values() if part.grad is not None]
        squares = torch.nn.utils.get_total_norm(gradients).square()
        with ranks().meeting("the norm of the gradient"):
            dist.all_reduce(squares)
        norm = squares.sqrt()
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm


def check_backend(device: torch.device) -> None:
    """The ranks can exchange parts of tensors on this device.

    Raises:
        ImportError: this torch lacks what that takes. ValueError: the group lacks NCCL.
    """
    lacks = [name for name in ("set_custom_all_gather", "set_custom_reduce_scatter") if name not in vars(FSDPModule)]
    if lacks:
        raise ImportError(f'expected a torch with FSDPModule.{lacks[0]} for sharding="full", got {torch.__version__}')
    if device.type != "cpu" and "nccl" not in dist.get_backend_config():
        raise ValueError(
            f"expected NCCL to spread weights over the ranks on {device.type}, got {dist.get_backend_config()}: give "
            'each process a GPU of its own, or leave sharding="full" out'
        )


@torch.no_grad()
def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's `state_dict` whose parts on all ranks are made whole, on rank 0's CPU; every rank calls it."""
    found = optimizer.state_dict()
    group = ranks()
    state: dict[int, dict[str, Any]] = {}
    with group.meeting("the state of the optimizer"):
        for index, values in sorted(found["state"].items()):  # in one order on all ranks
            for name, value in sorted(values.items()):
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                if group.leads:
                    state.setdefault(index, {})[name] = whole.cpu() if isinstance(whole, Tensor) else whole
    return found | {"state": state}


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory of the tensors in this process; what several have in common counts once."""
    local = [_local(tensor) if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    storages = [tensor.untyped_storage() for tensor in local]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


class _Root(nn.Module):
    """The networks as one module, whose forward is whatever an update computes with them."""

    def __init__(self, networks: nn.ModuleList) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        return function(*args, **kwargs)


class _Exchange:
    """What FSDP exchanges by: each time is a meeting of the ranks, so that one that is missed is named."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)


class _Gathered(_Exchange):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        with ranks().meeting("the weights of a layer"):
            return _ended(group._allgather_base(output_tensor, input_tensor), async_op)


class _Summed(_Exchange):
    """The sum, where FSDP would ask for the mean: the denominators of the loss are those of all ranks."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        options = dist.ReduceScatterOptions()
        options.reduceOp = dist.ReduceOp(dist.ReduceOp.SUM)
        with ranks().meeting("the gradients of a layer"):
            return _ended(group._reduce_scatter_base(output_tensor, input_tensor, options), async_op)


def _ended(work: dist.Work, async_op: bool) -> dist.Work | None:
    if async_op:
        return work
    work.wait()
    return None


def _spread_alone(networks: Networks) -> list[nn.Module]:
    """The layers that are gathered one at a time: those trained whole, whose weights no other module has."""
    modules = networks.together().modules()
    owners = Counter(id(parameter) for module in modules for parameter in module.parameters(recurse=False))
    found: list[nn.Module] = []
    for trunk in [networks.parts] if networks.value_trunk is None else [networks.parts, networks.value_parts]:
        try:
            layers = list(layers_of(trunk))
        except ValueError:  # more than one list of them, or none: they are gathered at once, with the rest
            continue
        for layer in layers:
            own = list(layer.parameters())
            alone = layers.count(layer) == 1 and all(owners[id(p)] == 1 for p in own)
            if own and alone and all(p.requires_grad for p in own):
                found.append(layer)
    return found


def _local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local().detach()


def _free(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def _make(tensor: Tensor, nbytes: int) -> None:
    tensor.untyped_storage().resize_(nbytes)
