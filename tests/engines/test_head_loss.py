"""A loss whose gradients come with its log-probabilities, against a plain loop over tokens."""

from dataclasses import replace

import pytest
import torch
from lightrft_engines import head_loss
from lightrft_engines.head_loss import HeadLoss, pays
from lightrft_engines.head_shards import VocabShard

from tests.engines.head_cases import Case, differences, loop, peak_bytes
from tests.engines.ranks import on_ranks

WIDE = Case(20, 20_000, 6, bias=True, entropy=True, temperature=1.3, dtype=torch.float64)  # three tiles
LENGTHS = (3, 1, 0, 7, 2, 7)
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture
def tight(monkeypatch):
    """Pieces of at most five tokens, so that sequences of seven go through the head twice."""
    monkeypatch.setattr(head_loss, "FREE_BYTES", 0)
    monkeypatch.setattr(head_loss, "ENOUGH_TOKENS", 5)


def learned(case, lengths=LENGTHS, head=None, **options):
    """[log-probabilities, entropies, gradients of hidden states, weight, bias], and the sequences of each piece."""
    whole, hidden, targets, slopes = case.make()
    head = whole if head is None else head
    seen, pieces = [], []

    def share(rows, values, entropies):
        own = slice(sum(lengths[: rows.start]), sum(lengths[: rows.stop]))
        pieces.append(rows)
        seen.append([x.detach().clone() for x in (values, entropies) if x is not None])
        value = (values * slopes[0, own]).sum()
        return value + (entropies * slopes[1, own]).sum() if case.entropy else value

    loss = HeadLoss(head, case.temperature, case.entropy, **options).of(hidden, targets, lengths, share)
    leaves = [hidden, head.weight, *([head.bias] if case.bias else [])]
    return [*map(torch.cat, zip(*seen, strict=True)), *torch.autograd.grad(loss, leaves)], pieces


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("chunk", [None, 2, 100])
def test_pieces_give_what_a_loop_gives(tight, dtype, chunk):
    case = replace(WIDE, dtype=dtype)
    found, _ = learned(case, chunk=chunk)
    assert max(differences(found, loop(case))) < LIMITS[dtype]


@pytest.mark.parametrize("options", [{"bias": False}, {"entropy": False}, {"temperature": 1.0}])
def test_few_logits_are_one_piece(options):
    case = replace(WIDE, **options)
    found, pieces = learned(case)
    assert pieces == [slice(0, 6)]
    assert max(differences(found, loop(case))) < 1e-12


def test_sequences_come_once_each_and_together_while_there_is_room(tight):
    _, pieces = learned(WIDE)
    assert pieces == [slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 6)]


def test_a_factor_of_the_loss_is_one_of_its_gradients():
    found = []
    for factor in (1.0, 3.0):
        head, hidden, targets, _ = WIDE.make()
        loss = HeadLoss(head, 1.3).of(hidden, targets, LENGTHS, lambda rows, values, _: values.sum())
        (factor * loss).backward()
        found.append([hidden.grad, head.weight.grad, head.bias.grad])
    for single, triple in zip(*found, strict=True):
        assert torch.allclose(3 * single, triple, rtol=1e-12)


@pytest.mark.parametrize("part", ["head", "states"])
def test_what_is_frozen_gets_no_gradient(part):
    head, hidden, targets, slopes = WIDE.make()
    exact = loop(replace(WIDE, entropy=False))
    if part == "head":
        head.requires_grad_(False)
    else:
        hidden = hidden.detach()
    loss = HeadLoss(head, 1.3).of(hidden, targets, (20,), lambda rows, values, _: (values * slopes[0]).sum())
    loss.backward()
    found = hidden.grad if part == "head" else head.weight.grad
    assert differences([found], [exact[1 if part == "head" else 2]])[0] < 1e-12
    assert (head.weight.grad is None) == (part == "head")
    assert (hidden.grad is None) == (part == "states")


@pytest.mark.parametrize("chosen", [[], [0, 4, 11], list(range(20))])
def test_tokens_that_the_loss_leaves_out_move_nothing(tight, chosen):
    head, hidden, targets, _ = WIDE.make()
    keep = torch.zeros(20, dtype=torch.float64)
    keep[chosen] = 1.0

    def share(rows, values, entropies):
        own = slice(sum(LENGTHS[: rows.start]), sum(LENGTHS[: rows.stop]))
        return (values * keep[own]).sum() + 0.1 * (entropies * keep[own]).sum()

    HeadLoss(head, 1.0, entropy=True).of(hidden, targets, LENGTHS, share).backward()
    found = [hidden.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()]
    for leaf in (hidden, head.weight, head.bias):
        leaf.grad = None
    logp = head(hidden).log_softmax(-1)
    plain = logp.gather(1, targets[:, None]).squeeze(1) - 0.1 * (logp.exp() * logp).sum(-1)
    (plain * keep).sum().backward()
    for own, leaf in zip(found, (hidden, head.weight, head.bias), strict=True):
        assert torch.allclose(own, leaf.grad, atol=1e-12)


def test_a_loss_without_the_model_in_it_has_no_gradient():
    head, hidden, targets, _ = WIDE.make()
    loss = HeadLoss(head, 1.0).of(hidden, targets, LENGTHS, lambda rows, values, _: values.new_tensor(2.0))
    loss.backward()
    assert loss.item() == 2.0
    assert not hidden.grad.any()
    assert not head.weight.grad.any()


def test_without_sequences_the_loss_is_zero():
    head, hidden, targets, _ = replace(WIDE, tokens=0).make()
    loss = HeadLoss(head, 1.0).of(hidden, targets, (), lambda rows, values, _: values.sum())
    loss.backward()
    assert loss.item() == 0.0
    assert not head.weight.grad.any()


def test_tied_embeddings_get_both_gradients():
    torch.manual_seed(0)
    embedding, head = torch.nn.Embedding(30, 8), torch.nn.Linear(8, 30, bias=False)
    head.weight = embedding.weight
    ids = torch.tensor([3, 29, 0, 3])
    HeadLoss(head, 1.0).of(embedding(ids), ids, (1, 3), lambda rows, values, _: values.sum()).backward()
    found, embedding.weight.grad = embedding.weight.grad, None
    head(embedding(ids)).log_softmax(-1).gather(1, ids[:, None]).sum().backward()
    assert torch.allclose(found, embedding.weight.grad, atol=1e-6)


def test_gradients_are_given_once():
    head, hidden, targets, _ = WIDE.make()
    loss = HeadLoss(head, 1.0).of(hidden, targets, LENGTHS, lambda rows, values, _: values.sum())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        loss.backward()


def test_kept_logits_are_a_small_part_of_the_naive_ones(monkeypatch):
    monkeypatch.setattr(head_loss, "FREE_BYTES", 0)
    monkeypatch.setattr(head_loss, "ENOUGH_TOKENS", 64)
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(4, 40_000, bias=False), torch.randn(1024, 4, requires_grad=True)
    targets = torch.randint(0, 40_000, (1024,))
    by_head = HeadLoss(head, 1.0, entropy=True)
    naive = peak_bytes(lambda: head(hidden).log_softmax(-1).gather(-1, targets[:, None]).sum().backward())
    peak = peak_bytes(lambda: by_head.of(hidden, targets, [32] * 32, lambda rows, v, _: v.sum()).backward())
    assert naive >= 2 * 1024 * 40_000 * 4
    assert peak - head.weight.nbytes <= 0.15 * (naive - head.weight.nbytes)


def test_low_precision_does_not_pay():
    weight = torch.zeros(4, 2)
    assert pays(weight)
    assert pays(weight.double())
    assert not pays(weight.bfloat16())
    assert not pays(weight.to("meta"))


@pytest.mark.parametrize("bounds", [(0, 7_000, 20_000), (0, 0, 9_000, 20_000)])
def test_a_head_spread_over_ranks_gives_what_a_loop_gives(tmp_path, monkeypatch, bounds):
    monkeypatch.setattr(head_loss, "FREE_BYTES", 12 * 7_000 * 8)  # for 12 tokens of one rank, and 6 of the other

    def work(rank: int):
        whole, *_ = WIDE.make()
        own = slice(bounds[rank], bounds[rank + 1])
        part = torch.nn.Linear(WIDE.width, own.stop - own.start, dtype=WIDE.dtype)
        with torch.no_grad():
            part.weight.copy_(whole.weight[own])
            part.bias.copy_(whole.bias[own])
        found, _ = learned(WIDE, head=part, shard=VocabShard(own.start))
        return [tensor.tolist() for tensor in found]

    results = on_ranks(work, len(bounds) - 1, tmp_path)
    assert all(result[:3] == results[0][:3] for result in results)
    rows = [torch.tensor([row for result in results for row in result[place]]) for place in (3, 4)]
    found = [*map(torch.tensor, results[0][:3]), *rows]
    assert max(differences(found, loop(WIDE))) < 1e-6
