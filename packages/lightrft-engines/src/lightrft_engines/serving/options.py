"""What engines with a process of their own have in common: their options are the same, whichever it is."""

from collections.abc import Mapping
from typing import Annotated, Literal

from lightrft_core.sections import Idle, Section
from pydantic import Field

Share = Annotated[float, Field(gt=0, le=1)]


class ServedConfig(Section):
    """An engine beside the trainer: on its devices, or as a server that this run starts or attaches to."""

    mode: Literal["colocated", "server"] = "colocated"
    """`colocated` runs it on each rank's device; `server` starts one server, or attaches to `url`."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs (on CPUs: processes) that share one copy of the model; colocated it divides the number of ranks."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers that it computes in; `auto` are the trainer's, and others are refused: weights are served bit for bit."""
    quantization: Literal["fp8"] | None = None
    """Generate with weights rounded to 8 bits, on GPUs. What is sampled is then not quite the trained policy, so the
    run needs a `correction`, such as `{use: tis}`."""
    memory_fraction: Share | None = None
    """Share of the GPU's memory that it may take, weights included; by default 0.4 colocated and 0.9 in a server."""
    kv_cache_gb: float | None = Field(default=None, gt=0)
    """Memory for keys and values in GiB, instead of what `memory_fraction` leaves; on CPUs by default 1."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Longest prompt and completion together, in tokens; by default all positions that the model has."""
    max_sequences: int = Field(default=256, ge=1)
    """Completions that are written at once; others wait."""
    enforce_eager: bool | None = None
    """Run without compiled code and CUDA graphs; by default on CPUs, where compiling takes longer than it saves."""
    sleep: bool = False
    """Give memory back while the trainer works, on GPUs."""
    sleep_level: Literal[1, 2] = 2
    """1 moves the weights to the CPU's memory, 2 drops them until the next sync; both drop keys and values."""
    max_images: int | None = Field(default=None, ge=0)
    """Images that a prompt may have, for models that see."""
    max_videos: int | None = Field(default=None, ge=0)
    """Videos that a prompt may have, for models that see."""
    bucket_mb: int = Field(default=512, ge=1)
    """Weights travel to the engine in buckets of this many MiB, never one by one."""
    sync: Literal["auto", "shared_memory", "ipc", "nccl"] = "auto"
    """How weights reach a server: through shared memory, by CUDA IPC (its GPU is the trainer's) or by NCCL (other
    GPUs); `auto` is shared memory on CPUs, and on GPUs IPC for a server started here and NCCL for another."""
    time_limit: float | None = Field(default=None, gt=0)
    """Seconds that one call may generate; what is not done then comes back as it is, with the finish reason `abort`. By
    default there is no limit."""
    url: str | None = Field(default=None, min_length=1)
    """Address of a running server to attach to, such as `http://127.0.0.1:8000`; by default one is started."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port of a server that is started; by default a free one."""
    start_timeout: float = Field(default=600, gt=0)
    """Seconds until a started server must be ready."""
    restart: bool = False
    """Start the server anew, with the trained weights, when it dies; at most once in a step. Off: the run fails."""

    def idle(self) -> Mapping[str, Idle]:
        """What the mode and the other options leave without effect."""
        found: dict[str, Idle] = {}
        if self.mode == "colocated":
            reason = "engine.mode is colocated, so there is no server."
            found |= dict.fromkeys(("url", "port", "start_timeout", "restart", "sync"), Idle("mode", reason))
        if self.url is not None:
            found |= dict.fromkeys(STARTED, Idle("url", "the server at engine.url was started with its own options."))
        if self.kv_cache_gb is not None:
            found["memory_fraction"] = Idle("kv_cache_gb", "engine.kv_cache_gb sets the memory. Give one of the two.")
        if not self.sleep:
            found["sleep_level"] = Idle("sleep", "engine.sleep is off.")
        return found


STARTED = (
    "tensor_parallel", "dtype", "quantization", "memory_fraction", "kv_cache_gb", "max_model_len", "enforce_eager",
    "max_images", "max_videos", "port", "start_timeout", "restart",
)  # fmt: skip
"""Options of a server that is started here."""
