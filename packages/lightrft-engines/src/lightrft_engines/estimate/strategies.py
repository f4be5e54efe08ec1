"""Which formulas belong to which strategy."""

from lightrft_core.errors import UserError

from lightrft_engines.estimate.holdings import Ground, Holdings, Sharded, Whole
from lightrft_engines.estimate.zero import Zero
from lightrft_engines.training.config import DDPConfig, DeepSpeedConfig, Fsdp2Config, SingleConfig, TrainingConfig


def holdings_of(config: TrainingConfig, ground: Ground) -> Holdings:
    """Of a strategy's options. `UserError` where the ranks do not suit them."""
    match config:
        case SingleConfig():
            return Whole(ground, overlaps=False, adam_offload=config.adam_offload)
        case DDPConfig():
            return Whole(ground, overlaps=True, adam_offload=config.adam_offload)
        case DeepSpeedConfig():
            return Zero(ground, config)
        case Fsdp2Config():
            return Sharded(
                ground,
                shards=_shards(config, ground.ranks),
                master_weights=config.master_weights,
                reshard_after_forward=config.reshard_after_forward,
                cpu_offload=config.cpu_offload,
                adam_offload=config.adam_offload,
            )
    raise TypeError(f"no formulas for {type(config).__name__}")


def _shards(config: Fsdp2Config, ranks: int) -> int:
    """Ranks that share one copy of what a rank computes with."""
    _require_divisor(config.tensor_parallel, ranks, "strategy.tensor_parallel")
    data_ranks = ranks // config.tensor_parallel
    shards = config.shard_size or data_ranks
    _require_divisor(shards, data_ranks, "strategy.shard_size")
    return shards


def _require_divisor(part: int, ranks: int, where: str) -> None:
    if ranks % part:
        hint = f"Choose a divisor of {ranks}."
        raise UserError(f"{part} does not divide the {ranks} ranks there are.", where=where, hint=hint)
