"""What of an engine's options fits this machine, whichever engine it is."""

from typing import Literal

from lightrft_core.errors import UserError
from lightrft_core.protocols import Setup

from lightrft_engines.serving.options import ServedConfig

GIBIBYTE = 1 << 30
COLOCATED_SHARE, SERVER_SHARE = 0.4, 0.9
Way = Literal["shared_memory", "ipc", "nccl"]


def refuse_on_cpu(config: ServedConfig, label: str, sleep: str) -> None:
    """`UserError` for options that need a GPU; `sleep` says why the engine cannot sleep without one."""
    reasons = (
        ("sleep", config.sleep, sleep),
        ("quantization", config.quantization is not None, f"{label} rounds weights to fp8 on GPUs only."),
        ("memory_fraction", config.memory_fraction is not None, "it is for GPUs; engine.kv_cache_gb works on CPUs."),
        ("sync", config.sync in ("ipc", "nccl"), f"{config.sync} moves weights between GPUs; use `auto`."),
    )
    for name, is_set, reason in reasons:
        if is_set:
            raise UserError(f"has no effect: {reason}", where=f"engine.{name}", hint="Leave it out.")


def served_dtype(config: ServedConfig, setup: Setup, *, is_on_cpu: bool) -> str:
    """The trainer's numbers; `UserError` where others are asked for: what is served must be what was trained."""
    if setup.strategy is None:
        return "float32" if config.dtype == "auto" and is_on_cpu else config.dtype
    trained = str(next(iter(setup.strategy.weights()))[1].dtype).removeprefix("torch.")
    if config.dtype not in ("auto", trained):
        raise UserError(
            f"the trainer's weights are {trained}, and the engine serves them bit for bit.",
            where="engine.dtype",
            hint="Leave it out, or set strategy.precision alike.",
        )
    return trained


def memory_share(config: ServedConfig) -> float:
    """Of the GPU's memory, weights included."""
    return config.memory_fraction or (COLOCATED_SHARE if config.mode == "colocated" else SERVER_SHARE)


def media_limits(config: ServedConfig) -> dict[str, int] | None:
    """Images and videos that a prompt may have; None where nothing was said."""
    given = {"image": config.max_images, "video": config.max_videos}
    return {kind: number for kind, number in given.items() if number is not None} or None


def sync_way(config: ServedConfig, *, is_on_cpu: bool) -> Way:
    """How weights travel: as `engine.sync` names it, or as it fits the machine."""
    if config.quantization is not None and config.sync in ("ipc", "nccl"):
        raise UserError(
            "has no effect: weights that are rounded on arrival go through shared memory, where they can be proven.",
            where="engine.sync",
            hint="Leave it out.",
        )
    if config.sync != "auto":
        return config.sync
    if is_on_cpu or config.quantization is not None:
        return "shared_memory"
    return "ipc" if config.url is None else "nccl"
