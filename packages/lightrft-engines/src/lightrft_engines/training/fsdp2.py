"""FSDP2: every parameter is a DTensor, a shard on each rank; `fully_shard` gathers a block's before it computes.

Units are the model's blocks (`_no_split_modules`, or what a patch names) and one for all the rest. Gradients are added
up, not averaged: losses are shares of the whole step over all ranks.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightrft_core.abilities import LoraAdapter
from lightrft_core.errors import UserError
from lightrft_core.protocols import Setup
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lightrft_engines.training.config import Fsdp2Config
from lightrft_engines.training.gradients import Gradients, gradient_of, squares
from lightrft_engines.training.meshes import Meshes
from lightrft_engines.training.optimizer import master_of
from lightrft_engines.training.placed import Call, Placed, Source
from lightrft_engines.training.placement import cast_parameters
from lightrft_engines.training.single import Place, PlacedBackend, start
from lightrft_engines.training.strategy import TorchStrategy
from lightrft_engines.training.tensor_parallel import split_layers
from lightrft_engines.world import require_group

Result = TypeVar("Result")


class Shards:
    """`placed.Placed` over the ranks of a mesh."""

    def __init__(self, call: Call, dtype: torch.dtype, meshes: Meshes, master_weights: bool) -> None:
        self.module, self.dtype = call.module, dtype
        self._call, self._meshes, self._master_weights = call, meshes, master_weights

    def awake(self) -> AbstractContextManager[None]:
        """FSDP fetches what rests on the CPU by itself."""
        return nullcontext()

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """Through FSDP's hooks; afterwards weights are shards again."""
        found: Result = self._call(function, *arguments)
        if not torch.is_grad_enabled():
            self._call.reshard()
        return found

    def own(self) -> dict[str, Tensor]:
        """Local shards."""
        return {name: parameter.to_local().detach() for name, parameter in self._parameters()}

    def trained(self) -> list[str]:
        """Those that take a gradient."""
        return [name for name, parameter in self._parameters() if parameter.requires_grad]

    def held(self, name: str) -> Tensor:
        """One of them."""
        return self.module.get_parameter(name).to_local().detach()

    def master(self, name: str) -> Tensor:
        """The local shard, which is in full precision unless that was declined."""
        local = self.module.get_parameter(name).to_local().detach().requires_grad_()
        return master_of(local) if self._master_weights else local

    def gradients(self, names: Sequence[str], masters: Sequence[Tensor]) -> Gradients:
        """Reduced and scattered in every pass."""
        return ShardGradients([self.module.get_parameter(name) for name in names], masters, self._meshes)

    def whole(self, name: str, own: Tensor) -> Tensor:
        """Gathered from all ranks."""
        parameter = self.module.get_parameter(name)
        return _spread(own.to(self._meshes.device_type), parameter, parameter.device_mesh).full_tensor()

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's shard of it."""
        return shard_of(whole, self.module.get_parameter(name))

    def filed(self, name: str, own: Tensor) -> Tensor:
        """A DTensor of CPU shards."""
        parameter = self.module.get_parameter(name)
        return _spread(own.cpu(), parameter, self._meshes.on_cpu(parameter.device_mesh))

    def _parameters(self) -> Iterator[tuple[str, DTensor]]:
        yield from self.module.named_parameters()


class ShardGradients:
    """`gradients.Gradients` of shards."""

    def __init__(self, parameters: Sequence[nn.Parameter], masters: Sequence[Tensor], meshes: Meshes) -> None:
        self._parameters, self._masters, self._meshes = parameters, masters, meshes
        self.tensors: Sequence[Tensor] = []

    def begin(self) -> None:
        """Nothing is left of the step before."""
        self.end()

    @contextmanager
    def passing(self, is_last: bool) -> Iterator[None]:
        """Every pass is alike."""
        yield

    def absorb(self) -> None:
        """FSDP has added them to the shards."""

    def reduce(self) -> None:
        """Done already; in the type of the masters."""
        grads = [None if item.grad is None else item.grad.to_local() for item in self._parameters]
        triples = zip(self._parameters, grads, self._masters, strict=True)
        self.tensors = [gradient_of(item.to_local(), grad, master.dtype) for item, grad, master in triples]

    def norm(self) -> float:
        """Shards of one copy add up; copies are equal, and so are what tensor ranks hold whole."""
        is_split = ["tensor" in item.device_mesh.mesh_dim_names for item in self._parameters]
        pairs = list(zip(self.tensors, is_split, strict=True))
        whole, split = (squares([tensor for tensor, own in pairs if own is kind]) for kind in (False, True))
        return math.sqrt(self._meshes.sum_over_copy(whole, split))

    def end(self) -> None:
        """Free them."""
        self.tensors = []
        for parameter in self._parameters:
            parameter.grad = None


class Fsdp2Placement:
    """`placed.Placement` by `fully_shard`; `units` are class names of modules that are gathered as one."""

    lockstep = True
    serves_in_place = False

    def __init__(self, config: Fsdp2Config, place: Place, units: Collection[str]) -> None:
        self._config, self._device, self._dtype, self._world = config, place.device, place.dtype, place.world
        self._units = frozenset(units)
        self._meshes = Meshes(place.device, place.world.size, config.shard_size, config.tensor_parallel)

    def place(self, source: Source, *, learns: bool, sleeps: bool = False) -> Placed:
        """Shard it; with `meta_init` rank 0 alone reads the weights."""
        on_cpu = sleeps or self._config.cpu_offload
        if self._config.meta_init and source.skeleton is not None and self._world.size > 1:
            loaded = source.load() if self._world.rank == 0 else None
            call = self._sharded(source.ready(source.skeleton(), learns=learns), on_cpu)
            call.to_empty(device="cpu" if on_cpu else self._device)
            self._hand_out(loaded, call.module)
        else:
            call = self._sharded(source.ready(source.load(), learns=learns), on_cpu)
        call.eval()
        return Shards(call, self._dtype, self._meshes, self._config.master_weights)

    def _sharded(self, module: nn.Module, on_cpu: bool) -> Call:
        is_mixed = self._dtype != torch.float32
        cast_parameters(module, self._dtype, torch.float32 if self._config.master_weights else self._dtype)
        policy = MixedPrecisionPolicy(param_dtype=self._dtype, reduce_dtype=torch.float32) if is_mixed else None
        pins = self._device.type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=pins) if on_cpu else OffloadPolicy()
        options = {
            "mesh": self._meshes.data,
            "reshard_after_forward": self._config.reshard_after_forward,
            "mp_policy": policy or MixedPrecisionPolicy(),
            "offload_policy": offload,
        }
        if self._meshes.tensor_size > 1:
            split_layers(module, self._meshes.tensor)
        call = Call(module)
        for block in shard_units(module, self._units):
            _by_sum(fully_shard(block, **options))
        _by_sum(fully_shard(call, **options))
        return call

    def _hand_out(self, loaded: nn.Module | None, module: nn.Module) -> None:
        """Weights and buffers of rank 0's module to the shards of all ranks, one at a time."""
        weights = dict(loaded.named_parameters()) if loaded is not None else {}
        buffers = dict(loaded.named_buffers()) if loaded is not None else {}
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                whole = self._like(parameter, weights.get(name))
                dist.broadcast(whole, 0)
                parameter.to_local().copy_(shard_of(whole, parameter))
            for name, buffer in module.named_buffers():
                whole = self._like(buffer, buffers.get(name))
                dist.broadcast(whole, 0)
                buffer.copy_(whole)

    def _like(self, wanted: Tensor, value: Tensor | None) -> Tensor:
        """The value on our device; where this rank has none, memory for it."""
        if value is None:
            return torch.empty(wanted.shape, dtype=wanted.dtype, device=self._device)
        return value.detach().to(self._device, wanted.dtype)


def shard_units(module: nn.Module, names: Collection[str] = ()) -> list[nn.Module]:
    """The blocks of a model, innermost first: of the named classes, else of those that it says must not be split."""
    wanted = set(names)
    for part in module.modules() if not wanted else ():
        if isinstance(part, PreTrainedModel):
            wanted |= set(part._no_split_modules or ())
    blocks = [part for part in module.modules() if type(part).__name__ in wanted]
    return blocks[::-1] or _longest_list(module)


def shard_of(whole: Tensor, like: DTensor) -> Tensor:
    """This rank's shard of a tensor that every rank has whole, as `like` is sharded: innermost ranks first."""
    mesh = like.device_mesh
    for axis in reversed(range(mesh.ndim)):
        placement = like.placements[axis]
        if not placement.is_replicate():  # a shard, or a strided one where tensor ranks split the same dimension
            size = -(-whole.shape[placement.dim] // mesh.size(axis))
            start = min(mesh.get_local_rank(axis) * size, whole.shape[placement.dim])
            whole = whole.narrow(placement.dim, start, min(size, whole.shape[placement.dim] - start))
    return whole


def _spread(own: Tensor, like: DTensor, mesh: DeviceMesh) -> DTensor:
    """This rank's part of a whole that lies as `like` does; its rows may be of another length."""
    is_alike = own.shape == like.to_local().shape
    whole = torch.empty(like.shape if is_alike else (like.shape[0], *own.shape[1:]), device="meta")
    return DTensor.from_local(own, mesh, like.placements, run_check=False, shape=whole.shape, stride=whole.stride())


def _longest_list(module: nn.Module) -> list[nn.Module]:
    lists = [list(part) for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _by_sum(module: FSDPModule) -> None:
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)


def _require_possible(config: Fsdp2Config, setup: Setup) -> None:
    """`UserError` for what tensor ranks cannot do."""
    adapter, optimizers = setup.require_model(), {setup.optim.optimizer}
    if setup.critic is not None:
        optimizers.add(setup.critic.optimizer)
    refused = {
        "layers with adapters cannot be split over ranks.": isinstance(adapter, LoraAdapter) and adapter.uses_lora,
        "8-bit moments cannot be split along rows.": "adamw_8bit" in optimizers,
    }
    for what, is_asked in refused.items():
        if is_asked and config.tensor_parallel > 1:
            raise UserError(what, where="strategy.tensor_parallel", hint="Leave it out.")


class Fsdp2Strategy(TorchStrategy):
    """Sharded over the ranks by FSDP2."""

    def __init__(self, config: Fsdp2Config, setup: Setup) -> None:
        _require_possible(config, setup)
        place = start(config, setup)
        require_group(place.device)
        placement = Fsdp2Placement(config, place, setup.shard_units)
        super().__init__(config, setup, PlacedBackend.of(config, place, placement), config.tensor_parallel)
