"""The formulas of DeepSpeed's stages, on a model small enough to work out by hand."""

import pytest
from lightrft_core.sections import LearningSection
from lightrft_engines.estimate.census import Census, Weight
from lightrft_engines.estimate.courses import Course, Moment
from lightrft_engines.estimate.holdings import Ground
from lightrft_engines.estimate.memory import Memory
from lightrft_engines.estimate.strategies import holdings_of
from lightrft_engines.training.config import DeepSpeedConfig

MODEL = Census((Weight((10, 4), "embeddings", None, True), *(Weight((20, 5), "blocks", n, True) for n in range(2))))
ALL, BLOCK = 240, 100
ADAMW = LearningSection()


def zero(compute=2, ranks=2, **options):
    return holdings_of(DeepSpeedConfig(**options), Ground(ranks, compute, True))


def course(element):
    moments = (
        Moment("head", 5000, 0, 0),
        Moment("block", 4000, 0, 0),
        Moment("block", 1000, BLOCK * element, 0),
        Moment("rest", 500, 2 * BLOCK * element, 0),
    )
    return Course(4500, 0, 1000, BLOCK * element, moments)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients"),
    [(1, 2 * ALL, 4 * ALL), (2, 2 * ALL, 0), (3, 2 * ALL // 2, 4 * ALL // 2 + 4 * ALL)],
)
def test_masters_and_moments_are_partitioned_and_in_stage_3_weights(stage, weights, gradients):
    found = zero(stage=stage).resting(MODEL, ADAMW)
    assert found == Memory(weights=weights, gradients=gradients, optimizer=12 * ALL // 2)


def test_what_is_offloaded_is_on_the_cpu():
    assert zero(stage=2, adam_offload=True).resting(MODEL, ADAMW) == Memory(weights=2 * ALL, host=6 * ALL)
    found = zero(stage=3, cpu_offload=True).resting(MODEL, ADAMW)
    assert (found.weights, found.optimizer, found.host) == (0, 0, ALL + 6 * ALL)


def test_stage_2_has_a_bucket_and_a_part_of_the_gradients():
    bucket = 2 * ALL
    several = [moment.gradients for moment in zero(stage=2).training(MODEL, course(2), 4)]
    assert several == [bucket + 4 * ALL // 2] * 4
    one = [moment.gradients for moment in zero(stage=2).training(MODEL, course(2), 1)]
    assert one == [bucket, bucket + 4 * BLOCK // 2, bucket + 4 * BLOCK, bucket + 4 * BLOCK]
    overlapped = next(iter(zero(stage=2, overlap_comm=True).training(MODEL, course(2), 1)))
    assert overlapped.gradients == 2 * bucket


def test_stage_1_keeps_whole_gradients_until_they_are_reduced():
    *_, last = zero(compute=4, stage=1).training(MODEL, course(4), 4)
    assert last.gradients == 4 * ALL + 4 * ALL + 4 * ALL // 2  # a bucket, the whole, this rank's part


def test_stage_3_gathers_small_models_whole():
    (moment,) = zero(stage=3).scoring(MODEL, 700)
    assert moment == Memory(activations=700, gathered=2 * (ALL + BLOCK))
    assert next(iter(zero(stage=2).scoring(MODEL, 700))).gathered == 0


def test_only_stages_1_and_2_are_served_in_place():
    assert [zero(stage=stage).serves_in_place for stage in (1, 2, 3)] == [True, True, False]
