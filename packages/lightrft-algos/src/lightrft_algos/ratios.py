"""The log-ratio of new to old policy, bounded so that its exponential is finite, and what every loss tells of it."""

from lightrft_core.data import LossInputs, Tensor

MAX_LOG_RATIO = 20.0


def log_ratio(inputs: LossInputs) -> Tensor:
    """`l - l_old` at trained tokens, 0 elsewhere [B, T]; carries the gradient, not bounded."""
    return (inputs.logprobs_BT - inputs.old_logprobs_BT).masked_fill(~inputs.mask_BT, 0.0)


def bounded(log_ratios: Tensor) -> Tensor:
    """Held within +-20: what is further off costs a finite number and has no gradient."""
    return log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def is_out_of_bounds(log_ratios: Tensor) -> Tensor:
    """1 where `bounded` would change the value, else 0; of the same type, without gradient."""
    return (log_ratios.detach().abs() > MAX_LOG_RATIO).to(log_ratios.dtype)


def token_mean(values_BT: Tensor, inputs: LossInputs) -> Tensor:
    """Mean over each row's trained tokens [B]; 0 for a row without any."""
    return values_BT.masked_fill(~inputs.mask_BT, 0.0).sum(-1) / inputs.mask_BT.sum(-1).clamp(min=1)


def ratio_metrics(log_ratios: Tensor) -> dict[str, Tensor]:
    """`ratio`, `approx_kl` (KL(old || new) by `r - 1 - log r`) and `clamp_fraction` (log-ratios beyond +-20)."""
    held = bounded(log_ratios.detach())
    ratios = held.exp()
    return {
        "ratio": ratios,
        "approx_kl": ratios - 1.0 - held,
        "clamp_fraction": is_out_of_bounds(log_ratios),
    }
