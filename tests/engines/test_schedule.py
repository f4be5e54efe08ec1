"""The learning rate by hand."""

import math

import pytest
from lightrft_core.sections import OptimSection
from lightrft_engines.training.schedule import learning_rate, num_warmup_steps


def test_constant_stays_after_a_warmup_that_never_wastes_a_step():
    optim = OptimSection(lr=1.0, warmup_steps=3)
    assert [learning_rate(optim, step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_ratio_of_steps_is_rounded_up_and_steps_win():
    assert num_warmup_steps(OptimSection(warmup_ratio=0.03), 50) == 2
    assert num_warmup_steps(OptimSection(warmup_ratio=0.03, warmup_steps=0), 50) == 0


def test_cosine_goes_from_the_peak_to_the_lowest_rate():
    optim = OptimSection(lr=2.0, schedule="cosine_with_min_lr", min_lr_ratio=0.1, warmup_steps=2)
    assert learning_rate(optim, 0, 12) == pytest.approx(2.0 / 3)
    assert learning_rate(optim, 2, 12) == 2.0
    assert learning_rate(optim, 7, 12) == pytest.approx(2.0 * 0.55)
    expected = 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 3 / 10)))
    assert learning_rate(optim, 5, 12) == pytest.approx(expected)
    assert learning_rate(optim, 12, 12) == learning_rate(optim, 99, 12) == pytest.approx(0.2)


def test_a_run_of_one_step_takes_it_at_the_peak():
    assert learning_rate(OptimSection(lr=1.0, schedule="cosine_with_min_lr"), 0, 1) == 1.0
