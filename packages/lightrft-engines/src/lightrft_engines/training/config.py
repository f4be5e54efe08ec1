"""Options of the strategies. Free of torch, so that the command line can read them."""

from collections.abc import Mapping
from typing import Literal

from lightrft_core.sections import Idle, Section
from pydantic import Field


class TrainingConfig(Section):
    """What every strategy of this package can be told."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Numbers that the model computes with; `auto` is fp32 on CPUs and bf16 on GPUs that have it. With bf16 the
    optimizer keeps fp32 master weights and adds gradients up in fp32."""
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
    """Tokens whose logits exist at one time; by default as many as fit into 4 MiB on CPUs and 128 MiB on
    GPUs, and at least 128."""
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
    activation_offload: bool = False
    """Keep activations in the CPU's memory between forward and backward pass. For GPUs."""
    reference_offload: bool = False
    """Keep the reference of a KL in the CPU's memory while it does not compute. For GPUs."""
    ema: bool = False
    """Keep a moving average of the weights beside them, in fp32: `lightrft export --ema` writes it."""
    ema_beta: float = Field(default=0.992, ge=0, lt=1)
    """What one optimizer step keeps of the average."""

    def idle(self) -> Mapping[str, Idle]:
        """Options that do nothing beside the others."""
        found = {} if self.ema else {"ema_beta": Idle("ema", "strategy.ema is off, so no average is kept.")}
        if self.sequence_parallel > 1:
            found["balance"] = Idle("sequence_parallel", "Ranks that share sequences always balance their rows.")
        return found


class SingleConfig(TrainingConfig):
    """One whole model per rank, AdamW, gradients summed over micro-batches and ranks."""


class DDPConfig(TrainingConfig):
    """One whole model per rank under torch's DistributedDataParallel."""


class Fsdp2Config(TrainingConfig):
    """Parameters, gradients and optimizer state sharded over the ranks by torch's `fully_shard`."""

    shard_size: int | None = Field(default=None, ge=1)
    """Ranks that share one copy of the weights (HSDP); it divides the number of ranks. By default all ranks do."""
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
