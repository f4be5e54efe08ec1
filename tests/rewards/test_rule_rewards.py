"""The rules: exact, numeric, gsm8k, format and LightRFT's recipes, on single responses."""

import json
from pathlib import Path

import pytest
from lightrft_core.data import Prompt, Score, ScoreRequest
from lightrft_rewards.exact import ExactConfig, ExactReward
from lightrft_rewards.mathematics import Geo3kRule, Gsm8kRule, RuleConfig
from lightrft_rewards.numeric import Gsm8kConfig, Gsm8kReward, NumericConfig, NumericReward
from lightrft_rewards.thinking import FormatConfig, FormatReward, thinks_then_boxes
from pydantic import ValidationError

GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"


def judge(reward, response: str, reference: str | None = "42") -> Score:
    prompt = Prompt("p", ({"role": "user", "content": r"Answer in \boxed{}."},), reference=reference)
    return reward.score([ScoreRequest(response, (), prompt)])[0]


@pytest.mark.parametrize(
    ("find", "response", "value"),
    [
        ("whole", " paris. ", 1.0),
        ("whole", "<think>Rome?</think>Paris", 1.0),
        ("whole", "It is Paris", 0.0),
        ("line", "It is easy.\nParis\n", 1.0),
        ("boxed", r"\boxed{Paris}", 1.0),
        ("boxed", "Paris", 0.0),
        ("hash", "so\n#### Paris", 1.0),
    ],
)
def test_exact(find, response, value):
    score = judge(ExactReward(ExactConfig(find=find)), response, "Paris")
    assert score == Score(value, parts={"accuracy": value})


def test_exact_can_mind_the_case():
    assert judge(ExactReward(ExactConfig(case_sensitive=True)), "paris", "Paris").value == 0.0


@pytest.mark.parametrize(
    ("find", "response", "value"),
    [
        ("auto", "#### 42", 1.0),
        ("auto", r"7 \boxed{42} 8", 1.0),
        ("auto", "it is 42.", 1.0),
        ("auto", "#### 41\n42", 0.0),
        ("hash", "42", 0.0),
        ("boxed", "#### 42", 0.0),
        ("last", "42 or 41", 0.0),
        ("hash", "#### $42.00", 1.0),
        ("hash", "#### 41 42", 0.0),
        ("hash", "<think>#### 42</think>", 0.0),
    ],
)
def test_numeric(find, response, value):
    assert judge(NumericReward(NumericConfig(find=find)), response).value == value


def test_numeric_compares_exactly_unless_told_otherwise():
    assert judge(NumericReward(NumericConfig()), "#### 0.1", "1/10").value == 1.0
    assert judge(NumericReward(NumericConfig()), "#### 0.1000001", "1/10").value == 0.0
    assert judge(NumericReward(NumericConfig(tolerance=0.001)), "#### 0.1000001", "1/10").value == 1.0


def test_a_reference_without_a_number_is_unscored():
    assert judge(NumericReward(NumericConfig()), "#### 1", "blue") == Score(
        None, reason="the reference 'blue' holds no number"
    )


@pytest.mark.parametrize(
    ("response", "reference", "value"),
    [
        ("48/2=24\n#### 1,042", "1042", 1.0),
        ("#### 1042", "1,042", 1.0),
        ("#### -3", "-3", 1.0),
        ("#### 3", "-3", 0.0),
        ("the answer is 42", "42", 0.0),
        ("#### 42\n#### 41", "42", 0.0),
        ("####", "42", 0.0),
        ("#### " + "9" * 5000, "42", 0.0),
    ],
)
def test_gsm8k_reads_the_last_hash_line_only(response, reference, value):
    assert judge(Gsm8kReward(Gsm8kConfig()), response, reference).value == value


@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not here")
def test_every_gold_answer_of_gsm8k_is_right_and_every_other_is_wrong():
    rows = [json.loads(line) for name in ("train", "test") for line in (GSM8K / f"{name}.jsonl").open()]
    answers = [row["answer"] for row in rows]
    assert len(answers) == 8792
    reward, number = Gsm8kReward(Gsm8kConfig()), NumericReward(NumericConfig())
    for answer in answers:
        reference = answer.rpartition("####")[2].strip()
        value = int(reference.replace(",", ""))
        assert judge(reward, answer, reference).value == judge(number, answer, str(value)).value == 1.0
        assert judge(reward, answer, str(value + 1)).value == 0.0


@pytest.mark.parametrize(
    ("response", "fits"),
    [
        (r"<think>a</think>\boxed{1}", True),
        (r"<think>a</think> so \boxed{1} and \boxed{2}", True),
        (r"\boxed{1}<think>a</think>", False),
        (r"<think>\boxed{1}</think>\boxed{2}", False),
        (r"<think>a \boxed{1}", False),
        (r"a</think>\boxed{1}", False),
        (r"<think>a</think>\boxed{1", False),
        ("", False),
    ],
)
def test_the_default_format_is_thinking_before_the_first_box(response, fits):
    assert thinks_then_boxes(response) is fits
    assert judge(FormatReward(FormatConfig()), response) == Score(float(fits), parts={"format": float(fits)})


def test_a_format_may_be_a_pattern_over_the_whole_response():
    reward = FormatReward(FormatConfig(pattern=r"<answer>.*</answer>"))
    assert judge(reward, "<answer>a\nb</answer>").value == 1.0
    assert judge(reward, "x <answer>a</answer>").value == 0.0


def test_a_pattern_that_is_none_is_refused_in_the_run_file():
    with pytest.raises(ValidationError, match="not a regular expression: missing"):
        FormatConfig(pattern="(")


@pytest.mark.parametrize(
    ("response", "value", "accuracy", "shape"),
    [
        (r"<think>a</think>\boxed{42}", 1.0, 1.0, 1.0),
        (r"\boxed{42}", 0.9, 1.0, 0.0),
        (r"<think>a</think>\boxed{41}", 0.1, 0.0, 1.0),
        ("42", 0.0, 0.0, 0.0),
        (r"\boxed{42} \boxed{41}", 0.0, 0.0, 0.0),
        (r"\boxed{42 \text{ apples}}", 0.9, 1.0, 0.0),
    ],
)
@pytest.mark.parametrize("rule", [Gsm8kRule, Geo3kRule])
def test_the_recipes_weigh_accuracy_and_format_of_the_response_alone(rule, response, value, accuracy, shape):
    if rule is Geo3kRule:
        pytest.importorskip("math_verify")
    score = judge(rule(RuleConfig()), response)
    assert score.value == pytest.approx(value)
    assert score.parts == {"accuracy": accuracy, "format": shape}


def test_geo3k_understands_expressions():
    pytest.importorskip("math_verify")
    assert judge(Geo3kRule(RuleConfig()), r"\boxed{\sqrt{50}}", r"5 \sqrt { 2 }").parts["accuracy"] == 1.0


def test_the_weight_of_the_format_can_be_set():
    assert judge(Gsm8kRule(RuleConfig(format_weight=0.5)), r"\boxed{42}").value == 0.5
