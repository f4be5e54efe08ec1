"""Values: one hidden state and one head, in either layout, on any architecture; heads taken over, refused, exported."""

from pathlib import Path

import pytest
import torch
from lightrft_core.errors import UserError
from lightrft_core.sections import CriticSection
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


def adapter_of(kit, folder) -> TextAdapter:
    return TextAdapter(TextConfig(path=str(folder)), kit.setup(folder))


def with_head(critic, seed=0):
    """A head that is not 0, so that values say something."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        critic.head.weight.copy_(torch.randn(critic.head.weight.shape, generator=draws))
    return critic


def by_hand(folder, batch, weight_1D):
    """Values from the hidden states of transformers' own forward pass, row by row."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = []
    for row, prompt in enumerate(batch.prompt_token_ids):
        length = int(batch.lengths_B[row])
        ids = torch.tensor([[*prompt, *batch.completion_ids_BT[row, :length].tolist()]])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[-1][0]
        rows.append((states[len(prompt) - 1 : -1] @ weight_1D[0]).tolist())
    return rows


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "gemma2", "mistral"])
def test_a_value_is_the_head_on_the_state_that_predicts_the_token(kit, tmp_path, kind):
    folder = kit.folder(tmp_path / kind, kind)
    adapter = adapter_of(kit, folder)
    critic = with_head(adapter.load_critic(CriticSection()))
    batch = adapter.collate(kit.groups())
    with torch.no_grad():
        found = {layout: adapter.values(critic, batch, layout=layout) for layout in ("padded", "auto")}
    for row, expected in enumerate(by_hand(folder, batch, critic.head.weight)):
        for values_BT in found.values():
            scale = max(map(abs, expected))
            assert values_BT[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-4 * scale)
            assert values_BT[row, len(expected) :].tolist() == [0.0] * (values_BT.shape[1] - len(expected))


def test_a_new_head_starts_at_0_whatever_the_seed(kit, qwen_folder):
    adapter = adapter_of(kit, qwen_folder)
    critic = adapter.load_critic(CriticSection())
    assert float(adapter.values(critic, adapter.collate(kit.groups())).abs().max()) == 0.0


def test_the_output_layer_is_not_kept(kit, qwen_folder):
    critic = adapter_of(kit, qwen_folder).load_critic(CriticSection())
    assert [name for name, _ in critic.named_parameters() if "lm_head" in name] == []


def reward_model(kit, path: Path, *, num_labels=1, **changes) -> Path:
    """A folder of Hugging Face's own sequence classifier."""
    from transformers import Qwen2ForSequenceClassification

    source = kit.model("qwen2", **changes)
    source.config.num_labels = num_labels
    model = Qwen2ForSequenceClassification(source.config)
    model.model.load_state_dict(source.model.state_dict())
    model.save_pretrained(path)
    return path


def test_a_reward_models_head_is_taken_over(kit, qwen_folder, tmp_path):
    path = reward_model(kit, tmp_path / "rm", seed=3)
    critic = adapter_of(kit, qwen_folder).load_critic(CriticSection(path=str(path)))
    model = AutoModelForSequenceClassification.from_pretrained(path)
    assert torch.equal(critic.head.weight, model.score.weight)
    assert torch.equal(critic.backbone.embed_tokens.weight, model.model.embed_tokens.weight)


def test_a_head_in_sharded_files_is_found(kit, qwen_folder, tmp_path):
    source = AutoModelForSequenceClassification.from_pretrained(reward_model(kit, tmp_path / "rm"))
    source.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards/model.safetensors.index.json").is_file()
    critic = adapter_of(kit, qwen_folder).load_critic(CriticSection(path=str(tmp_path / "shards")))
    assert torch.equal(critic.head.weight, source.score.weight)


def test_a_head_with_several_outputs_is_refused(kit, qwen_folder, tmp_path):
    path = reward_model(kit, tmp_path / "many", num_labels=3)
    said = r"critic\.path: score\.weight of .* has shape \[3, 32\].* a value head has \[1, 32\]"
    with pytest.raises(UserError, match=said):
        adapter_of(kit, qwen_folder).load_critic(CriticSection(path=str(path)))


def test_a_critic_that_knows_fewer_tokens_is_refused(kit, qwen_folder, tmp_path):
    path = kit.folder(tmp_path / "small", vocab_size=90)
    with pytest.raises(UserError, match=r"critic\.path: .* knows 90 tokens, and the policy writes 97"):
        adapter_of(kit, qwen_folder).load_critic(CriticSection(path=str(path)))


def test_a_missing_folder_names_the_critics_key(kit, qwen_folder):
    with pytest.raises(UserError, match=r"critic\.path: no folder \./nowhere"):
        adapter_of(kit, qwen_folder).load_critic(CriticSection(path="./nowhere"))


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_an_exported_critic_is_a_reward_model_and_loads_again(kit, tmp_path, kind):
    folder = kit.folder(tmp_path / kind, kind)
    adapter = adapter_of(kit, folder)
    critic = with_head(adapter.load_critic(CriticSection()))
    adapter.export_critic(critic, tmp_path / "out")
    again = adapter.load_critic(CriticSection(path=str(tmp_path / "out")))
    assert {name: tensor.tolist() for name, tensor in critic.named_parameters()} == {
        name: tensor.tolist() for name, tensor in again.named_parameters()
    }
    model, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(model.score.weight, critic.head.weight)


def test_the_head_may_have_another_name(kit, qwen_folder, tmp_path):
    adapter = adapter_of(kit, qwen_folder)
    critic = with_head(adapter.load_critic(CriticSection(head="value_head")))
    adapter.export_critic(critic, tmp_path / "out")
    named, other = (adapter.load_critic(CriticSection(path=str(tmp_path / "out"), head=h)) for h in ("value_head", "v"))
    assert torch.equal(named.head.weight, critic.head.weight)
    assert float(other.head.weight.abs().sum()) == 0.0


def test_half_precision_gives_values_in_full(kit, qwen_folder):
    adapter = adapter_of(kit, qwen_folder)
    critic = adapter.load_critic(CriticSection()).to(torch.bfloat16)
    assert adapter.values(critic, adapter.collate(kit.groups())).dtype == torch.float32
