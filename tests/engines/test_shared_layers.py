"""Ranks that share rows: what cannot be shared is refused by name, before anything is trained."""

import pytest
from lightrft_core.errors import UserError
from lightrft_engines.sequence import allows
from lightrft_engines.training.config import Fsdp2Config, SingleConfig
from pydantic import ValidationError

from tests.engines.ranks import on_ranks
from tests.engines.test_strategies import build


def refusal(kit, folder, size, tmp_path, **options) -> str:
    def work(rank):
        with pytest.raises(UserError) as caught:
            build(kit, folder, "fsdp2", **options)
        return str(caught.value)

    texts = on_ranks(work, size, tmp_path)
    assert len(set(texts)) == 1
    return texts[0]


def test_heads_can_be_dealt_or_repeated():
    assert allows(2, 4, 2)
    assert allows(4, 4, 2)  # each key head serves two ranks
    assert not allows(3, 4, 2)
    assert not allows(4, 8, 3)


@pytest.mark.parametrize("option", ["sequence_parallel", "tensor_parallel"])
def test_a_number_that_does_not_divide_the_ranks(kit, qwen_folder, tmp_path, option):
    text = refusal(kit, qwen_folder, 2, tmp_path, **{option: 4})
    assert f"strategy.{option}: 4 ranks cannot share each" in text
    assert "Choose a divisor of 2" in text


def test_more_ranks_than_heads(kit, tmp_path):
    folder = kit.folder(tmp_path / "model", num_attention_heads=3, num_key_value_heads=3, head_dim=8)
    text = refusal(kit, folder, 2, tmp_path, sequence_parallel=2)
    assert "2 ranks cannot share a sequence: the model has 3 attention heads (3 for keys). Choose from 1, 3" in text


def test_fewer_key_heads_than_tensor_ranks(kit, qwen_folder, tmp_path):
    text = refusal(kit, qwen_folder, 4, tmp_path, tensor_parallel=4)
    assert "4 ranks cannot share a layer: it has 4 attention heads, 2 for keys, and 48 hidden features" in text


def test_a_model_without_a_plan(kit, tmp_path):
    folder = kit.folder(tmp_path / "model", "gpt2")
    text = refusal(kit, folder, 2, tmp_path, tensor_parallel=2)
    assert "GPT2Model cannot be split over ranks: it has no plan for it." in text


def test_a_shard_size_that_does_not_divide_the_ranks(kit, qwen_folder, tmp_path):
    assert "strategy.shard_size: 3 ranks cannot share a copy" in refusal(kit, qwen_folder, 4, tmp_path, shard_size=3)


def test_sequences_and_layers_are_not_both_shared():
    with pytest.raises(ValidationError, match="sequence_parallel and tensor_parallel cannot both be more than 1"):
        Fsdp2Config(sequence_parallel=2, tensor_parallel=2)


def test_padded_rows_are_not_shared():
    with pytest.raises(ValidationError, match="sequence_parallel cuts packed rows, and packing is false"):
        SingleConfig(sequence_parallel=2, packing=False)


def test_a_model_with_other_attention_shares_no_sequence(kit, tmp_path):
    folder = kit.folder(tmp_path / "model", "gemma2")
    text = refusal(kit, folder, 2, tmp_path, sequence_parallel=2)
    assert "strategy.sequence_parallel: this model does not run with LightRFT's attention" in text
