import re

import pytest
from lightrft_rewards.word_problems import MAX_PROBLEMS, WordProblem, problems, split_of

STEP = re.compile(r"(\d+)([+*-])(\d+)=(\d+)")


def value_of(left: int, sign: str, right: int) -> int:
    if sign == "*":
        return sum([left] * right)
    return left + right if sign == "+" else left - right


def test_solution_ends_with_the_answer_line():
    problem = WordProblem("How many?", ("3*4=12", "12-5=7"), 7)
    assert problem.solution == "3*4=12\n12-5=7\n#### 7"


def test_every_step_is_right():
    for problem in problems(500, 0, split="train"):
        for step in problem.steps:
            left, sign, right, result = STEP.fullmatch(step).groups()
            assert value_of(int(left), sign, int(right)) == int(result), step


def test_every_step_starts_from_the_result_before_it():
    for problem in problems(500, 0, split="train"):
        for before, after in zip(problem.steps, problem.steps[1:], strict=False):
            assert after.startswith(before.split("=")[1]), problem.steps


def test_answer_is_the_result_of_the_last_step():
    assert all(p.steps[-1].endswith(f"={p.answer}") for p in problems(500, 0, split="train"))


def test_answers_are_positive():
    assert min(p.answer for p in problems(500, 0, split="train")) > 0


def test_question_names_the_numbers_of_the_steps_in_order():
    for problem in problems(500, 0, split="train"):
        matches = [STEP.fullmatch(step) for step in problem.steps]
        used = [matches[0][1], *(match[3] for match in matches)]
        assert re.findall(r"\d+", problem.question) == used


def test_numbers_told_go_from_two_to_nine():
    told = {int(n) for p in problems(500, 0, split="train") for n in re.findall(r"\d+", p.question)}
    assert told == set(range(2, 10))


def test_one_and_two_step_problems_both_occur():
    assert {len(p.steps) for p in problems(100, 0, split="test")} == {1, 2}


@pytest.mark.parametrize(("split", "num"), [("train", 2000), ("test", 256)])
def test_questions_are_distinct(split, num):
    assert len({p.question for p in problems(num, 0, split=split)}) == num


def test_splits_are_disjoint_whatever_the_seeds():
    train = {p.question for p in problems(3000, 1, split="train")}
    assert not train & {p.question for p in problems(3000, 2, split="test")}


def test_split_is_told_by_the_question():
    assert all(split_of(p.question) == "test" for p in problems(256, 5, split="test"))


def test_same_seed_gives_the_same_problems():
    assert problems(50, 3, split="train") == problems(50, 3, split="train")


def test_other_seed_gives_other_problems():
    assert problems(50, 3, split="train") != problems(50, 4, split="train")


def test_longer_list_starts_with_the_shorter_one():
    assert problems(80, 3, split="train")[:50] == problems(50, 3, split="train")


def test_first_problem_is_the_same_on_every_machine():
    assert problems(1, 0, split="test") == [
        WordProblem("Lin buys 5 plums at the park and gives 2 to Ella. How many plums are left?", ("5-2=3",), 3)
    ]


def test_too_many_problems_are_refused_with_the_bound():
    with pytest.raises(ValueError, match=str(MAX_PROBLEMS)):
        problems(MAX_PROBLEMS + 1, 0, split="train")
