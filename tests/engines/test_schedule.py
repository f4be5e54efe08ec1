"""The learning rate by hand."""

import math

import pytest
import torch
from lightrft_core.sections import OptimSection
from lightrft_engines.training.schedule import learning_rate, num_warmup_steps
from transformers import get_scheduler

LR, WARMUP, STEPS = 2e-3, 3, 20
SCHEDULES = {
    "constant_with_warmup": ({}, {}),
    "linear": ({}, {}),
    "cosine": ({}, {}),
    "cosine_with_restarts": ({"num_cycles": 3}, {"num_cycles": 3}),
    "cosine_with_min_lr": ({"min_lr_ratio": 0.2}, {"min_lr_rate": 0.2}),
    "polynomial": ({"min_lr_ratio": 0.05, "power": 2.0}, {"lr_end": 0.05 * LR, "power": 2.0}),
    "inverse_sqrt": ({}, {}),
    "warmup_stable_decay": ({"min_lr_ratio": 0.1, "decay_ratio": 0.3}, {"min_lr_ratio": 0.1, "num_decay_steps": 6}),
}


def rates_of_transformers(name, options):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = get_scheduler(name, optimizer, WARMUP, STEPS, scheduler_specific_kwargs=options)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_the_warmup_rates_are_those_of_transformers(name):
    options, theirs = SCHEDULES[name]
    optim = OptimSection(lr=LR, schedule=name, warmup_steps=WARMUP, **options)
    own = [learning_rate(optim, step, STEPS) for step in range(STEPS)]
    assert own[WARMUP:] == pytest.approx(rates_of_transformers(name, theirs)[WARMUP:], rel=1e-12)
    assert own[:WARMUP] == pytest.approx([LR / 4, LR / 2, LR * 3 / 4])


@pytest.mark.parametrize("name", [*SCHEDULES, "constant"])
def test_past_the_end_the_last_rate_stays(name):
    optim = OptimSection(schedule=name, warmup_ratio=0.1)
    assert learning_rate(optim, STEPS, STEPS) == learning_rate(optim, STEPS + 7, STEPS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_that_only_warms_up_never_leaves_the_peak(name):
    assert learning_rate(OptimSection(lr=1.0, schedule=name, warmup_steps=5), 5, 5) == 1.0


def test_a_lowest_rate_of_one_is_constant():
    optim = OptimSection(lr=1.0, schedule="polynomial", min_lr_ratio=1.0)
    assert [learning_rate(optim, step, 5) for step in range(5)] == [1.0] * 5


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
