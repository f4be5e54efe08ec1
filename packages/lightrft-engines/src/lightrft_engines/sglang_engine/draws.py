"""How SGLang draws tokens for LightRFT: the embedded engine's draws, with every row's own seed and settings.

SGLang's own samplers return log-probabilities of the distribution before truncation, and take a seed per request only
in its deterministic mode. This one returns them of what was sampled, and a row's draw depends on its seed alone.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightrft_engines.decode.distribution import INCREMENT, invert, nucleus_floor, uniforms

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.layers.sampler import Sampler
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

MODULUS = 1 << 64


def forward(
    sampler: "Sampler",
    logits_output: "LogitsProcessorOutput",
    sampling_info: "SamplingBatchInfo",
    return_logprob: bool,
    top_logprobs_nums: Sequence[int],
    token_ids_logprobs: Sequence[Any],  # Any: others' lists of token ids
    positions: Tensor,
) -> Tensor:
    """In place of SGLang's `Sampler.forward`: token ids [B], and with `return_logprob` what they were drawn with."""
    logits_BV = sampler._preprocess_logits(logits_output.next_token_logits, sampling_info)
    tokens_B, logprobs_B = draw_rows(logits_BV, positions, sampling_info)
    if return_logprob:
        logits_output.next_token_logprobs = logprobs_B
    sampler._sync_token_ids_across_tp(tokens_B, sampling_info)
    return tokens_B


def draw_rows(logits_BV: Tensor, positions_B: Tensor, info: "SamplingBatchInfo") -> tuple[Tensor, Tensor]:
    """As `decode.distribution.draw`, with settings of each row; nothing is read back from the device.

    SGLang writes temperature 0 as `top_k` 1 at temperature 1.
    """
    scores_BV = logits_BV.float()
    best_B1 = scores_BV.argmax(-1, keepdim=True)
    likeliest_B = scores_BV.gather(-1, best_B1).squeeze(-1) - scores_BV.logsumexp(-1)
    if info.is_all_greedy:
        return best_B1.squeeze(-1).int(), likeliest_B
    cut_BV = _truncate(scores_BV / info.temperatures, info)
    tokens_B, logprobs_B = invert(cut_BV, uniforms(info.sampling_seed, positions_B.long()))
    is_greedy_B = info.top_ks <= 1
    tokens_B = torch.where(is_greedy_B, best_B1.squeeze(-1), tokens_B)
    return tokens_B.int(), torch.where(is_greedy_B, likeliest_B, logprobs_B)


def _truncate(scores_BV: Tensor, info: "SamplingBatchInfo") -> Tensor:
    if info.need_top_k_sampling:
        places_B1 = (info.top_ks.long() - 1).clamp_max(scores_BV.shape[-1] - 1).unsqueeze(-1)
        floor_B1 = scores_BV.sort(-1, descending=True).values.gather(-1, places_B1)
        scores_BV = scores_BV.masked_fill(scores_BV < floor_B1, -math.inf)
    if info.need_top_p_sampling:
        top_ps_B1 = info.top_ps.unsqueeze(-1)
        is_cut_BV = (scores_BV < nucleus_floor(scores_BV, top_ps_B1)) & (top_ps_B1 < 1)
        scores_BV = scores_BV.masked_fill(is_cut_BV, -math.inf)
    if info.need_min_p_sampling:
        floor_B1 = scores_BV.amax(-1, keepdim=True) + info.min_ps.unsqueeze(-1).log()
        scores_BV = scores_BV.masked_fill(scores_BV < floor_B1, -math.inf)
    return scores_BV


def shifted_seed(seed: int, num_prompt_tokens: int) -> int:
    """A seed for SGLang's absolute positions that gives what the seed gives for positions in the completion.

    The number drawn is a hash of `seed + position * INCREMENT`, and the first token is drawn at the prompt's last.
    """
    shifted = (seed - (num_prompt_tokens - 1) * INCREMENT) % MODULUS
    return shifted - MODULUS if shifted >= MODULUS // 2 else shifted
