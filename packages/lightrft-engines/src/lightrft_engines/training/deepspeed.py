"""ZeRO by DeepSpeed: optimizer state (stage 1), gradients (2) and weights (3) partitioned over the ranks.

DeepSpeed partitions, communicates and updates; the step around it is that of every strategy here, so that the same rows
give the same weights, and checkpoints are ours: safetensors that any strategy goes on from.
"""

from dataclasses import dataclass

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from lightrft_core.errors import UserError
from lightrft_core.protocols import Setup, World
from lightrft_core.sections import LearningSection

from lightrft_engines.training.config import DeepSpeedConfig
from lightrft_engines.training.placed import Call, Frozen, Replicas, Source
from lightrft_engines.training.roles import Memory, Role
from lightrft_engines.training.rules import decay_groups
from lightrft_engines.training.single import Place, refuse_idle, start
from lightrft_engines.training.strategy import TorchStrategy
from lightrft_engines.training.zero_engine import join, loaded, opened, settings_for, spread
from lightrft_engines.training.zero_role import ZeroFrozen, ZeroRole
from lightrft_engines.world import require_group


class DeepSpeedStrategy(TorchStrategy):
    """Partitioned over the ranks by DeepSpeed."""

    def __init__(self, config: DeepSpeedConfig, setup: Setup) -> None:
        place = start(config, setup)
        refuse_idle(config, place.device, "adam_offload", "overlap_comm")
        _require_possible(config, place)
        require_group(place.device)
        join(place)
        super().__init__(config, setup, DeepSpeedBackend(config, place))


@dataclass(frozen=True, slots=True)
class DeepSpeedBackend:
    """`strategy.Backend` with an engine for each module."""

    config: DeepSpeedConfig
    place: Place

    lockstep = True

    @property
    def world(self) -> World:
        """The ranks of this run."""
        return self.place.world

    @property
    def device(self) -> torch.device:
        """Where the models live."""
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        """What they compute in."""
        return self.place.dtype

    @property
    def is_sharded(self) -> bool:
        """Stage 3 has no whole weights."""
        return self.config.stage == 3

    @property
    def serves_in_place(self) -> bool:
        """Where weights are whole, the module is an ordinary one."""
        return not self.is_sharded

    def trained(self, source: Source, section: LearningSection, num_steps: int) -> Role:
        """An engine with an optimizer."""
        call = loaded(source, self.place, learns=True, by_first_rank=self.is_sharded)
        learning = [parameter for parameter in call.parameters() if parameter.requires_grad]
        adamw = torch.optim.AdamW(  # before the parameters are cut and matrices look like vectors
            decay_groups(learning, section.weight_decay),
            lr=section.lr,
            betas=section.betas,
            eps=section.eps,
            fused=self.device.type in ("cpu", "cuda"),
        )
        engine = self._opened(call, adamw, offload=self.config.cpu_offload)
        config = self.config
        memory = Memory(config.checkpointing, config.activation_offload, config.checkpointing_reentrant)
        return ZeroRole(engine, adamw, section, num_steps, self.world, memory, lora=source.lora)

    def frozen(self, source: Source) -> Frozen:
        """Whole on every rank, or in stage 3 an engine without an optimizer."""
        sleeps = self.config.reference_offload
        if not self.is_sharded:
            replicas = Replicas(self.device, self.dtype, self.world)
            return replicas.place(source, learns=False, sleeps=sleeps)
        call = loaded(source, self.place, learns=False, by_first_rank=True)
        return ZeroFrozen(self._opened(call, None, offload=sleeps or self.config.cpu_offload), self.dtype)

    def _opened(self, call: Call, adamw: torch.optim.AdamW | None, *, offload: bool) -> DeepSpeedEngine:
        settings = settings_for(self.config, call, self.dtype, offload=offload)
        if self.is_sharded:
            spread(call, settings, self.device)
        return opened(call, settings, adamw)


def _require_possible(config: DeepSpeedConfig, place: Place) -> None:
    if place.world.size % config.zpg:
        raise UserError(
            f"{config.zpg} ranks cannot keep a second copy of the weights: it does not divide the {place.world.size} "
            "ranks of this run.",
            where="strategy.zpg",
            hint=f"Choose a divisor of {place.world.size}.",
        )
    if config.grad_accum_dtype == "bf16" and place.dtype != torch.bfloat16:
        raise UserError(
            "the model computes in fp32, so its gradients are fp32 too.",
            where="strategy.grad_accum_dtype",
            hint="Leave it out, or set `strategy.precision: bf16`.",
        )
