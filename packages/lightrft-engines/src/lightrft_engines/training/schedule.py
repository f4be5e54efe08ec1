"""The learning rate of each optimizer step, as plain arithmetic.

Step k counts from 0, W steps warm up, N steps in all:
    k < W:  lr * (k + 1) / (W + 1)                     rises from zero, and no step is spent at zero
    then    lr, or lr * (m + (1 - m) * (1 + cos(pi * (k - W) / (N - W))) / 2) for `cosine_with_min_lr` with ratio m
"""

import math

from lightrft_core.sections import LearningSection


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
    if optim.schedule == "constant":
        return optim.lr
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return optim.lr * (optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * cosine)
