"""Log-probabilities in both layouts against a plain loop over rows, values and gradients."""

import pytest
import torch
from lightrft_core.data import Batch
from lightrft_core.errors import UserError
from lightrft_engines.config import TextConfig
from lightrft_engines.head import token_logprobs
from lightrft_engines.logprobs import logprobs, probe
from lightrft_engines.text import TextAdapter


@pytest.fixture(scope="module")
def batch(kit, qwen_folder) -> Batch:
    return TextAdapter(TextConfig(path=str(qwen_folder)), kit.setup(qwen_folder)).collate(kit.groups())


def one_by_one(model, batch: Batch, temperature: float = 1.0):
    """Each row alone through the unpadded model, log-softmax of its logits: (log-probabilities, entropies)."""
    width = batch.completion_ids_BT.shape[1]
    found, entropies = [], []
    for row, prompt in enumerate(batch.prompt_token_ids):
        length = int(batch.lengths_B[row])
        ids = torch.tensor([[*prompt, *batch.completion_ids_BT[row, :length].tolist()]])
        logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1] / temperature
        logp = torch.log_softmax(logits, -1)
        own = torch.stack([logp[step, ids[0, len(prompt) + step]] for step in range(length)])
        entropy = torch.stack([-(p.exp() * p).sum() for p in logp])
        found.append(torch.nn.functional.pad(own, (0, width - length)))
        entropies.append(torch.nn.functional.pad(entropy, (0, width - length)))
    return torch.stack(found), torch.stack(entropies)


def gradients(model, value):
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return [grad for grad in found if grad is not None]


def largest_difference(found, expected) -> float:
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(
    ("kind", "dtype", "value_tolerance", "gradient_tolerance"),
    [
        ("gpt2", torch.float64, 1e-12, 1e-9),
        ("qwen2", torch.float64, 1e-12, 1e-6),  # transformers' RMSNorm computes in fp32 whatever the model's precision
        ("llama", torch.float64, 1e-12, 1e-6),
        ("qwen2", torch.float32, 1e-5, 1e-4),
        ("gpt2", torch.float32, 1e-5, 1e-4),
        ("qwen3_moe", torch.float32, 1e-5, 1e-4),
    ],
)
def test_both_layouts_equal_the_row_by_row_model(kit, batch, kind, dtype, value_tolerance, gradient_tolerance, layout):
    model = kit.model(kind, dtype=dtype)
    expected, expected_entropy = one_by_one(model, batch)
    found = logprobs(model, batch, probe(model), layout=layout, entropy=True)
    assert (found.logprobs_BT - expected).abs().max() < value_tolerance
    assert (found.entropy_BT - expected_entropy).abs().max() < value_tolerance
    weights = torch.randn(expected.shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    own = gradients(model, (found.logprobs_BT * weights + found.entropy_BT * weights.flip(0)).sum())
    theirs = gradients(model, (expected * weights + expected_entropy * weights.flip(0)).sum())
    assert largest_difference(own, theirs) < gradient_tolerance


def test_the_temperature_divides_the_logits(kit, batch):
    model = kit.model("gpt2", dtype=torch.float64)
    warm = batch.rows(range(len(batch)))
    warm.temperature = 0.7
    expected, entropy = one_by_one(model, batch, temperature=0.7)
    found = logprobs(model, warm, probe(model), layout="packed", entropy=True)
    assert torch.allclose(found.logprobs_BT, expected, atol=1e-12)
    assert torch.allclose(found.entropy_BT, entropy, atol=1e-12)


def test_rows_in_any_order_and_alone_give_the_same(kit, batch):
    model = kit.model("qwen2", dtype=torch.float64)
    abilities = probe(model)
    whole = logprobs(model, batch, abilities, layout="packed").logprobs_BT
    order = [5, 0, 7, 2, 1, 6, 4, 3]
    shuffled = logprobs(model, batch.rows(order), abilities, layout="packed").logprobs_BT
    assert torch.allclose(shuffled, whole[order], atol=1e-12)
    alone = torch.cat([logprobs(model, batch.rows([row]), abilities, layout="packed").logprobs_BT for row in range(8)])
    assert torch.allclose(alone, whole, atol=1e-12)


def test_entries_past_a_rows_length_are_zero(kit, batch):
    model = kit.model("qwen2")
    found = logprobs(model, batch, probe(model), layout="packed", entropy=True)
    steps = torch.arange(batch.completion_ids_BT.shape[1])
    past = steps >= batch.lengths_B[:, None]
    assert past.any()
    assert (found.logprobs_BT[past] == 0).all()
    assert (found.entropy_BT[past] == 0).all()


def test_an_empty_completion_is_a_row_of_zeros(kit, qwen_folder):
    adapter = TextAdapter(TextConfig(path=str(qwen_folder)), kit.setup(qwen_folder))
    batch = adapter.collate(kit.groups(sizes=((3, (0, 2)), (4, (0,)))))
    model = kit.model("qwen2")
    packed = logprobs(model, batch, probe(model), layout="packed").logprobs_BT
    padded = logprobs(model, batch, probe(model), layout="padded").logprobs_BT
    assert torch.allclose(packed, padded, atol=1e-5)
    assert (packed[[0, 2]] == 0).all()


def test_softcapped_and_windowed_models_fall_back_and_stay_right(kit, batch):
    for kind in ("gemma2", "mistral"):
        model = kit.model(kind)
        abilities = probe(model)
        assert abilities.layout("auto", batch) == "padded"
        expected, _ = one_by_one(model, batch)
        assert torch.allclose(logprobs(model, batch, abilities).logprobs_BT, expected, atol=2e-5)
        with pytest.raises(ValueError, match="cannot run packed"):
            abilities.layout("packed", batch)
    assert not probe(kit.model("gemma2")).fused_head


def test_small_logits_do_not_hide_a_softcap(kit):
    assert not probe(kit.model("gemma2", scale=0.1)).fused_head


def test_a_window_longer_than_every_row_packs(kit, batch):
    model = kit.model("mistral", dtype=torch.float64, sliding_window=64)
    abilities = probe(model)
    assert abilities.layout("auto", batch) == "packed"
    expected, _ = one_by_one(model, batch)
    assert torch.allclose(logprobs(model, batch, abilities).logprobs_BT, expected, atol=1e-12)


def test_the_probe_refuses_packing_where_another_attention_runs(kit):
    model = kit.model("qwen2")
    model.set_attn_implementation("sdpa")
    assert not probe(model).packing


def test_asking_for_packing_in_vain_is_the_users_error(kit, qwen_folder, batch):
    adapter = TextAdapter(TextConfig(path=str(qwen_folder)), kit.setup(qwen_folder))
    with pytest.raises(UserError, match=r"strategy\.packing: .*padded layout.*packing: auto"):
        adapter.logprobs(kit.model("gemma2"), batch, layout="packed")


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_fused_head_passes_gradcheck_for_any_chunk(chunk, with_bias):
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 11, bias=with_bias, dtype=torch.float64)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 10, 3, 3, 7, 1, 0])
    inputs = (hidden, head.weight, *([head.bias] if with_bias else []))
    assert torch.autograd.gradcheck(
        lambda *_: token_logprobs(hidden, head, targets, 0.8, entropy=True, chunk=chunk), inputs
    )


def test_the_fused_head_survives_probabilities_that_underflow():
    head = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[500.0, 0.0], [-500.0, 0.0], [0.0, 0.0]]))
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    value, entropy = token_logprobs(hidden, head, torch.tensor([1]), 1.0, entropy=True)
    assert value.item() == -1000.0
    (value + entropy).sum().backward()
    assert hidden.grad.isfinite().all()


def test_a_bf16_head_returns_fp32_close_to_the_exact_values():
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=True)
    hidden = torch.randn(9, 16)
    targets = torch.arange(9)
    exact, _ = token_logprobs(hidden, head, targets, 1.0)
    low = hidden.bfloat16().requires_grad_()
    found, _ = token_logprobs(low, head.bfloat16(), targets, 1.0, chunk=4)
    assert found.dtype == torch.float32
    assert torch.allclose(found, exact, atol=0.05)
    found.sum().backward()
    assert low.grad.dtype == head.weight.grad.dtype == torch.bfloat16
