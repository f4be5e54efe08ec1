"""Draws of SGLang's rows, each with settings of its own, against the embedded engine's draws one by one."""

from types import SimpleNamespace

import pytest
import torch
from lightrft_core.data import Sampling
from lightrft_engines.decode.distribution import draw, uniforms
from lightrft_engines.sglang_engine.draws import draw_rows, shifted_seed

KINDS = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.6, "top_k": 4},
    {"top_p": 0.7},
    {"min_p": 0.2, "temperature": 1.4},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.05},
)
EVERYTHING = 1 << 30  # what SGLang writes for no top-k


def info_of(kinds, seeds):
    """As SGLang's SamplingBatchInfo: temperature 0 is top-k 1 at temperature 1."""
    samplings = [Sampling(1, **kind) for kind in kinds]
    greedy = [one.temperature == 0 for one in samplings]
    return SimpleNamespace(
        temperatures=torch.tensor([[1.0 if one.temperature == 0 else one.temperature] for one in samplings]),
        top_ps=torch.tensor([one.top_p for one in samplings]),
        top_ks=torch.tensor(
            [1 if is_greedy else one.top_k or EVERYTHING for one, is_greedy in zip(samplings, greedy, strict=True)],
            dtype=torch.int32,
        ),
        min_ps=torch.tensor([one.min_p for one in samplings]),
        is_all_greedy=all(greedy),
        need_top_p_sampling=any(one.top_p < 1 for one in samplings),
        need_top_k_sampling=any(one.top_k > 0 or is_greedy for one, is_greedy in zip(samplings, greedy, strict=True)),
        need_min_p_sampling=any(one.min_p > 0 for one in samplings),
        sampling_seed=torch.tensor(seeds),
    )


@pytest.mark.parametrize("kinds", [KINDS, KINDS[:1] * 5, KINDS[1:2] * 3, KINDS[:2] * 2])
def test_each_row_is_drawn_as_if_it_were_alone(kinds):
    torch.manual_seed(0)
    logits_BV = torch.randn(len(kinds), 97) * 2
    seeds, positions = list(range(50, 50 + len(kinds))), torch.arange(len(kinds)) + 3
    tokens_B, logprobs_B = draw_rows(logits_BV.clone(), positions, info_of(kinds, seeds))
    for row, kind in enumerate(kinds):
        uniforms_1 = uniforms(torch.tensor([seeds[row]]), positions[row : row + 1])
        token_1, logprob_1 = draw(logits_BV[row : row + 1].clone(), uniforms_1, Sampling(1, **kind))
        assert tokens_B[row] == token_1[0]
        assert logprobs_B[row].item() == pytest.approx(logprob_1.item(), abs=1e-5)


@pytest.mark.parametrize("seed", [0, 7, 2**62 + 11, -(2**63)])
def test_absolute_positions_give_what_places_in_the_completion_give(seed):
    for num_prompt_tokens in (1, 5, 4000):
        places = torch.arange(6)
        own = uniforms(torch.full((6,), seed), places)
        shifted = torch.full((6,), shifted_seed(seed, num_prompt_tokens))
        assert torch.equal(own, uniforms(shifted, places + num_prompt_tokens - 1))
