"""The fused head against a plain loop over tokens: values and gradients, whole and spread over ranks."""

from dataclasses import replace

import pytest
import torch
from lightrft_engines.head import logprobs_of_logits, token_logprobs
from lightrft_engines.head_shards import VocabShard

from tests.engines.head_cases import SMALL, Case, differences, fused, loop, peak_bytes
from tests.engines.ranks import on_ranks

WIDE = Case(
    9, 20_000, 6, bias=True, entropy=True, temperature=1.3, dtype=torch.float64
)  # three tiles of the vocabulary
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("chunk", [None, 4, 100])
def test_tiles_of_tokens_and_vocabulary_give_what_a_loop_gives(dtype, chunk):
    case = replace(WIDE, dtype=dtype)
    assert max(differences(fused(case, chunk=chunk), loop(case))) < LIMITS[dtype]


@pytest.mark.parametrize("name", SMALL)
def test_small_heads_give_what_a_loop_gives(name):
    assert max(differences(fused(SMALL[name]), loop(SMALL[name]))) < LIMITS[SMALL[name].dtype]


def test_sums_over_a_vocabulary_of_bf16_are_fp32():
    head, hidden, targets, _ = replace(WIDE, dtype=torch.bfloat16, bias=False).make()
    value, entropy = token_logprobs(hidden, head, targets, 1.0, entropy=True)
    logits = head(hidden).detach().double()
    assert torch.allclose(value.double(), logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1), atol=1e-5)
    assert torch.allclose(entropy.double(), torch.distributions.Categorical(logits=logits).entropy(), atol=1e-5)


def test_tied_embeddings_get_both_gradients():
    torch.manual_seed(0)
    embedding, head = torch.nn.Embedding(30, 8), torch.nn.Linear(8, 30, bias=False)
    head.weight = embedding.weight
    ids = torch.tensor([3, 29, 0, 3])

    def gradient(loss_of):
        embedding.weight.grad = None
        loss_of(embedding(ids)).backward()
        return embedding.weight.grad

    found = gradient(lambda states: token_logprobs(states, head, ids, 1.0)[0].sum())
    expected = gradient(lambda states: head(states).log_softmax(-1).gather(1, ids[:, None]).sum())
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_frozen_head_gets_no_gradient():
    head, hidden, targets, _ = WIDE.make()
    head.requires_grad_(False)
    token_logprobs(hidden, head, targets, 1.3, entropy=True)[0].sum().backward()
    assert head.weight.grad is None
    assert hidden.grad.abs().max() > 0


@pytest.mark.parametrize("entropy", [False, True])
def test_either_result_may_be_left_out_of_the_loss(entropy):
    head, hidden, targets, _ = WIDE.make()
    results = token_logprobs(hidden, head, targets, 1.3, entropy=True)
    (found,) = torch.autograd.grad(results[entropy].sum(), hidden)
    logp = (head(hidden) / 1.3).log_softmax(-1)
    expected = -(logp.exp() * logp).sum() if entropy else logp.gather(1, targets[:, None]).sum()
    assert torch.allclose(found, torch.autograd.grad(expected, hidden)[0], atol=1e-12)


def test_without_tokens_there_are_no_values_and_no_gradient():
    head, hidden, targets, _ = WIDE.make()
    value, entropy = token_logprobs(hidden[:0], head, targets[:0], 1.0, entropy=True)
    assert value.shape == entropy.shape == (0,)
    (value.sum() + entropy.sum()).backward()
    assert (head.weight.grad == 0).all()
    assert (head.bias.grad == 0).all()


def test_tokens_that_the_loss_leaves_out_are_not_computed_backward():
    head, hidden, targets, slopes = WIDE.make()
    with torch.no_grad():
        hidden[3] = torch.inf
    kept = [0, 1, 2, *range(4, 9)]
    value, entropy = token_logprobs(hidden, head, targets, 1.0, entropy=True)
    (value[kept] @ slopes[0][kept].double() + entropy[kept] @ slopes[1][kept].double()).backward()
    alone = hidden.detach()[kept].requires_grad_()
    logp = head(alone).log_softmax(-1)
    own, spread = logp.gather(1, targets[kept, None]).squeeze(1), -(logp.exp() * logp).sum(-1)
    (expected,) = torch.autograd.grad(own @ slopes[0][kept].double() + spread @ slopes[1][kept].double(), alone)
    assert (hidden.grad[3] == 0).all()
    assert torch.allclose(hidden.grad[kept], expected, atol=1e-12)
    assert head.weight.grad.isfinite().all()


def test_a_target_outside_the_vocabulary_is_impossible():
    head, hidden, _, _ = WIDE.make()
    targets = torch.tensor([-1, 20_000, *range(7)])
    value, _ = token_logprobs(hidden, head, targets, 1.0)
    assert value[:2].tolist() == [-torch.inf, -torch.inf]
    assert value[2:].isfinite().all()


def test_a_whole_tile_of_impossible_entries_changes_nothing():
    head, hidden, targets, _ = WIDE.make()
    with torch.no_grad():
        head.bias[:9_000] = -torch.inf  # the first tile and more
    targets = targets.clamp(min=9_000)
    expected = head(hidden).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    found, _ = token_logprobs(hidden, head, targets, 1.0)
    assert torch.allclose(found, expected, atol=1e-12)
    found.sum().backward()
    assert hidden.grad.isfinite().all()


def test_second_derivatives_are_refused():
    head, hidden, targets, _ = WIDE.make()
    value, _ = token_logprobs(hidden, head, targets, 1.0)
    (slope,) = torch.autograd.grad(value.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_memory_is_a_fraction_of_the_naive_and_does_not_grow_with_the_vocabulary():
    def fused_bytes(vocabulary: int) -> int:
        head, hidden, targets = small_head(vocabulary)
        peak = peak_bytes(lambda: sum(token_logprobs(hidden, head, targets, 1.0, entropy=True)).sum().backward())
        return peak - head.weight.nbytes  # of the gradient, which is the result

    head, hidden, targets = small_head(20_000)
    naive = peak_bytes(lambda: head(hidden).log_softmax(-1).gather(-1, targets[:, None]).sum().backward())
    assert naive >= 2 * 1024 * 20_000 * 4
    assert fused_bytes(20_000) <= 0.15 * (naive - head.weight.nbytes)
    assert fused_bytes(80_000) <= 1.1 * fused_bytes(20_000)


def test_a_smaller_chunk_holds_fewer_logits():
    head, hidden, targets = small_head(20_000)

    def held(chunk: int) -> int:
        return peak_bytes(lambda: token_logprobs(hidden.detach(), head, targets, 1.0, chunk=chunk))

    assert held(128) < 0.2 * held(1024)


def test_own_logits_need_only_their_gradient_beside_them():
    torch.manual_seed(0)
    logits = torch.randn(512, 40_000, requires_grad=True)
    targets = torch.randint(0, 40_000, (512,))
    peak = peak_bytes(lambda: sum(logprobs_of_logits(logits, targets, 1.0, entropy=True)).sum().backward())
    assert peak <= 1.3 * logits.nbytes


def small_head(vocabulary: int):
    torch.manual_seed(0)
    head = torch.nn.Linear(16, vocabulary, bias=False)
    return head, torch.randn(1024, 16, requires_grad=True), torch.randint(0, vocabulary, (1024,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bounds", [(0, 12_001, 20_000), (0, 7_000, 7_001, 20_000), (0, 0, 9_000, 20_000)])
def test_a_head_spread_over_ranks_gives_what_a_loop_gives(tmp_path, dtype, bounds):
    case = replace(WIDE, dtype=dtype)

    def work(rank: int):
        head, hidden, targets, slopes = case.make()
        own = slice(bounds[rank], bounds[rank + 1])
        part = torch.nn.Linear(case.width, own.stop - own.start, dtype=dtype)
        with torch.no_grad():
            part.weight.copy_(head.weight[own])
            part.bias.copy_(head.bias[own])
        value, entropy = token_logprobs(
            hidden, part, targets, case.temperature, entropy=True, chunk=5, shard=VocabShard(own.start)
        )
        ((value * slopes[0]).sum() + (entropy * slopes[1]).sum()).backward()
        found = (value.detach(), entropy.detach(), hidden.grad, part.weight.grad, part.bias.grad)
        return [tensor.tolist() for tensor in found]

    results = on_ranks(work, len(bounds) - 1, tmp_path)
    assert all(result[:3] == results[0][:3] for result in results)  # what all ranks hold stays the same on all
    rows = [torch.tensor([row for result in results for row in result[place]]) for place in (3, 4)]
    found = [*map(torch.tensor, results[0][:3]), *rows]
    assert max(differences(found, loop(case))) < max(LIMITS[dtype], 1e-6)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_own_logits_give_what_log_softmax_gives(dtype, limit):
    torch.manual_seed(0)
    logits = (3 * torch.randn(300, 8_000)).to(dtype).requires_grad_()  # two chunks of rows
    targets, slopes = torch.randint(0, 8_000, (300,)), torch.randn(2, 300)
    exact = logits.detach().double().requires_grad_()
    logp = (exact / 0.7).log_softmax(-1)
    expected = logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)
    found = logprobs_of_logits(logits, targets, 0.7, entropy=True)
    for own, other in zip(found, expected, strict=True):
        assert torch.allclose(own.double(), other, atol=limit)
    for results in (found, expected):
        ((results[0] * slopes[0]).sum() + (results[1] * slopes[1]).sum()).backward()
    assert logits.grad.dtype == dtype
    assert differences([logits.grad], [exact.grad])[0] < limit
