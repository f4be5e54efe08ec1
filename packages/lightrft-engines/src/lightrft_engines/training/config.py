"""Options of the strategies. Free of torch, so that the command line can read them."""

from collections.abc import Mapping
from typing import Literal

from lightrft_core.sections import Idle, Section
from pydantic import Field, model_validator


class TrainingConfig(Section):
    """What every strategy of this package can be told."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numbers that the model computes with; `auto` is fp32 on CPUs and bf16 on GPUs that have it. With bf16 and fp16
    the optimizer keeps fp32 master weights and adds gradients up in fp32. fp16, for GPUs without bf16, scales losses
    dynamically."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    """Where the model lives; `auto` is this rank's GPU where there is one, else the CPU."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; by default as torch decides."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows of one forward and backward pass; never changes the result. By default the token limit decides."""
    max_tokens_per_micro_batch: int | None = Field(default=None, ge=1)
    """Tokens of one forward and backward pass, padding included; by default 2048 on CPUs (their caches) and 16384 on
    GPUs. One row always goes, whatever its length."""
    logprob_micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows of one pass without gradient; by default twice the token limit decides."""
    logprob_chunk: int | None = Field(default=None, ge=1)
    """Tokens whose logits exist at one time, and those for a part of the vocabulary only: fewer take less memory and
    more time. By default at most 2048 on CPUs (16 MiB) and 8192 on GPUs (64 MiB in bf16)."""
    packing: Literal["auto"] | bool = "auto"
    """Lay rows end to end without padding, each prompt once for all its siblings; `auto` does so where the model
    computes the same that way."""
    balance: bool = True
    """Move rows between ranks so that all have like numbers of tokens; never changes the result."""
    sequence_parallel: int = Field(default=1, ge=1)
    """Ranks that share each sequence, so that activations of long ones fit; it divides the number of ranks and the
    model's attention heads."""
    checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    checkpointing_reentrant: bool = False
    """By torch's older, re-entrant checkpoints: each block's backward pass runs inside that of the whole. The gradients
    are the same."""
    activation_offload: bool = False
    """Keep activations in the CPU's memory between forward and backward pass. For GPUs."""
    reference_offload: bool = False
    """Keep the reference of a KL in the CPU's memory while it does not compute. For GPUs."""
    adam_offload: bool = False
    """Keep fp32 weights and optimizer state in the CPU's memory and update there: 12 bytes less per parameter on the
    GPU, and a slower update. For GPUs."""
    ema: bool = False
    """Keep a moving average of the weights beside them, in fp32: `lightrft export --ema` writes it."""
    ema_beta: float = Field(default=0.992, ge=0, lt=1)
    """What one optimizer step keeps of the average."""

    def exporter(self) -> tuple[str, Mapping[str, object]]:
        """Checkpoints of all strategies here are alike."""
        return "single", {"device": "cpu", "precision": "fp32", "ema": self.ema}

    def idle(self) -> Mapping[str, Idle]:
        """Options that do nothing beside the others."""
        found = {} if self.ema else {"ema_beta": Idle("ema", "strategy.ema is off, so no average is kept.")}
        if not self.checkpointing:
            reason = "strategy.checkpointing is off, so nothing is computed again."
            found["checkpointing_reentrant"] = Idle("checkpointing", reason)
        if self.sequence_parallel > 1:
            found["balance"] = Idle("sequence_parallel", "Ranks that share sequences always balance their rows.")
        return found

    @model_validator(mode="after")
    def _packs_what_is_shared(self) -> "TrainingConfig":
        if self.sequence_parallel > 1 and self.packing is False:
            raise ValueError("sequence_parallel cuts packed rows, and packing is false: leave one of the two out")
        return self


class PlacedConfig(TrainingConfig):
    """Of the strategies whose optimizer is this package's own."""

    optimizer_offload: bool = False
    """Keep optimizer state in the CPU's memory while the engine generates, and update on the GPU: room for an engine on
    the same GPU, and two transfers of it in each step. For GPUs."""

    def idle(self) -> Mapping[str, Idle]:
        """Options that do nothing beside the others."""
        found = dict(super().idle())
        if self.adam_offload:
            found["optimizer_offload"] = Idle("adam_offload", "strategy.adam_offload keeps it on the CPU always.")
        return found


class SingleConfig(PlacedConfig):
    """One whole model per rank, AdamW, gradients summed over micro-batches and ranks."""


class DDPConfig(PlacedConfig):
    """One whole model per rank under torch's DistributedDataParallel."""


class DeepSpeedConfig(TrainingConfig):
    """Optimizer state, gradients and weights partitioned over the ranks by DeepSpeed's ZeRO; AdamW."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Numbers that the model computes with; `auto` is fp32 on CPUs and bf16 on GPUs that have it. With bf16 the
    optimizer keeps fp32 master weights."""
    stage: Literal[1, 2, 3] = 2
    """What is partitioned: 1 the optimizer state, 2 gradients too, 3 weights too."""
    overlap_comm: bool = False
    """Reduce gradients beside the backward pass: less waiting, more memory. For GPUs."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state on the CPU, in stage 3."""
    zpg: int = Field(default=1, ge=1)
    """Ranks that keep a second copy of the weights among them, so that the backward pass gathers within a machine
    (ZeRO++); in stage 3. It divides the number of ranks; 1 is off."""
    grad_accum_dtype: Literal["fp32", "bf16"] = "fp32"
    """Numbers that gradients add up in, over passes and ranks, where the model computes in bf16."""

    def idle(self) -> Mapping[str, Idle]:
        """Weights are partitioned in stage 3 alone."""
        found = dict(super().idle())
        if self.stage < 3:
            reason = f"strategy.stage is {self.stage}, where every rank has all weights."
            found |= {"cpu_offload": Idle("stage", reason), "zpg": Idle("stage", reason)}
        if self.cpu_offload:
            found["adam_offload"] = Idle("cpu_offload", "strategy.cpu_offload moves the optimizer state too.")
        return found

    @model_validator(mode="after")
    def _no_weights_among_activations(self) -> "DeepSpeedConfig":
        if self.stage == 3 and self.activation_offload:
            raise ValueError("activation_offload would keep the weights that stage 3 gathers too: use checkpointing")
        return self


class Fsdp2Config(PlacedConfig):
    """Parameters, gradients and optimizer state sharded over the ranks by torch's `fully_shard`."""

    shard_size: int | None = Field(default=None, ge=1)
    """Ranks that share one copy of the weights (HSDP); it divides the number of ranks. By default all ranks do."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Ranks that split each layer's matrices, by the plan that the model brings; it divides the number of ranks and the
    model's heads for keys and values."""
    reshard_after_forward: bool = True
    """Free whole weights after the forward pass and gather them again for the backward pass: less memory, more
    communication."""
    cpu_offload: bool = False
    """Keep shards of parameters, gradients and optimizer state on the CPU."""
    meta_init: bool = True
    """Only rank 0 reads the weights and hands every rank its shards; the others build the model without memory. Off:
    every rank reads all weights."""
    master_weights: bool = True
    """With bf16: keep shards in fp32 and compute in bf16. Off: bf16 throughout, optimizer state too, at a third of
    the memory; small updates are then lost to rounding."""

    def idle(self) -> Mapping[str, Idle]:
        """Options that do nothing beside the others."""
        found = dict(super().idle())
        if self.cpu_offload:
            idle = Idle("cpu_offload", "strategy.cpu_offload keeps all of it on the CPU already.")
            found |= {"adam_offload": idle, "optimizer_offload": idle}
        return found

    @model_validator(mode="after")
    def _full_precision_somewhere(self) -> "Fsdp2Config":
        if self.precision == "fp16" and not self.master_weights:
            raise ValueError("fp16 weights cannot take small updates: precision fp16 needs master_weights")
        return self

    @model_validator(mode="after")
    def _one_way_to_share_a_row(self) -> "Fsdp2Config":
        if self.sequence_parallel > 1 and self.tensor_parallel > 1:
            raise ValueError("sequence_parallel and tensor_parallel cannot both be more than 1")
        return self
