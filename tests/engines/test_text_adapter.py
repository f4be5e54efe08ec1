"""The text adapter: what it renders, collates, refuses and exports."""

import json
import logging

import pytest
import torch
from lightrft_core.data import Media, Prompt
from lightrft_core.errors import UserError
from lightrft_engines.config import TextConfig
from lightrft_engines.hub import quietly
from lightrft_engines.text import TextAdapter
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def adapter(kit, qwen_folder) -> TextAdapter:
    return TextAdapter(TextConfig(path=str(qwen_folder)), kit.setup(qwen_folder))


def build(kit, path, **options) -> TextAdapter:
    return TextAdapter(TextConfig(path=str(path), **options), kit.setup(path))


def question(text: str = "1+1?", **changes) -> Prompt:
    return Prompt("q", ({"role": "user", "content": text},), **changes)


def test_the_chat_template_ends_where_the_completion_starts(adapter):
    pieces = adapter.pieces(adapter.render(question("a b")))
    assert "".join(pieces) == "<|user|>a b<|end|><|assistant|>"


def test_tokens_that_make_up_one_character_show_it_once(kit, quickstart_model):
    adapter = build(kit, quickstart_model)
    ids = adapter.encode("四 🤖 x")
    pieces = adapter.pieces(ids)
    assert len(pieces) == len(ids) > 6
    assert "".join(pieces) == "四 🤖 x"
    assert adapter.pieces(ids[:1]) == ["\ufffd"]


def test_a_tokenizer_without_template_joins_contents_and_says_so(kit, tmp_path, caplog):
    folder = kit.folder(tmp_path / "bare", template=None)
    adapter = build(kit, folder)
    assert "has no chat template" in caplog.text
    assert "model.chat_template" in caplog.text
    prompt = Prompt("q", ({"role": "system", "content": "x"}, {"role": "user", "content": "y"}))
    ids = adapter.render(prompt)
    assert adapter.decode(ids).replace("\n", "") == "xy"
    assert ids[-1] not in adapter.stop_token_ids


def test_a_template_file_wins_and_a_missing_one_is_named(kit, qwen_folder, tmp_path):
    (tmp_path / "own.jinja").write_text("Q:{{ messages[0].content }}")
    adapter = build(kit, qwen_folder, chat_template=str(tmp_path / "own.jinja"))
    assert adapter.decode(adapter.render(question("5"))) == "Q:5"
    with pytest.raises(UserError, match=r"model\.chat_template: no chat template at nowhere\.jinja"):
        build(kit, qwen_folder, chat_template="nowhere.jinja")


def test_a_template_that_refuses_roles_is_the_users_error(kit, qwen_folder, tmp_path):
    (tmp_path / "strict.jinja").write_text("{{ raise_exception('system role not supported') }}")
    adapter = build(kit, qwen_folder, chat_template=str(tmp_path / "strict.jinja"))
    with pytest.raises(UserError, match=r"model\.chat_template: .*prompt q .*roles user: system role not supported"):
        adapter.render(question())


def test_stop_tokens_are_those_of_generation_config_and_tokenizer(kit, tmp_path):
    folder = kit.folder(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert build(kit, folder).stop_token_ids == (7, 9, 0)


def test_media_is_refused(adapter):
    prompt = question("<image>", media=(Media("image", "a.png"),))
    with pytest.raises(UserError, match=r"model\.use: prompt q holds images"):
        adapter.render(prompt)


def test_masks_come_from_lengths_even_where_padding_is_the_end_token(kit, adapter):
    groups = kit.groups(sizes=((3, (4, 2)),))
    end = adapter.stop_token_ids[0]
    groups[0].rollouts[1].token_ids = (5, end)
    groups[0].rollouts[0].token_ids = (end, end, 6, 7)  # cut off by the length limit: the last token stays
    groups[0].rollouts[0].finish_reason = "length"
    batch = adapter.collate(groups)
    assert batch.completion_ids_BT.tolist() == [[end, end, 6, 7], [5, end, 0, 0]]
    assert batch.mask_BT.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.lengths_B.tolist() == [4, 2]


def test_unscored_rows_train_nothing(kit, adapter):
    groups = kit.groups(sizes=((3, (2, 2)),))
    groups[0].rollouts[0].reward = None
    batch = adapter.collate(groups)
    assert batch.scored_B.tolist() == [False, True]
    assert batch.mask_BT.tolist() == [[False, False], [True, True]]
    assert batch.rewards_B.tolist() == [0.0, 1.0]


def test_shaped_rewards_win_and_zero_is_a_score(kit, adapter):
    groups = kit.groups(sizes=((3, (2, 2)),))
    groups[0].rollouts[1].shaped_reward = 0.0
    groups[0].rollouts[0].reward = 0.0
    batch = adapter.collate(groups)
    assert batch.rewards_B.tolist() == [0.0, 0.0]
    assert batch.scored_B.all()


def test_an_empty_list_of_groups_is_an_empty_batch(adapter):
    assert len(adapter.collate([])) == 0


def test_the_batch_has_the_sampling_temperature(kit, qwen_folder):
    from lightrft_core.sections import SamplerSection

    setup = kit.setup(qwen_folder, sampler=SamplerSection(temperature=0.6))
    adapter = TextAdapter(TextConfig(path=str(qwen_folder)), setup)
    assert adapter.collate(kit.groups()).temperature == 0.6


def test_the_loaded_model_is_in_evaluation_mode_with_patches_applied(kit, qwen_folder):
    patched = []
    setup = kit.setup(qwen_folder, patches=(("mark", patched.append),))
    module = TextAdapter(TextConfig(path=str(qwen_folder)), setup).load("policy")
    assert patched == [module]
    assert not module.training


def test_an_exported_folder_loads_with_equal_logits(adapter, tmp_path):
    module = adapter.load("policy")
    with torch.no_grad():
        module.get_input_embeddings().weight.add_(0.1)
    adapter.export(module, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    ids = torch.arange(10)[None]
    assert torch.allclose(again(ids).logits, module(ids).logits, atol=1e-6)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_a_folder_that_is_not_there_is_the_users_error(kit, tmp_path):
    with pytest.raises(UserError, match=r"model\.path: no folder .*nowhere"):
        build(kit, tmp_path / "nowhere")


def test_a_folder_without_config_says_what_it_holds(kit, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no config\.json \(it holds notes\.txt\)"):
        build(kit, tmp_path)


def test_a_missing_tokenizer_is_named(kit, tmp_path):
    kit.model("qwen2").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer in .*model\.tokenizer"):
        build(kit, tmp_path)


def test_missing_weights_and_pickled_weights_are_refused(kit, tmp_path):
    folder = kit.folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        build(kit, folder).load("policy")
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickled weights"):
        build(kit, folder).load("policy")


def test_weights_of_another_model_are_refused_instead_of_initialised(kit, tmp_path):
    folder = kit.folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(UserError, match=r"lacks \d+ of the model's weights, such as model\.layers\.2"):
        build(kit, folder).load("policy")


def test_our_attention_is_refused_where_scores_are_capped(kit, tmp_path):
    folder = kit.folder(tmp_path / "g", "gemma2")
    assert build(kit, folder).load("policy").config._attn_implementation == "eager"
    with pytest.raises(UserError, match=r"model\.attention: .*caps its attention scores"):
        build(kit, folder, attention="lightrft").load("policy")


def test_the_hubs_report_of_each_retry_is_kept_away_while_a_model_is_read(caplog):
    hub = logging.getLogger("huggingface_hub")
    with quietly():
        hub.warning("Retrying in 1s")
    assert caplog.text == ""
    hub.warning("all the rest is heard")
    assert "all the rest" in caplog.text


def test_completions_that_did_not_end_by_themselves_are_marked(kit, qwen_folder):
    groups = kit.groups()
    for index, rollout in enumerate(groups[0].rollouts):
        rollout.finish_reason = ("stop", "length", "abort", "stop")[index]
    adapter = TextAdapter(TextConfig(path=str(qwen_folder)), kit.setup(qwen_folder))
    assert adapter.collate(groups).truncated_B.tolist() == [False, True, True, False, False, False, False, False]
