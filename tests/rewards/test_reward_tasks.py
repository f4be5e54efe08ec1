"""The tasks of the rewards package."""

import json
from pathlib import Path

import pytest
from lightrft_core.errors import UserError
from lightrft_core.testing.toys import toy_setup
from lightrft_rewards.gsm8k import Gsm8kTask, Gsm8kTaskConfig
from lightrft_rewards.word_problem_task import WordProblemsConfig, WordProblemsTask

GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"


@pytest.fixture
def folder(tmp_path):
    for name, answer in (("train", "#### 1,042"), ("test", "#### -7")):
        row = {"question": "How many?", "answer": f"because\n{answer}"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def test_gsm8k_prompts_ask_for_the_answer_and_carry_reference_and_label(folder):
    (prompt,) = Gsm8kTask(Gsm8kTaskConfig(path=str(folder)), toy_setup(folder)).everything()
    assert prompt.messages[0]["content"].startswith("How many?\nThink step by step.")
    assert "`####`" in prompt.messages[0]["content"]
    assert (prompt.id, prompt.reference, prompt.label) == ("train.jsonl:1", "1042", "gsm8k")


@pytest.mark.parametrize("path", ["", "train.jsonl", "test.jsonl"])
def test_gsm8k_test_split_is_found_in_the_folder_or_beside_a_file(folder, path):
    task = Gsm8kTask(Gsm8kTaskConfig(path=str(folder / path), split="test"), toy_setup(folder))
    assert task.everything()[0].reference == "-7"


def test_gsm8k_can_ask_for_a_box_thinking_or_nothing(folder):
    def text(**options):
        task = Gsm8kTask(Gsm8kTaskConfig(path=str(folder), **options), toy_setup(folder))
        return task.everything()[0].messages[-1]["content"]

    assert text(ask_for="boxed").endswith(r"within \boxed{}.")
    assert "<think>" in text(ask_for="think")
    assert text(ask_for="none") == "How many?"
    assert text(ask_for="none", template="Q: {question}\nA:") == "Q: How many?\nA:"


def test_gsm8k_refuses_other_rows_by_file_and_line(folder):
    (folder / "train.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n{"question": "b", "answer": "2"}\n')
    with pytest.raises(UserError) as caught:
        Gsm8kTask(Gsm8kTaskConfig(path=str(folder)), toy_setup(folder))
    assert f"{folder / 'train.jsonl'}:2: expected `question` and an `answer` that ends in `#### number`" in str(
        caught.value
    )


@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not here")
def test_gsm8k_itself_has_its_known_sizes(tmp_path):
    sizes = [len(Gsm8kTask(Gsm8kTaskConfig(path=str(GSM8K), split=s), toy_setup(tmp_path))) for s in ("train", "test")]
    assert sizes == [7473, 1319]


def test_word_problems_need_no_file_and_their_splits_share_no_question(tmp_path):
    def questions(split):
        task = WordProblemsTask(WordProblemsConfig(split=split, num=200), toy_setup(tmp_path))
        return {prompt.messages[0]["content"] for prompt in task.everything()}

    assert len(questions("train")) == len(questions("test")) == 200
    assert not questions("train") & questions("test")


def test_word_problems_have_number_label_and_a_seed_of_their_own(tmp_path):
    task = WordProblemsTask(WordProblemsConfig(num=5, seed=3, system_prompt="Hi"), toy_setup(tmp_path, seed=99))
    again = WordProblemsTask(WordProblemsConfig(num=5, seed=3, system_prompt="Hi"), toy_setup(tmp_path, seed=1))
    first = task.everything()[0]
    assert task.fingerprint() == again.fingerprint()
    assert (first.id, first.label, first.messages[0]["role"]) == ("train-3-0", "word_problems", "system")
    assert int(first.reference) > 0
