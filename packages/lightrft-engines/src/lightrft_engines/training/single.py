"""Strategies with a whole model on every rank: `single`, and `ddp`, which overlaps communication with computing."""

from dataclasses import dataclass

import torch
from lightrft_core.errors import UserError
from lightrft_core.protocols import Setup, World
from lightrft_core.sections import LearningSection

from lightrft_engines.training.config import DDPConfig, PlacedConfig, SingleConfig, TrainingConfig
from lightrft_engines.training.placed import Placed, Placement, Replicas, Source
from lightrft_engines.training.placement import choose_device, choose_dtype
from lightrft_engines.training.roles import Memory, Role, TrainedRole
from lightrft_engines.training.strategy import TorchStrategy
from lightrft_engines.world import open_world, require_group


class SingleStrategy(TorchStrategy):
    """One replica per rank, gradients summed in one all-reduce."""

    def __init__(self, config: SingleConfig, setup: Setup) -> None:
        place = start(config, setup)
        replicas = Replicas(place.device, place.dtype, place.world)
        super().__init__(config, setup, PlacedBackend.of(config, place, replicas))


class DDPStrategy(TorchStrategy):
    """One replica per rank under torch's DistributedDataParallel."""

    def __init__(self, config: DDPConfig, setup: Setup) -> None:
        place = start(config, setup)
        require_group(place.device)
        replicas = Replicas(place.device, place.dtype, place.world, overlaps=True)
        super().__init__(config, setup, PlacedBackend.of(config, place, replicas))


@dataclass(frozen=True, slots=True)
class Place:
    """Where this rank computes, in which numbers, and with whom."""

    device: torch.device
    dtype: torch.dtype
    world: World


def start(config: TrainingConfig, setup: Setup) -> Place:
    """Set threads, choose device and numbers, and join the other ranks."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    refuse_idle(config, device, "activation_offload", "reference_offload")
    world = setup.world if setup.world.size > 1 else open_world(device)
    return Place(device, choose_dtype(config.precision, device), world)


@dataclass(frozen=True, slots=True)
class PlacedBackend:
    """`strategy.Backend` whose roles are placed modules with an optimizer of ours."""

    world: World
    device: torch.device
    dtype: torch.dtype
    placement: Placement
    memory: Memory
    reference_offload: bool

    @classmethod
    def of(cls, config: PlacedConfig, place: Place, placement: Placement) -> "PlacedBackend":
        """For a started strategy."""
        refuse_idle(config, place.device, "adam_offload", "optimizer_offload")
        cpu = torch.device("cpu")
        memory = Memory(
            config.checkpointing,
            config.activation_offload,
            config.checkpointing_reentrant,
            masters_on=cpu if config.adam_offload else None,
            rests_on=cpu if config.optimizer_offload else None,
        )
        return cls(place.world, place.device, place.dtype, placement, memory, config.reference_offload)

    @property
    def lockstep(self) -> bool:
        """As the placement says."""
        return self.placement.lockstep

    @property
    def serves_in_place(self) -> bool:
        """As the placement says."""
        return self.placement.serves_in_place

    def trained(self, source: Source, section: LearningSection, num_steps: int) -> Role:
        """Placed, with an optimizer."""
        placed = self.placement.place(source, learns=True)
        return TrainedRole(placed, section, num_steps, self.world, self.memory, lora=source.lora)

    def frozen(self, source: Source) -> Placed:
        """Placed; on the CPU between its calls where that was asked for."""
        return self.placement.place(source, learns=False, sleeps=self.reference_offload)


def refuse_idle(config: TrainingConfig, device: torch.device, *names: str) -> None:
    """What moves memory from a GPU to the CPU does nothing on a CPU."""
    if device.type != "cpu":
        return
    for name in names:
        if getattr(config, name):
            where, hint = f"strategy.{name}", "It is for GPUs: leave it out."
            raise UserError("has no effect: the model is on the CPU.", where=where, hint=hint)
