"""Options of the text adapter and the `single` strategy. Free of torch, so that the command line can read them."""

from collections.abc import Mapping
from typing import Literal

from lightrft_core.sections import Idle, ModelSection, Section
from pydantic import Field


class TextConfig(ModelSection):
    """A Hugging Face causal language model."""

    attention: Literal["auto", "lightrft", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention code; `auto` is LightRFT's own (packs rows, shares prompts) where the model allows it, else torch's
    SDPA, else plain."""
    chat_template: str | None = None
    """A Jinja template file, or `plain` to join the messages' contents by blank lines; by default the tokenizer's own,
    and `plain` with a warning where it has none."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, where it is not the model's."""


class SingleConfig(Section):
    """One whole model per rank, AdamW, gradients summed over micro-batches and ranks."""

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
    checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    ema: bool = False
    """Keep a moving average of the weights beside them, in fp32: `lightrft export --ema` writes it."""
    ema_beta: float = Field(default=0.992, ge=0, lt=1)
    """What one optimizer step keeps of the average."""

    def idle(self) -> Mapping[str, Idle]:
        """Without an average there is nothing to keep of it."""
        return {} if self.ema else {"ema_beta": Idle("ema", "strategy.ema is off, so no average is kept.")}
