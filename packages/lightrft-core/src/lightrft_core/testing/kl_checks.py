"""A KL estimator: one value per token, 0 where policy and reference agree, each token by itself."""

import math
from dataclasses import replace

from lightrft_core.data import LossInputs, LossOutput, Tensor
from lightrft_core.objective import Objective, kl_output
from lightrft_core.testing import tensors
from lightrft_core.testing.loss_checks import totals_of
from lightrft_core.testing.results import Case, Check, require
from lightrft_core.testing.tensors import TOLERANCE


def estimate(case: Case, logprobs_BT: Tensor, ref_logprobs_BT: Tensor) -> Tensor:
    """The values [B, T] alone."""
    return kl_output(case.call(logprobs_BT, ref_logprobs_BT)).values


def values_are_per_token(case: Case) -> None:
    """[B, T] in, [B, T] out; metrics alike."""
    inputs = tensors.loss_inputs()
    output = kl_output(case.call(inputs.logprobs_BT, inputs.ref_logprobs_BT))
    wanted = tuple(inputs.mask_BT.shape)
    for name, values_BT in {"values": output.values, **output.metrics}.items():
        require(tuple(values_BT.shape) == wanted, f"{name} has shape {tuple(values_BT.shape)}, expected {wanted}")


def equal_policies_have_no_divergence(case: Case) -> None:
    """Exactly 0."""
    logprobs_BT = tensors.loss_inputs().logprobs_BT
    values_BT = estimate(case, logprobs_BT, logprobs_BT.clone())
    require(tensors.deviation(values_BT, logprobs_BT * 0.0) == 0.0, "not 0 where policy and reference are equal")


def each_token_stands_alone(case: Case) -> None:
    """Values of a slice are the slice of the values: rows, order and padding cannot matter."""
    inputs = tensors.loss_inputs()
    whole_BT = estimate(case, inputs.logprobs_BT, inputs.old_logprobs_BT)
    part_BT = estimate(case, inputs.logprobs_BT[2:5, 1:4], inputs.old_logprobs_BT[2:5, 1:4])
    gap = tensors.deviation(part_BT, whole_BT[2:5, 1:4])
    require(gap <= TOLERANCE, f"a token's value depends on other tokens (by {gap:.3g})")


def extreme_log_ratios_stay_finite(case: Case) -> None:
    """Float32, log-ratios of +-50 and +-1000: values and gradients."""
    torch = tensors.torch_module()
    jumps_T = torch.tensor([[50.0, -50.0, 1000.0, -1000.0]])
    leaf_T = torch.zeros(1, 4).requires_grad_()
    values_T = estimate(case, leaf_T, jumps_T)
    values_T.sum().backward()
    require(bool(torch.isfinite(values_T).all()), "values are not finite: clamp log-ratios before exp")
    require(bool(torch.isfinite(leaf_T.grad).all()), "gradients are not finite: clamp log-ratios before exp")


def masked_tokens_do_not_leak(case: Case) -> None:
    """In the objective, with NaN at every masked token."""
    inputs = tensors.loss_inputs()
    expected_BT = _gradient(case, _without_advantages(inputs))
    planted = tensors.with_masked(_without_advantages(inputs), math.nan)
    gap = tensors.deviation(_gradient(case, planted), expected_BT)
    require(gap <= TOLERANCE, f"masked tokens change the gradient by {gap:.3g}")


def _without_advantages(inputs: LossInputs) -> LossInputs:
    """The inputs with advantages of 0, so that the KL alone has a gradient."""
    return replace(inputs, advantages_BT=inputs.advantages_BT * 0.0)


def _gradient(case: Case, inputs: LossInputs) -> Tensor:
    leaf_BT = inputs.logprobs_BT.detach().clone().requires_grad_()
    objective = Objective(lambda given: LossOutput(given.logprobs_BT * given.advantages_BT), kl=case.call, kl_coef=1.0)
    share, _ = objective.share(replace(inputs, logprobs_BT=leaf_BT), totals_of(inputs))
    share.backward()
    return leaf_BT.grad


CHECKS: tuple[Check, ...] = (
    values_are_per_token,
    equal_policies_have_no_divergence,
    each_token_stands_alone,
    extreme_log_ratios_stay_finite,
    masked_tokens_do_not_leak,
)
