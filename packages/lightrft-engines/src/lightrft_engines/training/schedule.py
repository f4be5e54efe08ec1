"""The learning rate of each optimizer step: transformers' schedules, with a warm-up that wastes no step.

Step k counts from 0, W steps warm up, N steps in all:
    k < W:  lr * (k + 1) / (W + 1)      rises from zero, and no step is spent at zero
    then    lr * f(k), f as `transformers.get_scheduler` has it, whatever the schedule
"""

import math

import torch
from lightrft_core.sections import LearningSection

Options = dict[str, float | int]


def num_warmup_steps(optim: LearningSection, num_steps: int) -> int:
    """Optimizer steps of the warm-up: `warmup_steps` where given, else the ratio of all steps, rounded up."""
    if optim.warmup_steps is not None:
        return optim.warmup_steps
    return math.ceil(optim.warmup_ratio * num_steps)


def learning_rate(optim: LearningSection, step: int, num_steps: int) -> float:
    """Rate of optimizer step `step` (from 0) of `num_steps`; past the end the last rate stays."""
    num_warmup = num_warmup_steps(optim, num_steps)
    if step < num_warmup:
        return optim.lr * (step + 1) / (num_warmup + 1)
    if num_warmup >= num_steps or _is_flat(optim):
        return optim.lr
    return optim.lr * _factor(optim, min(step, num_steps), num_warmup, num_steps)


def _is_flat(optim: LearningSection) -> bool:
    ends_at_peak = optim.min_lr_ratio == 1.0 and "min_lr_ratio" not in optim.idle()
    return ends_at_peak or optim.schedule in ("constant", "constant_with_warmup")


def _factor(optim: LearningSection, step: int, num_warmup: int, num_steps: int) -> float:
    """The schedule as a function of the step; transformers makes one for an optimizer, so it gets an idle one."""
    from transformers import get_scheduler  # brings peft and bitsandbytes along where these are installed

    idle = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(
        optim.schedule, idle, num_warmup, num_steps, scheduler_specific_kwargs=_options(optim, num_steps)
    )
    return float(scheduler.lr_lambdas[0](step))


def _options(optim: LearningSection, num_steps: int) -> Options:
    lowest, decay = optim.min_lr_ratio, math.ceil(optim.decay_ratio * num_steps)
    options: dict[str, Options] = {
        "cosine_with_restarts": {"num_cycles": optim.num_cycles},
        "cosine_with_min_lr": {"min_lr_rate": lowest},
        "polynomial": {"lr_end": lowest, "power": optim.power},
        "warmup_stable_decay": {"min_lr_ratio": lowest, "num_decay_steps": decay},
    }
    return options.get(optim.schedule, {})
