import pytest
from lightrft_core.batch_rule import BatchPlan, check_batch
from lightrft_core.errors import Problems

BASE = "model: {path: ./model}\ntask: {path: ./train.jsonl}\nrewards: [exact]\n"


@pytest.fixture
def plan(load_run):
    """The plan of a rollout of 16 x 8 = 128 samples, changed by `--set` texts."""

    def make(*sets, ranks=1, flags=()):
        sizes = ("sampler.prompts_per_step=16", "sampler.group_size=8")
        return check_batch(load_run(BASE, sets=(*sizes, *sets), flags=flags), ranks)

    return make


@pytest.fixture
def violations(plan):
    """The sentences of what does not fit."""

    def make(*sets, ranks=1, flags=()):
        with pytest.raises(Problems) as caught:
            plan(*sets, ranks=ranks, flags=flags)
        return [str(problem) for problem in caught.value.problems]

    return make


def test_without_a_batch_size_a_rollout_is_one_optimizer_step(plan):
    found = plan()
    assert (found.samples_per_step, found.num_minibatches, found.optimizer_steps_per_rollout) == (128, 1, 1)
    assert found.describe() == "16 prompts x 8 = 128 samples / 128 per update = 1 update per rollout"


def test_a_smaller_batch_gives_several_steps(plan):
    found = plan("optim.batch_size=32", "optim.epochs=2")
    assert (found.minibatch_size, found.num_minibatches, found.optimizer_steps_per_rollout) == (32, 4, 8)
    assert found.describe() == (
        "16 prompts x 8 = 128 samples / 32 per update x 2 epochs = 8 updates per rollout (updates 2-8 off-policy)"
    )


def test_the_second_of_two_updates_is_named(plan):
    assert (
        plan("optim.batch_size=64", ranks=2)
        .describe()
        .endswith("= 2 updates per rollout (update 2 off-policy) on 2 ranks")
    )


def test_a_larger_batch_is_explained(violations):
    assert violations("optim.batch_size=256") == [
        "--set optim.batch_size: 256 is larger than what a rollout yields: 16 prompts x 8 completions = 128 samples. "
        "Set it to 128 or leave it out, or raise sampler.prompts_per_step to 32."
    ]


def test_a_batch_that_does_not_divide_gets_the_nearest_that_do(violations):
    assert violations("optim.batch_size=48") == [
        "--set optim.batch_size: 48 does not divide a rollout evenly: 16 prompts x 8 completions = 128 samples, and "
        "128 / 48 leaves 32. Nearest: 32 or 64."
    ]


def test_prompts_are_shared_evenly_by_the_ranks(violations):
    assert violations(ranks=3)[0] == (
        "--set sampler.prompts_per_step: 16 prompts cannot be shared evenly by 3 ranks: 1 would be left over. "
        "Nearest: 15 or 18."
    )


def test_a_batch_is_divisible_by_ranks_and_micro_batch(violations):
    (text,) = violations("optim.batch_size=16", "strategy.micro_batch_size=3", ranks=2)
    assert text.startswith(
        "--set optim.batch_size: 16 is not divisible by 2 ranks x micro-batch 3 = 6: 16 / 6 leaves 4."
    )
    assert text.endswith("Or set strategy.micro_batch_size to 2 or 4.")


def test_a_rollout_is_divisible_by_the_micro_batch_too(violations):
    assert violations("strategy.micro_batch_size=24") == [
        "--set strategy.micro_batch_size: a rollout's 16 prompts x 8 completions = 128 samples are not divisible by "
        "1 rank x micro-batch 24 = 24. Nearest: 16 or 32."
    ]


def test_all_violations_are_told_at_once(violations):
    texts = violations("optim.batch_size=50", "strategy.micro_batch_size=4", ranks=3)
    assert [text.partition(": ")[0] for text in texts] == [
        "--set sampler.prompts_per_step",
        "--set optim.batch_size",
        "--set optim.batch_size",
    ]


def test_flags_are_named_as_the_user_gave_them(violations):
    (text,) = violations(flags=("--train_batch_size", "48"))
    assert text.startswith("--train_batch_size (optim.batch_size): 48 does not divide")


def test_a_default_micro_batch_is_no_demand(plan):
    assert plan("optim.batch_size=1").num_minibatches == 128


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("prompts", [1, 3, 8, 12, 16])
@pytest.mark.parametrize("size", [None, 1, 2, 6, 8, 12, 16, 24, 48, 64, 200])
def test_the_rule_says_exactly_what_it_should(load_run, ranks, prompts, size):
    sets = [f"sampler.prompts_per_step={prompts}", "sampler.group_size=4", f"optim.batch_size={size or 'null'}"]
    samples = prompts * 4
    taken = size or samples
    should_fit = prompts % ranks == 0 and taken <= samples and samples % taken == 0 and taken % ranks == 0
    run = load_run(BASE, sets=sets)
    if should_fit:
        assert check_batch(run, ranks) == BatchPlan(prompts, 4, taken, 1, ranks)
    else:
        with pytest.raises(Problems):
            check_batch(run, ranks)


@pytest.mark.parametrize("size", [3, 5, 7, 48, 100, 127])
def test_the_nearest_values_that_are_named_do_fit(violations, plan, size):
    import re

    (text,) = violations(f"optim.batch_size={size}")
    near = [int(number) for number in re.findall(r"\d+", text.partition("Nearest: ")[2])]
    assert near
    for number in near:
        assert plan(f"optim.batch_size={number}").minibatch_size == number
