"""Where a trainer's parameters lie among an engine's, on layers that are laid out as vLLM's and SGLang's are."""

import pytest
import torch
from lightrft_engines.fingerprint import sample_positions
from lightrft_engines.serving.served import Layers, left_out, sample, told
from torch import nn


class Embedding(nn.Module):
    def __init__(self, rows, first, num, whole):
        super().__init__()
        self.weight = nn.Parameter(rows)
        self.shard_indices = type("Rows", (), {"org_vocab_start_index": first, "org_vocab_end_index": first + num})
        self.org_vocab_size = whole


class Column(nn.Module):
    def __init__(self, weight, rank=0, size=1):
        super().__init__()
        self.weight, self.tp_rank, self.tp_size = nn.Parameter(weight), rank, size


class Row(Column):
    pass


class Merged(Column):
    def __init__(self, weight, sizes, rank=0, size=1):
        super().__init__(weight, rank, size)
        self.output_sizes = sizes


class Qkv(Column):
    def __init__(self, weight, rank=0, size=1):
        super().__init__(weight, rank, size)
        self.head_size = self.v_head_size = 2
        self.total_num_heads, self.total_num_kv_heads = 4, 2
        self.num_heads, self.num_kv_heads, self.num_kv_head_replicas = 4 // size, 2 // size, 1


LAYERS = Layers(Embedding, Qkv, Merged, Column, Row, lambda model, name: name)
WHOLE = {
    "embed.weight": torch.randn(5, 4),
    "attn.q_proj.weight": torch.randn(8, 4),
    "attn.k_proj.weight": torch.randn(4, 4),
    "attn.v_proj.weight": torch.randn(4, 4),
    "mlp.gate_proj.weight": torch.randn(6, 4),
    "mlp.up_proj.weight": torch.randn(6, 4),
    "mlp.down_proj.weight": torch.randn(4, 6),
    "norm.weight": torch.randn(4),
}


def worker(rank, size):
    """What one of `size` workers serves of the whole."""

    def part(name, dim=0):
        return WHOLE[name].chunk(size, dim)[rank]

    model = nn.Module()
    first = 3 * rank if size > 1 else 0
    own = WHOLE["embed.weight"][first : first + (3 if size > 1 else 5)]
    model.embed = Embedding(torch.cat([own, torch.zeros(3, 4)]), first, len(own), 5)
    model.attn, model.mlp, model.norm = nn.Module(), nn.Module(), nn.LayerNorm(4, bias=False)
    fused = torch.cat([part(f"attn.{one}_proj.weight") for one in "qkv"])
    model.attn.qkv_proj = Qkv(fused, rank, size)
    fused = torch.cat([part(f"mlp.{one}_proj.weight") for one in ("gate", "up")])
    model.mlp.gate_up_proj = Merged(fused, [6, 6], rank, size)
    model.mlp.down_proj = Row(part("mlp.down_proj.weight", 1), rank, size)
    model.norm.weight.data = WHOLE["norm.weight"]
    return model


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", list(WHOLE))
def test_workers_together_serve_the_sample_of_a_parameter(name, size):
    flat = WHOLE[name].reshape(-1)
    expected = [flat[place].item() for place in sample_positions(name, flat.numel())]
    served = {}
    for rank in range(size):
        num, entries = sample(LAYERS, worker(rank, size), name)
        assert num == len(expected)
        served |= dict(entries)
    assert [served[place] for place in sorted(served)] == expected


def test_of_a_weight_that_was_rounded_on_arrival_what_arrived_is_told():
    received = {"norm.weight": [0.5, -2.0]}
    assert told(LAYERS, worker(0, 1), "norm.weight", received) == (2, [(0, (0.5).hex()), (1, (-2.0).hex())])
    num, entries = told(LAYERS, worker(0, 1), "norm.weight", {})
    assert [float.fromhex(value) for _, value in entries] == WHOLE["norm.weight"].tolist()
    assert num == len(entries)


def test_what_is_not_served_has_no_sample():
    assert sample(LAYERS, worker(0, 1), "other.weight") is None


def test_parameters_that_no_name_fills_are_left_out():
    model = worker(0, 1)
    assert left_out(LAYERS, model, WHOLE) == []
    some = WHOLE.keys() - {"norm.weight", "attn.k_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight"}
    assert left_out(LAYERS, model, some) == ["attn.qkv_proj.weight", "mlp.gate_up_proj.weight", "norm.weight"]


def test_a_fused_parameter_may_come_whole():
    fused = [name for name in WHOLE if "attn" not in name] + ["attn.qkv_proj.weight"]
    assert left_out(LAYERS, worker(0, 1), fused) == []


def test_tied_parameters_are_filled_by_one_name():
    model = worker(0, 1)
    model.head = Embedding(torch.zeros(1, 1), 0, 5, 5)
    model.head.weight = model.embed.weight
    assert left_out(LAYERS, model, WHOLE) == []
