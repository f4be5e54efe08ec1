"""The built-in task: the row formats that users of LightRFT have, and an error with file and line for the rest."""

import base64
import json
from pathlib import Path

import pytest
from lightrft_core.data import Media
from lightrft_core.errors import UserError
from lightrft_core.tasks.jsonl import JsonlConfig, JsonlTask
from lightrft_core.testing.toys import toy_setup
from pydantic import ValidationError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def load(tmp_path):
    def build(*rows: dict | str, **options) -> list:
        return task(*rows, **options).everything()

    def task(*rows: dict | str, **options) -> JsonlTask:
        file = tmp_path / "train.jsonl"
        file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return JsonlTask(JsonlConfig(**{"path": str(file), **options}), toy_setup(tmp_path))

    build.task = task
    return build


def user(text: str) -> tuple:
    return ({"role": "user", "content": text},)


def test_a_prompt_that_is_text(load):
    (prompt,) = load({"prompt": "What?", "ground_truth": 42, "extra": [1]})
    assert prompt.messages == user("What?")
    assert (prompt.id, prompt.reference, prompt.label) == ("train.jsonl:1", "42", None)
    assert prompt.metadata == {"ground_truth": 42, "extra": [1]}


def test_a_lightrft_row_with_messages_reward_model_and_extra_info(load):
    row = {
        "data_source": "math",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}],
        "ability": "math",
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"label": "math_rule", "index": 7},
    }
    (prompt,) = load(row, system_prompt="Ignored where there is one.")
    assert [message["role"] for message in prompt.messages] == ["system", "user"]
    assert prompt.messages[0]["content"] == "Be brief."
    assert (prompt.reference, prompt.label) == ("2", "math_rule")


def test_a_system_prompt_is_added_only_where_none_is(load):
    (prompt,) = load({"prompt": "x"}, system_prompt="Think.")
    assert prompt.messages == ({"role": "system", "content": "Think."}, *user("x"))


def test_named_columns_win_over_the_usual_ones(load):
    (prompt,) = load(
        {"q": "x", "gold": "1", "ground_truth": "2", "kind": "a", "extra_info": {"label": "b"}, "uid": 9},
        input_key="q", reference_key="gold", label_key="kind", id_key="uid", input_template="Q: {}\nA:",
    )  # fmt: skip
    assert (prompt.id, prompt.reference, prompt.label) == ("9", "1", "a")
    assert prompt.messages == user("Q: x\nA:")


def test_gsm8k_rows_give_the_number_after_the_mark(load):
    (prompt,) = load({"question": "How many?", "answer": "6*7=<<6*7=42>>42\n#### 1,042"}, input_key="question")
    assert prompt.reference == "1042"
    (prompt,) = load({"question": "x", "answer": "y\n#### -3"}, input_key="question", reference_key="answer")
    assert prompt.reference == "-3"


@pytest.mark.skipif(not (SHARED / "gsm8k").is_dir(), reason="GSM8K is not here")
def test_gsm8k_itself_loads_with_a_reference_in_every_row(tmp_path):
    config = JsonlConfig(path=str(SHARED / "gsm8k"), split="test", input_key="question")
    prompts = JsonlTask(config, toy_setup(tmp_path)).everything()
    assert len(prompts) == 1319
    assert all(prompt.reference is not None for prompt in prompts)


@pytest.mark.skipif(not (SHARED / "geo3k").is_dir(), reason="Geometry3K is not here")
def test_geo3k_rows_load_with_their_images(tmp_path):
    config = JsonlConfig(
        path=str(SHARED / "geo3k" / "sample.jsonl"),
        input_key="problem",
        images_key="image",
        reference_key="answer_text",
        input_template="<image>{}",
    )
    prompts = JsonlTask(config, toy_setup(tmp_path)).everything()
    assert len(prompts) == 10
    assert all(Path(prompt.media[0].source).is_file() for prompt in prompts)
    assert prompts[1].reference == "13"


def test_images_come_as_paths_urls_of_files_bytes_and_base64(load, tmp_path):
    (tmp_path / "a b.png").write_bytes(b"PNG")
    path, data = str(tmp_path / "a b.png"), base64.b64encode(b"x" * 60).decode()
    images = ["a b.png", path, f"file://{path.replace(' ', '%20')}", data, f"data:image/png;base64,{data}"]
    images += [{"bytes": data, "path": "gone.png"}, {"path": "a b.png"}]
    (prompt,) = load({"prompt": "<image>" * len(images), "images": images})
    decoded = Media("image", b"x" * 60)
    assert prompt.media == (Media("image", path),) * 3 + (decoded,) * 3 + (Media("image", path),)


def test_content_parts_become_placeholders_in_order(load, tmp_path):
    for name in ("a.png", "b.wav", "c.png"):
        (tmp_path / name).touch()
    content = [
        {"type": "text", "text": "Look "},
        {"type": "image", "image": "c.png"},
        {"type": "audio", "audio_url": "b.wav"},
        {"type": "image"},
        {"type": "text", "text": " and say."},
    ]
    (prompt,) = load({"prompt": [{"role": "user", "content": content}], "images": "a.png"})
    assert prompt.messages == user("Look <image><audio><image> and say.")
    assert [Path(str(media.source)).name for media in prompt.media] == ["c.png", "b.wav", "a.png"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "x"}, "no column 'prompt'; the row has text (set task.input_key)"),
        ({"prompt": None}, "column 'prompt' holds nothing, expected text or a list of messages"),
        ({"prompt": "  "}, "column 'prompt' is empty"),
        ({"prompt": []}, "column 'prompt' holds an empty list"),
        ({"prompt": ["hello"]}, "expected messages with role and content, found 'hello'"),
        ({"prompt": [{"role": "user", "content": 3}]}, "the content of a user message is int, expected text or parts"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "tool"}]}]},
            "content part of type 'tool'; known: text, image",
        ),
        ({"prompt": "<image>"}, "the text has 1 <image> and column 'images' has 0; they must be as many"),
        ({"prompt": "x", "images": ["a.png"]}, "set task.input_template: '<image>{}'"),
        ({"prompt": "<image>", "images": ["https://x.org/a.png"]}, "is a URL; nothing is fetched"),
        ({"prompt": "<image>", "images": ["gone.png"]}, "gone.png' does not exist"),
        ({"prompt": "<image>", "images": [{"bytes": "%%%"}]}, "image is not valid base64"),
        ({"prompt": "<image>", "images": [7]}, "image is a int; expected a path, bytes, base64"),
        ({"prompt": "<image>", "images": [{"url": None}]}, "image is an object without bytes or path"),
        ('{"prompt": ', "not JSON"),
    ],
)
def test_a_bad_row_is_an_error_with_file_line_and_what_was_expected(load, tmp_path, row, problem):
    with pytest.raises(UserError) as caught:
        load({"prompt": "good"}, row)
    assert str(caught.value).startswith(f"{tmp_path / 'train.jsonl'}:2: ")
    assert problem in str(caught.value)
    assert "task.on_bad_row: skip" in str(caught.value)


def test_bad_rows_can_be_skipped_and_are_counted(load, caplog):
    prompts = load({"prompt": "a"}, "{", {"text": "b"}, {"prompt": "c"}, on_bad_row="skip")
    assert [prompt.id for prompt in prompts] == ["train.jsonl:1", "train.jsonl:4"]
    assert "skipped 2 bad rows, kept 2" in caplog.text
    assert "train.jsonl:2: not JSON" in caplog.text


def test_only_bad_rows_are_an_error_even_when_they_may_be_skipped(load):
    with pytest.raises(UserError, match="none of the 2 rows can be used; the first: not JSON"):
        load("{", "{", on_bad_row="skip")


def test_empty_data_is_a_user_error(load):
    with pytest.raises(UserError, match=r"task\.path: .*train\.jsonl holds no rows"):
        load()


@pytest.mark.parametrize("option", ["reference_key", "label_key"])
def test_a_named_column_that_no_row_has_is_refused(load, option):
    with pytest.raises(UserError) as caught:
        load({"prompt": "a", "answer": "b"}, **{option: "anser"})
    assert f"task.{option}: no row of" in str(caught.value)
    assert "There are: answer, prompt" in str(caught.value)


def test_repeated_ids_are_told_apart(load):
    prompts = load({"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}, {"prompt": "c", "id": 2})
    assert [prompt.id for prompt in prompts] == ["1", "1@train.jsonl:2", "2"]


def test_long_prompts_are_dropped_and_counted(load, caplog):
    prompts = load({"prompt": "1" * 9}, {"prompt": "1" * 10}, {"prompt": "1" * 11}, max_prompt_tokens=10)
    assert [prompt.id for prompt in prompts] == ["train.jsonl:1", "train.jsonl:2"]
    assert "dropped 1 of 3 prompts: longer than max_prompt_tokens 10" in caplog.text


def test_a_long_prompt_can_be_an_error(load):
    with pytest.raises(UserError, match=r"prompt 'train\.jsonl:1' has 11 tokens, more than max_prompt_tokens 10"):
        load({"prompt": "1" * 11}, max_prompt_tokens=10, long_prompts="error")


def test_if_every_prompt_is_too_long_the_numbers_are_told(load):
    with pytest.raises(UserError) as caught:
        load({"prompt": "1" * 11}, {"prompt": "1" * 30}, max_prompt_tokens=10)
    assert "all 2 prompts are longer than max_prompt_tokens 10; the longest has 30 tokens" in str(caught.value)


def test_only_so_many_prompts(load):
    assert len(load(*({"prompt": str(n)} for n in range(9)), max_prompts=4)) == 4


def test_several_files_are_one_task_and_shares_mix_them(tmp_path):
    for name, num in (("a", 3), ("b", 30)):
        lines = [json.dumps({"prompt": f"{name}{n}", "id": n}) for n in range(num)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    both = f"{tmp_path}/a.jsonl, {tmp_path}/b.jsonl"
    plain = JsonlTask(JsonlConfig(path=both), toy_setup(tmp_path))
    assert len(plain) == 33
    assert len({prompt.id for prompt in plain.everything()}) == 33
    mixed = JsonlTask(JsonlConfig(path=both, probabilities="0.5,0.5"), toy_setup(tmp_path))
    texts = [prompt.messages[0]["content"][0] for prompt in mixed.draw(40)]
    assert texts.count("a") == texts.count("b") == 20
    again = JsonlTask(JsonlConfig(path=both, probabilities=(1, 1)), toy_setup(tmp_path))
    assert again.draw(40) == JsonlTask(JsonlConfig(path=both, probabilities=(2, 2)), toy_setup(tmp_path)).draw(40)


def test_shares_must_be_as_many_as_paths_and_positive(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}')
    with pytest.raises(UserError, match="2 probabilities for 1 paths"):
        JsonlTask(JsonlConfig(path=f"{tmp_path}/a.jsonl", probabilities=(0.5, 0.5)), toy_setup(tmp_path))
    with pytest.raises(ValidationError, match="above 0"):
        JsonlConfig(path="a.jsonl", probabilities=(0.0, 1.0))


def test_a_template_without_a_place_is_refused():
    with pytest.raises(ValidationError, match=r"no \{\} for the prompt"):
        JsonlConfig(path="a.jsonl", input_template="Q:")


def test_parquet_rows_work_like_any_other(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"prompt": [{"role": "user", "content": "<image>?"}], "images": [{"bytes": b"\x89PNG", "path": None}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    (prompt,) = JsonlTask(JsonlConfig(path=str(tmp_path)), toy_setup(tmp_path)).everything()
    assert prompt.media == (Media("image", b"\x89PNG"),)


def test_a_mixture_goes_on_where_it_stopped(load):
    rows = [{"prompt": str(n)} for n in range(10)]
    task, resumed = load.task(*rows), load.task(*rows)
    task.draw(13)
    resumed.load_state_dict(json.loads(json.dumps(task.state_dict())))
    assert resumed.draw(20) == task.draw(20)
