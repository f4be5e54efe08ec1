"""Tasks in memory: passes, their orders, mixtures, and going on exactly where a run stopped."""

import json

import pytest
from lightrft_core.data import Media, Prompt
from lightrft_core.errors import UserError
from lightrft_core.tasks.rows import MixedTask, RowsTask, fingerprint_of


def prompts(num: int, name: str = "p") -> list[Prompt]:
    return [Prompt(f"{name}{n}", ({"role": "user", "content": f"question {n}"},), reference=str(n)) for n in range(num)]


def ids(drawn: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in drawn]


def test_each_pass_holds_every_prompt_once_in_another_order():
    task = RowsTask(prompts(20), seed=1)
    passes = [ids(task.draw(20)) for _ in range(3)]
    assert all(sorted(one) == sorted(ids(prompts(20))) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def test_the_order_follows_from_the_seed():
    first, same, other = (RowsTask(prompts(50), seed=seed).draw(50) for seed in (7, 7, 8))
    assert first == same != other


def test_without_shuffle_the_file_order_repeats():
    assert ids(RowsTask(prompts(3), seed=1, shuffle=False).draw(7)) == ["p0", "p1", "p2"] * 2 + ["p0"]


@pytest.mark.parametrize("size", [3, 10, 30, 64])
def test_a_draw_of_a_third_never_holds_a_prompt_twice(size):
    task = RowsTask(prompts(size), seed=3)
    for _ in range(200):
        drawn = ids(task.draw(max(1, size // 3)))
        assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("done", [0, 1, 9, 10, 11, 37])
def test_a_restored_task_draws_what_the_first_would_have(done):
    task = RowsTask(prompts(10), seed=5)
    task.draw(done)
    state = json.loads(json.dumps(task.state_dict()))
    resumed = RowsTask(prompts(10), seed=5)
    resumed.load_state_dict(state)
    assert resumed.draw(25) == task.draw(25)


def test_other_data_is_refused_on_resume():
    state = RowsTask(prompts(10), seed=5).state_dict()
    with pytest.raises(UserError, match=r"task: the data is not what this checkpoint was trained on") as caught:
        RowsTask(prompts(11), seed=5).load_state_dict(state)
    assert "Resume with the same files" in str(caught.value)


def test_everything_is_in_the_given_order_and_moves_nothing():
    task = RowsTask(prompts(5), seed=5)
    before = task.state_dict()
    assert ids(task.everything()) == ids(prompts(5))
    assert task.state_dict() == before
    assert len(task) == 5


def test_no_prompts_is_a_user_error_and_equal_ids_a_programming_error():
    with pytest.raises(UserError, match="there are no prompts"):
        RowsTask([], seed=0)
    with pytest.raises(ValueError, match="same id"):
        RowsTask([*prompts(1), *prompts(1)], seed=0)


def test_the_fingerprint_sees_what_a_run_depends_on():
    base = Prompt("a", ({"role": "user", "content": "x"},), (Media("image", b"1"),), "l", "r", {"ignored": 1})
    changed = [
        Prompt("b", base.messages, base.media, "l", "r"),
        Prompt("a", ({"role": "user", "content": "y"},), base.media, "l", "r"),
        Prompt("a", base.messages, (Media("image", b"2"),), "l", "r"),
        Prompt("a", base.messages, base.media, None, "r"),
        Prompt("a", base.messages, base.media, "l", "s"),
    ]
    assert len({fingerprint_of([prompt]) for prompt in [base, *changed]}) == 6
    assert fingerprint_of([base]) == fingerprint_of([Prompt("a", base.messages, base.media, "l", "r", {"other": 2})])


def mixture() -> MixedTask:
    return MixedTask([RowsTask(prompts(5, "a"), seed=1), RowsTask(prompts(40, "b"), seed=1)], [3, 1])


def test_a_mixture_keeps_its_shares_at_every_moment():
    drawn = ids(mixture().draw(400))
    for num in range(1, 401):
        share = sum(name.startswith("a") for name in drawn[:num])
        assert abs(share - 0.75 * num) <= 1


def test_a_mixture_goes_on_exactly_and_refuses_other_shares():
    task = mixture()
    task.draw(33)
    state = json.loads(json.dumps(task.state_dict()))
    resumed = mixture()
    resumed.load_state_dict(state)
    assert resumed.draw(50) == task.draw(50)
    other = MixedTask([RowsTask(prompts(5, "a"), seed=1), RowsTask(prompts(40, "b"), seed=1)], [1, 1])
    with pytest.raises(UserError, match="not what this checkpoint"):
        other.load_state_dict(state)


def test_a_mixture_evaluates_over_everything_once():
    assert ids(mixture().everything()) == ids(prompts(5, "a")) + ids(prompts(40, "b"))
    assert len(mixture()) == 45
