"""One token per row from logits: temperature, then top-k, then top-p, then min-p, then a draw by the row's own number.

The order is transformers' (`GenerationMixin._get_logits_processor`). Each cut sees the renormalised result of those
before it, and tokens as likely as the last one kept stay in. A draw inverts the cumulative distribution in token order
at a uniform number that is a hash of (seed, position): it depends on nothing else in the batch.
"""

import math

import torch
from lightrft_core.data import Sampling
from torch import Tensor

# splitmix64's increment and multipliers (Steele, Lea, Flood 2014), as signed 64-bit integers
INCREMENT = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
MULTIPLIER_2 = 0x94D049BB133111EB - 2**64
BLOCK = 64
BISECTIONS = 26
BELOW_ONE = 1 - 2**-52


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Token ids [B] and the log-probabilities [B] of the distribution that they were drawn from; may overwrite logits.

    Temperature 0 takes the likeliest token, ignores the cuts, and reports its log-probability at temperature 1. A row
    whose logits are not finite gets a log-probability of NaN.
    """
    scores_BV = logits_BV.float()
    if sampling.temperature == 0:
        return _greedy(scores_BV)
    if sampling.temperature != 1:
        scores_BV = scores_BV / sampling.temperature
    return invert(truncate(scores_BV, sampling), uniforms_B)


def truncate(scores_BV: Tensor, sampling: Sampling) -> Tensor:
    """Tempered scores with what top-k, top-p and min-p cut away at -inf."""
    num_tokens = scores_BV.shape[-1]
    if 0 < sampling.top_k < num_tokens:
        floor_B1 = torch.topk(scores_BV, sampling.top_k).values[:, -1:]
        scores_BV = scores_BV.masked_fill(scores_BV < floor_B1, -math.inf)
    if sampling.top_p < 1:
        scores_BV = scores_BV.masked_fill(scores_BV < nucleus_floor(scores_BV, sampling.top_p), -math.inf)
    if sampling.min_p > 0:
        floor_B1 = scores_BV.amax(-1, keepdim=True) + math.log(sampling.min_p)
        scores_BV = scores_BV.masked_fill(scores_BV < floor_B1, -math.inf)
    return scores_BV


def uniforms(seeds_B: Tensor, positions_B: Tensor) -> Tensor:
    """Numbers in [0, 1), float64, each a function of its seed and position alone (the finaliser of splitmix64)."""
    bits_B = seeds_B + positions_B * INCREMENT
    bits_B = (bits_B ^ _shift_right(bits_B, 30)) * MULTIPLIER_1
    bits_B = (bits_B ^ _shift_right(bits_B, 27)) * MULTIPLIER_2
    bits_B = bits_B ^ _shift_right(bits_B, 31)
    return _shift_right(bits_B, 11).double() * 2.0**-53


def _shift_right(bits_B: Tensor, num: int) -> Tensor:
    """A logical shift: torch's own repeats the sign bit."""
    return (bits_B >> num) & ((1 << (64 - num)) - 1)


def _greedy(scores_BV: Tensor) -> tuple[Tensor, Tensor]:
    best_B1 = _likeliest(scores_BV)
    logprobs_B = scores_BV.gather(-1, best_B1).squeeze(-1) - scores_BV.logsumexp(-1)
    return best_B1.squeeze(-1), logprobs_B


def _likeliest(scores_BV: Tensor) -> Tensor:
    """What `argmax` gives, [B, 1]: first among blocks of tokens, because it is several times slower than a maximum."""
    if scores_BV.shape[-1] % BLOCK:
        return scores_BV.argmax(-1, keepdim=True)
    scores_BNK = scores_BV.unflatten(-1, (-1, BLOCK))
    block_B1 = scores_BNK.amax(-1).argmax(-1, keepdim=True)
    inside_BK = scores_BNK.take_along_dim(block_B1.unsqueeze(-1), 1).squeeze(1)
    return block_B1 * BLOCK + inside_BK.argmax(-1, keepdim=True)


def nucleus_floor(scores_BV: Tensor, top_p: float | Tensor) -> Tensor:
    """A floor [B, 1] above which just the nucleus lies: a token is in it while likelier ones have less than `top_p`.

    Found by bisection, in passes over the vocabulary that cost a fraction of a sort. What lies below the first low has
    less than 1 - `top_p` together, however it is spread.
    """
    high_B1 = scores_BV.amax(-1, keepdim=True)
    mass_BV = (scores_BV - high_B1).exp_()
    total_B1 = mass_BV.sum(-1, keepdim=True)
    low_B1 = high_B1 + (total_B1 * ((1 - top_p) / scores_BV.shape[-1])).log() - 1e-3
    above_BV = torch.empty_like(mass_BV)  # as floats: much faster to multiply and sum than booleans
    for _ in range(BISECTIONS):
        middle_B1 = (low_B1 + high_B1) / 2
        torch.ge(scores_BV, middle_B1, out=above_BV)
        holds_B1 = above_BV.mul_(mass_BV).sum(-1, keepdim=True) >= top_p * total_B1
        low_B1, high_B1 = torch.where(holds_B1, middle_B1, low_B1), torch.where(holds_B1, high_B1, middle_B1)
    return low_B1


def invert(scores_BV: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution in two levels: among blocks of tokens, then inside the block that was hit.

    Scores are overwritten: a fresh buffer of this size would cost more than the arithmetic.
    """
    mass_BV = scores_BV.sub_(scores_BV.amax(-1, keepdim=True)).exp_()
    if mass_BV.shape[-1] % BLOCK:
        mass_BV = torch.nn.functional.pad(mass_BV, (0, BLOCK - mass_BV.shape[-1] % BLOCK))
    mass_BNK = mass_BV.view(len(mass_BV), -1, BLOCK)
    blocks_BN = mass_BNK.sum(-1).double()
    edges_BN = blocks_BN.cumsum(-1)
    total_B1 = edges_BN.narrow(-1, -1, 1)
    target_B1 = uniforms_B.unsqueeze(-1) * total_B1
    block_B1 = _first_above(edges_BN, target_B1)
    rest_B1 = target_B1.sub_(edges_BN.gather(-1, block_B1)).add_(blocks_BN.gather(-1, block_B1))
    inside_BK = mass_BNK.gather(1, block_B1.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1).double()
    place_B1 = _first_above(inside_BK.cumsum(-1), rest_B1)
    logprobs_B1 = inside_BK.gather(-1, place_B1).div_(total_B1).log_().float()
    return block_B1.mul_(BLOCK).add_(place_B1).squeeze(-1), logprobs_B1.squeeze(-1)


def _first_above(edges_BK: Tensor, target_B1: Tensor) -> Tensor:
    """Index [B, 1] of the first edge above the target: never an entry without mass, whatever was rounded."""
    target_B1 = torch.minimum(target_B1, edges_BK.narrow(-1, -1, 1) * BELOW_ONE).clamp_min_(0)
    return torch.searchsorted(edges_BK, target_B1, right=True).clamp_max_(edges_BK.shape[-1] - 1)
