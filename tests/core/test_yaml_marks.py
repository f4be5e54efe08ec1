import math

import pytest
import yaml
from lightrft_core import yaml_marks
from lightrft_core.errors import UserError
from lightrft_core.yaml_marks import parse_value, parse_yaml, read_yaml, to_yaml


def error_of(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "run.yaml")
    return str(caught.value)


def test_every_key_and_value_knows_its_line_and_column():
    node = parse_yaml("loss:\n  clip_high: 0.28\n", "run.yaml").fields()["loss"].fields()["clip_high"]
    assert node.key_origin.position == "run.yaml:2:3"
    assert node.origin.position == "run.yaml:2:14"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("5E3", 5000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2.5e-3", -0.0025),
        ("10_000", 10000),
        ("007", "007"),
        ("12:30:45", "12:30:45"),
        ("2024-01-02", "2024-01-02"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        ("1.2.3", "1.2.3"),
        (".inf", math.inf),
        ("e5", "e5"),
        ("'1e-6'", "1e-6"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    assert parse_yaml(f"a: {text}", "run.yaml").plain() == {"a": value}
    assert parse_value(text) == value


def test_a_value_on_the_command_line_may_be_any_text():
    assert parse_value("Answer: yes # really") == "Answer: yes # really"
    assert parse_value("[0.9, 0.95]") == [0.9, 0.95]
    assert parse_value("{use: clip}") == {"use": "clip"}
    assert parse_value("[a-z]+$") == "[a-z]+$"
    assert parse_value("") is None


@pytest.mark.parametrize("value", ["on", "1e-6", "null", "true", "007", "a: b", "# x", "", "line\nline", "0x10", "1_0"])
def test_text_survives_writing_and_reading(value):
    assert parse_yaml(to_yaml({"key": value}), "run.yaml").plain() == {"key": value}


@pytest.mark.parametrize("value", [1e-6, 1e-300, 0.1, 12, -3, 1e22, True, None, [1, [2.5]], {"a": {}}])
def test_values_survive_writing_and_reading(value):
    assert parse_yaml(to_yaml({"key": value}), "run.yaml").plain() == {"key": value}


def test_an_empty_file_is_an_empty_mapping():
    assert parse_yaml("", "run.yaml").plain() == {}
    assert parse_yaml("# only words\n", "run.yaml").plain() == {}


def test_a_duplicate_key_names_both_places():
    assert error_of("loss:\n  clip: 1\n  clip: 2\n") == (
        "run.yaml:3:3: the key 'clip' is here twice; the first is in line 2."
    )


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!!binary", "!mine", "!!set"]
)
def test_tags_that_build_objects_are_refused(tag):
    text = error_of(f"a: {tag} [x]")
    assert text.startswith("run.yaml:1:4: the tag ") and "is not allowed" in text


def test_a_tag_that_does_not_fit_is_refused():
    assert error_of("a: !!int fast") == "run.yaml:1:4: 'fast' does not fit its tag."


def test_a_list_at_the_top_is_refused():
    assert error_of("- a\n") == "run.yaml:1:1: holds a list, not sections. Write `section: ...` lines."


def test_two_documents_are_refused():
    assert error_of("a: 1\n---\nb: 2\n").startswith("run.yaml:2:1: not valid YAML")


def test_tabs_get_their_own_hint():
    text = error_of("a:\n\tb: 1\n")
    assert text.startswith("run.yaml:2:1: not valid YAML") and text.endswith("Indent with spaces, not tabs.")


def test_an_alias_bomb_is_refused_quickly():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "aliases make this file too large or endless" in error_of("\n".join(lines))


def test_an_endless_alias_is_refused():
    assert "aliases make this file too large or endless" in error_of("a: &a [*a]")


@pytest.mark.parametrize("opening", ["[", "{a: "])
def test_deep_nesting_is_refused_without_a_crash(opening):
    assert f"nested deeper than {yaml_marks.MAX_DEPTH} levels" in error_of("a: " + opening * 5000)


def test_an_undefined_alias_is_refused():
    assert error_of("a: *b").startswith("run.yaml:1:4: not valid YAML")


def test_anchors_and_merge_keys_work_and_own_keys_win():
    text = "task: &t\n  path: a\n  split: x\nevaluation:\n  task:\n    <<: *t\n    path: b\n"
    assert parse_yaml(text, "run.yaml").plain()["evaluation"]["task"] == {"path": "b", "split": "x"}


def test_merging_something_else_than_a_mapping_is_refused():
    assert error_of("a:\n  <<: 3\n").endswith("`<<` takes a mapping or a list of them.")


def test_a_file_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text("a: " + "x" * yaml_marks.MAX_BYTES)
    with pytest.raises(UserError, match="larger than 1,000,000 bytes"):
        read_yaml(path, "big.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match=r"odd.yaml: byte 3 is not UTF-8 text"):
        read_yaml(path, "odd.yaml")


def test_control_characters_are_refused():
    assert error_of("a: \x00").startswith("run.yaml: not valid YAML")


def test_a_byte_order_mark_does_not_matter(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path, "bom.yaml").plain() == {"a": 1}


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml", "none.yaml")


def test_plain_yaml_of_pyyaml_reads_alike():
    data = {"a": [1, 2.5, "x", None, True], "b": {"c": "d e", "f": []}}
    assert parse_yaml(yaml.safe_dump(data), "x").plain() == data
