import importlib.util
import json
import random
import re
from pathlib import Path

import pytest
import torch
from lightrft_rewards.word_problems import WordProblem, problems
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "packages/lightrft-core/src/lightrft_core/recipes/quickstart-model"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3+4=?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_quickstart_model", ROOT / "scripts/make_quickstart_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer_in(text: str) -> int | None:
    found = re.fullmatch(r"#### (\d+)", text.split("\n")[-1])
    return int(found[1]) if found else None


def test_folder_is_at_most_two_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000


def test_weights_can_be_read_by_everyone():
    assert (FOLDER / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_config_tells_the_stored_dtype():
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "bfloat16"


def test_model_loads_in_fp32(model):
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_model_has_one_row_for_every_token(model, tokenizer):
    assert model.config.vocab_size == len(tokenizer)


def test_end_differs_from_padding(tokenizer):
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_all_configs_agree_on_end_and_padding(model, tokenizer):
    ids = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (model.config.eos_token_id, model.config.pad_token_id) == ids
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == ids


def test_generation_defaults_sample_the_whole_distribution(model):
    defaults = model.generation_config
    assert (defaults.do_sample, defaults.temperature, defaults.top_k, defaults.top_p) == (True, 1.0, 0, 1.0)


def test_problems_round_trip(tokenizer):
    for problem in problems(200, 0, split="test"):
        assert tokenizer.decode(tokenizer.encode(problem.question)) == problem.question
        assert tokenizer.decode(tokenizer.encode(problem.solution)) == problem.solution


def test_unknown_text_round_trips_as_bytes(tokenizer):
    text = "Größe: 漢字 🙂\n\tint main() { return 42; }"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_each_word_of_a_problem_is_one_token(tokenizer):
    assert [len(tokenizer.encode(word)) for word in ("Nora", " plums", " library", "####")] == [1, 1, 1, 1]


def test_chat_template_renders_roles_and_the_generation_prompt(tokenizer):
    assert tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n3+4=?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_template_closes_the_answer_of_the_assistant(tokenizer):
    answered = [*CHAT, {"role": "assistant", "content": "#### 7"}]
    assert tokenizer.apply_chat_template(answered, tokenize=False).endswith("assistant\n#### 7<|im_end|>\n")


def test_start_model_can_answer_but_not_reliably(model, tokenizer):
    held_out = problems(96, 0, split="test")
    chats = [[{"role": "user", "content": problem.question}] for problem in held_out]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    torch.manual_seed(0)
    ids_BT = model.generate(**batch)
    texts = tokenizer.batch_decode(ids_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [answer_in(text) == problem.answer for text, problem in zip(texts, held_out, strict=True)]
    assert 0.2 < sum(right) / len(right) < 0.5


def test_card_tells_how_the_model_was_made():
    card = (FOLDER / "README.md").read_text()
    assert "mixed quality" in card
    assert "make_quickstart_model.py" in card


def test_lessons_hold_no_held_out_question(script):
    held_out = {problem.question for problem in problems(2000, 0, split="test")}
    assert not held_out & {problem.question for problem in script.lessons(script.SEED, 4000)}


def test_about_two_in_five_mixed_solutions_are_right(script):
    rng = random.Random(0)
    drawn = problems(2000, 0, split="train")
    right = sum(answer_in(script.mixed_solution(problem, rng)) == problem.answer for problem in drawn)
    assert 0.34 < right / len(drawn) < 0.46


def test_other_operation_keeps_the_two_numbers(script):
    problem = WordProblem("", ("7-3=4",), 4)
    written = {script.mixed_solution(problem, random.Random(seed)).split("=")[0] for seed in range(100)}
    assert written == {"7-3", "7+3", "7*3"}


def test_tokenizer_is_made_the_same_again(script, tokenizer):
    assert script.make_tokenizer(script.tokenizer_texts(script.SEED)).get_vocab() == tokenizer.get_vocab()
