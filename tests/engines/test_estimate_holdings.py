"""The formulas of each strategy, on weights and courses small enough to work out by hand."""

import pytest
from lightrft_core.errors import UserError
from lightrft_core.sections import LearningSection
from lightrft_engines.estimate.census import Census, Weight
from lightrft_engines.estimate.courses import Course, Moment
from lightrft_engines.estimate.holdings import Ground
from lightrft_engines.estimate.memory import Memory, worst
from lightrft_engines.estimate.strategies import holdings_of
from lightrft_engines.training.config import DDPConfig, Fsdp2Config, SingleConfig

ADAMW = LearningSection()
EMBEDDINGS, BLOCK, HEAD = 40, 100, 40  # entries
MODEL = Census(
    (
        Weight((10, 4), "embeddings", None, True),
        *(Weight((20, 5), "blocks", number, True) for number in range(3)),
        Weight((10, 4), "head", None, True),
    )
)
ALL = 380


def course(element):
    """Of three blocks whose gradients take `element` bytes an entry."""
    moments = (
        Moment("head", 5000, 0, 0),
        Moment("block", 4000, 0, HEAD * element),
        Moment("block", 1000, 2 * BLOCK * element, HEAD * element),
        Moment("rest", 500, 3 * BLOCK * element, HEAD * element),
    )
    return Course(4500, 0, 1000, BLOCK * element, moments)


def holdings(config, ranks=2, compute=4, *, is_gpu=True):
    return holdings_of(config, Ground(ranks, compute, is_gpu))


def frozen():
    return Census(tuple(Weight(w.shape, w.group, w.block, False) for w in MODEL.weights))


def test_single_in_fp32_rests_on_weights_and_two_moments():
    assert holdings(SingleConfig()).resting(MODEL, ADAMW) == Memory(weights=4 * ALL, optimizer=8 * ALL)


def test_in_bf16_there_are_fp32_masters_too():
    found = holdings(SingleConfig(), compute=2).resting(MODEL, ADAMW)
    assert found == Memory(weights=2 * ALL, optimizer=(4 + 8) * ALL)


def test_a_reference_is_weights_alone_and_asleep_they_are_on_the_cpu():
    single = holdings(SingleConfig(), compute=2)
    assert single.resting(frozen(), None) == Memory(weights=2 * ALL)
    assert single.resting(frozen(), None, asleep=True) == Memory(host=2 * ALL)
    assert single.woken(frozen()) == Memory(weights=2 * ALL)


def test_adam_offload_moves_12_bytes_of_each_weight_to_the_cpu():
    found = holdings(SingleConfig(adam_offload=True), compute=2).resting(MODEL, ADAMW)
    assert found == Memory(weights=2 * ALL, host=12 * ALL)


def test_single_adds_gradients_up_in_one_fp32_buffer():
    moments = list(holdings(SingleConfig()).training(MODEL, course(4), 5))
    assert {moment.gradients for moment in moments} == {4 * ALL}
    assert worst(moments) == Memory(gradients=4 * ALL, activations=5000)


def test_in_bf16_a_pass_has_gradients_of_its_own_that_grow():
    moments = list(holdings(SingleConfig(), compute=2).training(MODEL, course(2), 5))
    own = [moment.gradients - 4 * ALL for moment in moments]
    assert own == [0, 2 * (HEAD + BLOCK), 2 * (HEAD + 3 * BLOCK), 2 * (HEAD + 3 * BLOCK)]


def test_ddp_keeps_buckets_and_adds_several_passes_up_beside_them():
    ddp = holdings(DDPConfig(), compute=2)
    assert ddp.resting(MODEL, ADAMW) == Memory(weights=2 * ALL, gradients=2 * ALL, optimizer=12 * ALL)
    assert worst(ddp.training(MODEL, course(2), 1)).gradients == 0
    assert worst(ddp.training(MODEL, course(2), 2)).gradients == 2 * ALL
    assert ddp.updating(MODEL) == Memory(gradients=4 * ALL)
    assert holdings(DDPConfig(), compute=4).updating(MODEL) == Memory()


def test_fsdp2_rests_on_a_share_of_fp32_weights_and_moments():
    found = holdings(Fsdp2Config(), ranks=4, compute=2).resting(MODEL, ADAMW)
    rows = 3 * 4 + 3 * (5 * 5) + 3 * 4  # of 10, 20, 20, 20, 10 rows the largest quarters
    assert found == Memory(weights=4 * rows, optimizer=8 * rows)


def test_without_master_weights_it_rests_in_what_it_computes_with():
    found = holdings(Fsdp2Config(master_weights=False), ranks=2, compute=2).resting(MODEL, ADAMW)
    assert found == Memory(weights=2 * ALL // 2, optimizer=2 * 2 * ALL // 2)


def test_a_frozen_module_is_sharded_in_what_it_computes_with():
    assert holdings(Fsdp2Config(), ranks=2, compute=2).resting(frozen(), None) == Memory(weights=2 * ALL // 2)


def test_fsdp2_gathers_the_rest_and_two_blocks_while_a_block_computes():
    moments = list(holdings(Fsdp2Config(), ranks=2, compute=2).training(MODEL, course(2), 1))
    before, head, top, bottom, rest, last = moments
    others = EMBEDDINGS + HEAD
    assert before == Memory(activations=4500, gathered=2 * 2 * others)
    assert head == Memory(activations=5000, gathered=2 * (others + BLOCK))
    waiting, own = 4 * BLOCK, 2 * BLOCK
    assert top == Memory(gradients=2 * HEAD + own + waiting, activations=4000, gathered=2 * (others + 2 * BLOCK))
    sharded = 2 * BLOCK * 4 // 2
    assert bottom.gradients == sharded + 2 * HEAD + own + waiting
    assert rest.gradients == 3 * BLOCK * 4 // 2 + 2 * HEAD + waiting
    assert last == Memory(gradients=4 * ALL // 2 + 2 * others + 4 * others)


def test_several_passes_have_all_sharded_gradients_from_the_start():
    moments = list(holdings(Fsdp2Config(), ranks=2, compute=2).training(MODEL, course(2), 3))
    assert moments[0].gradients == 4 * ALL // 2


def test_without_resharding_all_blocks_stay_gathered():
    kept = holdings(Fsdp2Config(reshard_after_forward=False), ranks=2, compute=2)
    _, head, *_ = kept.training(MODEL, course(2), 1)
    assert head.gathered == 2 * (EMBEDDINGS + HEAD + 3 * BLOCK)


def test_cpu_offload_leaves_what_is_gathered():
    away = holdings(Fsdp2Config(cpu_offload=True), ranks=2, compute=2)
    assert away.resting(MODEL, ADAMW) == Memory(host=(4 + 8) * ALL // 2)
    assert away.updating(MODEL) == Memory(host=4 * ALL // 2)


def test_ranks_of_a_cpu_hold_what_they_exchange_twice():
    on_gpu, on_cpu = (holdings(Fsdp2Config(), is_gpu=is_gpu) for is_gpu in (True, False))
    assert on_cpu.serving(MODEL).gathered == 2 * on_gpu.serving(MODEL).gathered == 2 * 4 * BLOCK


@pytest.mark.parametrize("config", [SingleConfig(), DDPConfig(), Fsdp2Config()])
@pytest.mark.parametrize("compute", [2, 4])
def test_more_ranks_never_need_more(config, compute):
    def peak(ranks):
        found = holdings(config, ranks, compute)
        moments = [found.resting(MODEL, ADAMW) + moment for moment in found.training(MODEL, course(compute), 2)]
        return worst(moments).total

    sizes = [peak(ranks) for ranks in (1, 2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("options", "ranks", "where"),
    [({"shard_size": 3}, 4, "strategy.shard_size"), ({"tensor_parallel": 3}, 4, "strategy.tensor_parallel")],
)
def test_numbers_of_ranks_that_do_not_divide_are_refused(options, ranks, where):
    with pytest.raises(UserError, match="3 does not divide the 4 ranks") as problem:
        holdings(Fsdp2Config(**options), ranks)
    assert problem.value.where == where
