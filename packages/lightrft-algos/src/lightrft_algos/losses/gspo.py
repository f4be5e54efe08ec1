"""GSPO (arXiv:2507.18071): ratio and clip of whole sequences, as the reward is of whole sequences.

    s = exp(mean_t (l - l_old));  L = -min(s A, clip(s, 1 - low, 1 + high) A)                 (equations 5-7)
    level token: s_t = sg[s] exp(l_t - sg[l_t]);  L_t = -min(s_t A_t, clip(s_t, ...) A_t)    (equations 13-14)

The two have the same gradient where the advantage is one number per sequence and tokens are averaged within sequences.
"""

from collections.abc import Mapping
from typing import Literal

from lightrft_core.data import LossInputs, LossOutput, Tensor
from lightrft_core.sections import Idle, LossSection
from pydantic import Field

from lightrft_algos.ratios import bounded, log_ratio, ratio_metrics, token_mean


class GspoConfig(LossSection):
    """Options of `gspo`."""

    clip_low: float = Field(default=3e-4, ge=0, le=1)
    """How far below 1 the sequence's ratio still counts; it is a geometric mean, so bounds are far below PPO's."""
    clip_high: float = Field(default=4e-4, ge=0)
    """How far above 1 it counts."""
    level: Literal["sequence", "token"] = "sequence"
    """One value per sequence, or GSPO-token: the sequence's ratio with each token's own advantage."""

    def idle(self) -> Mapping[str, Idle]:
        """One value per sequence is averaged over sequences: there are no tokens to aggregate."""
        if self.level == "token":
            return {}
        return dict.fromkeys(("aggregation", "token_budget"), Idle("level", "one value per sequence is averaged."))


def gspo(inputs: LossInputs, *, config: GspoConfig) -> LossOutput:
    """Per sequence with the mean of its tokens' advantages, or per token. Log-ratios are held within +-20.

    Metrics: those of `ratio_metrics` for the sequence's ratio, and `clip_fraction`.
    """
    log_ratio_B = token_mean(log_ratio(inputs), inputs)
    if config.level == "sequence":
        values, is_clipped = _clipped(bounded(log_ratio_B).exp(), token_mean(inputs.advantages_BT, inputs), config)
    else:
        values, is_clipped = _clipped(_own_ratio(inputs, log_ratio_B.detach()), inputs.advantages_BT, config)
    return LossOutput(values, {**ratio_metrics(log_ratio_B), "clip_fraction": is_clipped.to(values.dtype)})


def _own_ratio(inputs: LossInputs, log_ratio_B: Tensor) -> Tensor:
    """The sequence's ratio at each token [B, T], whose gradient goes through that token alone."""
    log_s_B = bounded(log_ratio_B)
    own_BT = inputs.logprobs_BT.masked_fill(~inputs.mask_BT, 0.0)
    is_held_B1 = (log_s_B != log_ratio_B).unsqueeze(1)
    return (log_s_B.unsqueeze(1) + (own_BT - own_BT.detach()).masked_fill(is_held_B1, 0.0)).exp()


def _clipped(ratio: Tensor, advantages: Tensor, config: GspoConfig) -> tuple[Tensor, Tensor]:
    free = -ratio * advantages
    held = -ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high) * advantages
    return free.maximum(held), held > free
