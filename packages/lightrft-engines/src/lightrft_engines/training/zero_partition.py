"""Where DeepSpeed keeps this rank's part of masters, moments and gradients: one small class per kind of optimizer.

Masters are flat tensors of many parameters one after the other; a parameter's part lies in one of them. DeepSpeed has
public functions for whole tensors only, and of parts for stage 3 only, hence the look into its optimizers here.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID, DeepSpeedZeroOptimizer
from torch import Tensor, nn

from lightrft_engines.training.spans import Span


class Home(NamedTuple):
    """A parameter's part on this rank: `num` entries of `flat` from `offset`, its own entries from `start`."""

    flat: Tensor
    offset: int
    num: int
    start: int

    def of(self, flat: Tensor) -> Tensor:
        """The part in another tensor that lies like `flat`: [N]."""
        return flat.detach().narrow(0, self.offset, self.num)


class Partition(Protocol):
    """This rank's share of what an optimizer holds."""

    @property
    def flats(self) -> list[Tensor]:
        """The masters, in fp32."""

    def home(self, parameter: nn.Parameter) -> Home:
        """Where a parameter's part is."""

    def begin(self) -> None:
        """Before the first pass of a step."""

    def finish(self) -> None:
        """After its last one."""

    def gradients(self) -> list[Tensor]:
        """What the next step uses, this rank's part of all of it."""

    def clear(self) -> None:
        """Forget the gradients."""

    def publish(self) -> None:
        """Give the model the masters, after these were written to."""


def partition_of(engine: DeepSpeedEngine) -> Partition:
    """Of an engine that trains."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return Sharded(optimizer)
    if isinstance(optimizer, BF16_Optimizer):
        return Accumulated(optimizer)
    return Flat(optimizer)


def part_of(parameter: nn.Parameter) -> Span:
    """In stage 3: this rank's part of a parameter, free of padding, for reading and writing.

    Whole copies must be gone before it is written to, or it is not what the model computes with.
    """
    size = parameter.partition_numel()
    start = min(parameter.ds_zero_partition_rank * size, parameter.ds_numel)
    num = min(size, parameter.ds_numel - start)
    return Span(parameter.ds_tensor.data.narrow(0, 0, num), start, parameter.ds_shape)


class Flat:
    """Stages 1 and 2."""

    def __init__(self, optimizer: DeepSpeedZeroOptimizer) -> None:
        self._optimizer = optimizer

    @property
    def flats(self) -> list[Tensor]:
        """One per group of parameters."""
        return list(self._optimizer.single_partition_of_fp32_groups)

    def home(self, parameter: nn.Parameter) -> Home:
        """As DeepSpeed has linked it."""
        return _linked(parameter, self.flats)

    def begin(self) -> None:
        """Of parameters without a gradient nothing may be left."""
        if self._optimizer.cpu_offload:
            for flat in self.flats:
                flat.grad.zero_()

    def finish(self) -> None:
        """Stage 1 has reduced in its last pass; stage 2 in all of them, and puts together what it has."""
        if self._optimizer.partition_gradients:
            self._optimizer.finalize_gradient_accumulation_boundary()

    def gradients(self) -> list[Tensor]:
        """Pieces in a row, padding included."""
        if self._optimizer.cpu_offload:
            return [flat.grad for flat in self.flats]
        return [piece for pieces in self._optimizer.averaged_gradients.values() for piece in pieces or ()]

    def clear(self) -> None:
        """As DeepSpeed does where it finds an overflow."""
        optimizer = self._optimizer
        optimizer.zero_grad(set_to_none=True)
        optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
        if optimizer.cpu_offload:
            optimizer.reset_cpu_buffers()
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = optimizer.all_grad_tensors[group] = None

    def publish(self) -> None:
        """Each rank hands its part to all."""
        self._optimizer.update_lp_params()


class Accumulated:
    """Stage 1 with bf16 and gradients that add up in fp32, whole on every rank: DeepSpeed has its own class for it."""

    def __init__(self, optimizer: BF16_Optimizer) -> None:
        self._optimizer = optimizer

    @property
    def flats(self) -> list[Tensor]:
        """One per group of parameters."""
        return list(self._optimizer.fp32_groups_flat_partition)

    def home(self, parameter: nn.Parameter) -> Home:
        """As DeepSpeed has linked it."""
        return _linked(parameter, self.flats)

    def begin(self) -> None:
        """The buffers are at zero."""

    def finish(self) -> None:
        """Reduced in the last pass."""

    def gradients(self) -> list[Tensor]:
        """This rank's part of the buffers."""
        return list(self._optimizer.fp32_groups_gradient_flat_partition)

    def clear(self) -> None:
        """Zeros again."""
        self._optimizer.zero_grad(set_to_none=True)

    def publish(self) -> None:
        """Each rank hands its part to all."""
        self._optimizer.update_lp_params()


class Sharded:
    """Stage 3."""

    def __init__(self, optimizer: DeepSpeedZeroOptimizer_Stage3) -> None:
        self._optimizer = optimizer

    @property
    def flats(self) -> list[Tensor]:
        """One per group of parameters, or several where that is large."""
        return list(self._optimizer.fp32_partitioned_groups_flat)

    def home(self, parameter: nn.Parameter) -> Home:
        """Parts of equal size, the last with padding."""
        part = part_of(parameter)
        group, offset, _ = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        return Home(self.flats[group], offset, len(part.entries_N), part.start)

    def begin(self) -> None:
        """Of parameters without a gradient nothing may be left."""
        self._optimizer.grad_partitions_flat_buffer.zero_()
        if self._optimizer.offload_optimizer:
            for flat in self.flats:
                flat.grad.zero_()

    def finish(self) -> None:
        """Hand them to the optimizer where that is on the CPU."""
        self._optimizer.finalize_gradient_accumulation_boundary()

    def gradients(self) -> list[Tensor]:
        """All of them, with padding at zero."""
        if self._optimizer.offload_optimizer:
            return [flat.grad for flat in self.flats]
        return [self._optimizer.grad_partitions_flat_buffer]

    def clear(self) -> None:
        """As DeepSpeed does where it finds an overflow."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._optimizer.offload_optimizer:
            self._optimizer.reset_cpu_buffers()
        self._optimizer.averaged_gradients = {}

    def publish(self) -> None:
        """Each rank's part of the model is its own."""
        for parameter in (item for group in self._optimizer.fp16_groups for item in group):
            home = self.home(parameter)
            part_of(parameter).entries_N.copy_(home.of(home.flat))


def _linked(parameter: nn.Parameter, flats: list[Tensor]) -> Home:
    link = parameter._hp_mapping
    if link is None:
        return Home(flats[0], 0, 0, 0)
    masters, own = link.hp_fragment_address, link.lp_fragment_address
    return Home(flats[link.param_group_index], masters.start, masters.numel, own.start)


def with_moments(adamw: torch.optim.AdamW, flats: Iterable[Tensor], moments: Iterable[str]) -> None:
    """Zeros, so that there is a state to save and to write to before the first step."""
    for flat in flats:
        step = torch.zeros((), dtype=torch.float32, device=flat.device)
        zeros = {moment: torch.zeros_like(flat, requires_grad=False) for moment in moments}
        adamw.state[flat] = {"step": step, **zeros}
