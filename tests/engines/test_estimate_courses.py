"""Traces of passes: three blocks stand for many, and what is saved is what real passes save."""

import pytest
import torch
from lightrft_engines import head_loss
from lightrft_engines.attention import register_attention
from lightrft_engines.config import TextConfig
from lightrft_engines.estimate import courses
from lightrft_engines.estimate.courses import forward_peak, training_course
from lightrft_engines.estimate.meter import Weightless
from lightrft_engines.estimate.work import Cutter, Rows
from lightrft_engines.hub import build_model, load_config
from lightrft_engines.logprobs import assumed
from lightrft_engines.packing import packed
from lightrft_engines.training.checkpointing import Checkpointing
from lightrft_engines.training.fsdp2 import shard_units
from lightrft_engines.training.microbatch import Limits
from torch.autograd.graph import saved_tensors_hooks

ROWS = Rows(num_prompts=2, group_size=3, prompt_tokens=5, completion_tokens=7)
LIMITS = Limits(None, 1000)


@pytest.fixture(scope="session")
def deep_folder(kit, tmp_path_factory):
    return kit.folder(tmp_path_factory.mktemp("deep") / "model", num_hidden_layers=5)


def built(folder, dtype=torch.float32):
    config = TextConfig(path=str(folder))
    module = build_model(config, load_config(config))
    return Weightless(module, dtype), shard_units(module)[::-1]


def cut(model, layout="auto", rows=ROWS, limits=LIMITS, ranks=1):
    return Cutter(assumed(model.module), layout, None, ranks).passes(rows, limits)[1]


def traced(folder, dtype=torch.float32, layout="auto", rows=ROWS, ranks=1, **options):
    model, blocks = built(folder, dtype)
    return training_course(model, blocks, cut(model, layout, rows, ranks=ranks).logprobs(model), **options)


@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"offload": True}])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_three_blocks_tell_of_five(deep_folder, monkeypatch, options, layout):
    short = traced(deep_folder, layout=layout, **options)
    monkeypatch.setattr(courses, "ENOUGH", 5)
    long = traced(deep_folder, layout=layout, **options)
    assert (short.saved, short.block_saved, short.offloaded) == (long.saved, long.block_saved, long.offloaded)
    head, top, *_, bottom, rest = long.moments
    assert list(short.moments) == [head, top, bottom, rest]


def test_gradients_are_complete_in_the_order_of_the_backward_pass(deep_folder, kit):
    course = traced(deep_folder)
    layer, model = kit.model("qwen2").model.layers[0], kit.model("qwen2")
    block = sum(weight.nbytes for weight in layer.parameters())
    head = model.lm_head.weight.nbytes + model.model.norm.weight.nbytes
    assert course.block_gradients == block
    assert [(m.place, m.of_blocks, m.of_others) for m in course.moments] == [
        ("head", 0, 0),
        ("block", 0, head),
        ("block", 4 * block, head),
        ("rest", 5 * block, head),
    ]


def test_of_blocks_that_are_frozen_in_part_the_largest_gradients_count(deep_folder):
    model, blocks = built(deep_folder)
    block = sum(weight.nbytes for weight in blocks[-1].parameters())
    norm = model.module.get_submodule("model.norm").weight.nbytes
    for part in (model.module.get_input_embeddings(), *blocks[:3], model.module.get_output_embeddings()):
        part.requires_grad_(False)
    course = training_course(model, blocks, cut(model).logprobs(model))
    assert course.block_gradients == block
    assert [(m.place, m.of_blocks, m.of_others) for m in course.moments] == [
        ("head", 0, 0),
        ("block", 0, norm),
        ("block", block, norm),
        ("rest", 2 * block, norm),
    ]


def test_saved_bytes_are_those_that_a_real_pass_saves(kit, qwen_folder):
    module = kit.model("qwen2")
    rows = packed(ROWS.batch(), torch.device("cpu"))
    own = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    from lightrft_engines.logprobs import hidden_states

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        states = hidden_states(module, rows)
    course = traced(qwen_folder)
    of_blocks = 2 * course.block_saved
    assert 0 < of_blocks <= sum(seen.values())
    assert sum(seen.values()) - of_blocks <= 12 * states.nbytes  # embeddings, rotary angles, the last norm


def test_checkpointing_keeps_one_state_per_block(deep_folder):
    course = traced(deep_folder, checkpointing=True)
    tokens = 2 * (5 + 3 * 6)
    assert course.block_saved == tokens * 32 * 4
    assert course.saved < traced(deep_folder).saved / 3


def test_re_entrant_checkpoints_hold_what_a_real_pass_by_them_holds(deep_folder):
    most = {}
    for reentrant in (False, True):
        model, _ = built(deep_folder)
        compute = cut(model).logprobs(model)
        with model.metered() as meter, Checkpointing(model.module, True, reentrant=reentrant):
            loss = compute(model.module)
            meter.restart()
            loss.backward()
        most[reentrant] = meter.most
    plain, course = traced(deep_folder, checkpointing=True), traced(deep_folder, checkpointing=True, reentrant=True)
    more = [item.activations - before.activations for item, before in zip(course.moments, plain.moments, strict=True)]
    assert more == [0, most[True] - most[False], most[True] - most[False], 0]
    assert more[1] == course.block_saved


def test_offloaded_activations_leave_the_device(deep_folder):
    whole, away = traced(deep_folder), traced(deep_folder, offload=True)
    assert whole.offloaded == 0
    assert away.offloaded > whole.saved > 10 * away.saved


def test_bf16_takes_less_and_more_tokens_take_more(deep_folder):
    course = traced(deep_folder)
    assert traced(deep_folder, torch.bfloat16).saved < 0.8 * course.saved
    longer = Rows(2, 3, 5, 14)
    assert 1.5 * course.saved < traced(deep_folder, rows=longer).saved < 3 * course.saved


def test_ranks_that_share_sequences_save_a_share_each(deep_folder):
    rows = Rows(4, 4, 8, 24)
    alone, shared = traced(deep_folder, rows=rows), traced(deep_folder, rows=rows, ranks=2)
    assert 0.45 < shared.block_saved / alone.block_saved < 0.65


def test_a_pass_without_gradient_does_not_grow_with_depth(qwen_folder, deep_folder):
    peaks = []
    for folder in (qwen_folder, deep_folder):
        model, blocks = built(folder)
        peaks.append(forward_peak(model, blocks, cut(model).logprobs(model)))
    assert peaks[0] == peaks[1] < traced(deep_folder).saved


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "mistral"])
def test_models_that_do_not_pack_are_traced_padded(kit, tmp_path, kind):
    course = traced(kit.folder(tmp_path, kind), rows=Rows(2, 3, 5, 7))
    assert course.saved > 0
    assert [moment.place for moment in course.moments] == ["head", "block", "block", "rest"]


def test_many_logits_are_traced_by_a_part_of_the_vocabulary_with_the_whole_gradient(kit, tmp_path, monkeypatch):
    folder = kit.folder(tmp_path, vocab_size=4096)
    whole = traced(folder)
    monkeypatch.setattr("lightrft_engines.estimate.work.MANY", 0)
    monkeypatch.setattr("lightrft_engines.estimate.work.FEW_COLUMNS", 1024)
    part = traced(folder)
    assert part.moments[1:] == whole.moments[1:]
    assert part.saved == whole.saved
    assert part.moments[0].activations <= whole.moments[0].activations


def test_a_loss_by_the_head_keeps_the_logits_of_a_piece_and_the_weights_gradient(kit, tmp_path, monkeypatch):
    folder = kit.folder(tmp_path, vocab_size=40_000)
    saved = {}
    for enough in (2, 6):  # rows of one token are as good as two; of six, one row is a piece
        monkeypatch.setattr(head_loss, "FREE_BYTES", 0)
        monkeypatch.setattr(head_loss, "PART", 1)
        monkeypatch.setattr(head_loss, "ENOUGH_TOKENS", enough)
        model, blocks = built(folder)
        rows = Rows(2, 3, 5, 2)
        course = training_course(model, blocks, cut(model, rows=rows).loss(model))
        saved[enough] = course.moments[0].activations
        weight = model.module.get_output_embeddings().weight
        assert course.saved > weight.nbytes
    piece = 4 * 40_000 * 4  # four tokens more, in fp32
    assert saved[6] - saved[2] == pytest.approx(piece, rel=0.3)  # with the tiles beside them


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_traced_whatever_they_would_be_given(dtype):
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    sizes = {"hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = Qwen3MoeConfig(vocab_size=97, num_experts=4, num_experts_per_tok=2, num_key_value_heads=2, **sizes)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, attn_implementation=register_attention())
    model, blocks = Weightless(module, dtype), shard_units(module)[::-1]
    course = training_course(model, blocks, cut(model).logprobs(model))
    assert course.block_gradients == sum(weight.numel() for weight in blocks[0].parameters()) * dtype.itemsize
