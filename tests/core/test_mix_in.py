"""`optim.ptx`: examples read, drawn in a resumable order, and learnt by a real run."""

import json

import pytest
from lightrft_core.assembly import rehearse
from lightrft_core.errors import UserError
from lightrft_core.mix_in import MixIn
from lightrft_core.protocols import SoloWorld
from lightrft_core.sections import MixInSection
from lightrft_core.testing.toys import toy_setup

from tests.core.real_run import real_run, small_run_file
from tests.core.test_critic_run import BASE, numbers

ROWS = [{"prompt": str(digit), "response": f"{digit}{digit}"} for digit in range(7)]


class Learner:
    """Keeps what it is handed."""

    def __init__(self, world=None):
        self.world, self.given = world or SoloWorld(), []

    def mix_in(self, examples, coef):
        self.given.append((examples, coef))


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mix_in(tmp_path, rows=ROWS, *, world=None, seed=3, **options):
    section = MixInSection(path=written(tmp_path / "examples.jsonl", rows), **{"batch_size": 3, **options})
    learner = Learner(world)
    return MixIn(section, toy_setup(tmp_path).model, learner, seed), learner


def drawn(learner):
    return [prompt_id for batch, _ in learner.given for prompt_id in batch.prompt_ids]


def test_an_example_is_prompt_response_and_end_at_temperature_1(tmp_path):
    feed, learner = mix_in(tmp_path, ROWS[4:5], batch_size=1, coef=0.2)
    feed()
    (batch, coef), model = learner.given[0], toy_setup(tmp_path).model
    assert coef == 0.2
    assert tuple(batch.prompt_token_ids[0]) == model.encode("4")
    assert list(batch.completion_ids_BT[0]) == [*model.encode("44"), model.stop_token_ids[0]]
    assert list(batch.mask_BT[0]) == [True] * 3
    assert batch.temperature == 1.0


def test_messages_end_with_the_answer(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "5"}, {"role": "assistant", "content": "6"}]}]
    feed, learner = mix_in(tmp_path, rows, batch_size=1)
    feed()
    model = toy_setup(tmp_path).model
    assert tuple(learner.given[0][0].prompt_token_ids[0]) == model.encode("5")
    assert list(learner.given[0][0].completion_ids_BT[0])[:1] == list(model.encode("6"))


def test_every_pass_holds_every_example(tmp_path):
    feed, learner = mix_in(tmp_path, batch_size=7)
    feed()
    feed()
    names = drawn(learner)
    assert sorted(names[:7]) == sorted(names[7:]) and len(set(names)) == 7 and names[:7] != names[7:]


def test_the_order_is_the_seeds(tmp_path):
    found = []
    for seed in (3, 3, 4):
        feed, learner = mix_in(tmp_path, batch_size=7, seed=seed)
        feed()
        found.append(drawn(learner))
    assert found[0] == found[1] != found[2]


def test_a_resumed_run_goes_on_with_the_example_that_was_next(tmp_path):
    whole, learner = mix_in(tmp_path)
    whole()
    state = json.loads(json.dumps(whole.state_dict()))
    again, other = mix_in(tmp_path)
    again.load_state_dict(state)
    for _ in range(4):
        whole()
        again()
    assert drawn(learner)[3:] == drawn(other)


def test_ranks_share_one_draw(tmp_path):
    alone, learner = mix_in(tmp_path, batch_size=4)
    alone()

    class Rank:
        size = 2

        def __init__(self, rank):
            self.rank = rank

    shares = []
    for rank in range(2):
        feed, own = mix_in(tmp_path, batch_size=4, world=Rank(rank))
        feed()
        shares.append(drawn(own))
    assert [name for pair in zip(*shares, strict=True) for name in pair] == drawn(learner)


def test_examples_that_are_too_long_are_counted(tmp_path, caplog):
    mix_in(tmp_path, [*ROWS, {"prompt": "1", "response": "123456789"}], max_tokens=6)
    assert "1 of 8 examples are too long" in caplog.text
    with pytest.raises(UserError, match=r"optim\.ptx\.path: no example fits\. max_tokens is 2"):
        mix_in(tmp_path, max_tokens=2)


@pytest.mark.parametrize("row", [{"prompt": "1"}, {"response": "1"}, {"prompt": "1", "response": 3}, {"messages": []}])
def test_a_row_without_an_answer_is_named(tmp_path, row):
    with pytest.raises(UserError, match=r"optim\.ptx\.path: .*examples\.jsonl:2: needs `prompt` and a `response`"):
        mix_in(tmp_path, [ROWS[0], row])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"optim\.ptx\.path: there is no file or folder"):
        MixIn(MixInSection(path=("./none.jsonl",)), toy_setup(tmp_path).model, Learner(), 0)


def test_flags_and_errors_of_the_section(load_run, run_problems):
    run = load_run(BASE, flags=("--pretrain_data", "more.jsonl", "--ptx_coef", "0.1"))
    assert (run.optim.ptx.coef, len(run.optim.ptx.path)) == (0.1, 1)
    assert load_run(run.to_yaml()) == run
    (text,) = run_problems(BASE, flags=("--ptx_coef", "0.1"))
    assert "optim.ptx.path" in text and "missing" in text
    (text,) = run_problems(BASE + "optim: {ptx: {path: ./more.jsonl, coeff: 1}}\n")
    assert "optim.ptx.coeff" in text


def test_a_real_run_learns_the_examples_and_resumes_to_the_same_numbers(tmp_path):
    path = written(tmp_path / "examples.jsonl", [{"prompt": "What is 1+1?", "response": "#### 2"}] * 3)
    sets = (f"optim.ptx={{path: {path}, coef: 1.0, batch_size: 2}}", "optim.lr=1e-3", "run.steps=6")
    for name in ("whole", "again"):
        (tmp_path / name).mkdir()
    whole, again = (real_run(tmp_path / name, "selftest.enabled=false", *sets) for name in ("whole", "again"))
    first, second = whole.trainer(), again.trainer()
    start = [numbers(first.step()) for _ in range(2)]
    first.save()
    checkpoint = first.parts.checkpoints.newest(SoloWorld())
    expected = [numbers(first.step()) for _ in range(4)]
    again.core.strategy.load(checkpoint.path)
    second.resume(json.loads(json.dumps(checkpoint.state)))
    assert [numbers(second.step()) for _ in range(4)] == expected
    assert expected[-1]["train/ptx_loss"] < start[0]["train/ptx_loss"]
    whole.core.close()
    again.core.close()


def test_a_dry_run_reads_the_examples(tmp_path):
    path = written(tmp_path / "examples.jsonl", [{"prompt": "1"}])
    run_file, plugins = small_run_file(f"optim.ptx={{path: {path}}}")
    with pytest.raises(UserError, match=r"examples\.jsonl:1: needs"):
        rehearse(run_file, plugins)
