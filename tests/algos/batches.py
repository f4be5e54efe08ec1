"""Batches and loss inputs for the tests of algorithms, in float64, with plain Python beside the tensors."""

import torch
from lightrft_core.data import Batch, LossInputs

NAN = float("nan")


def batch_of(rewards, groups, lengths, *, mask=None, token_rewards=None, **tensors):
    """Rows with these rewards (None: unscored, planted as NaN); `mask` is a list of lists, by default the lengths."""
    num_tokens = max(lengths)
    rows = mask or [[t < length for t in range(num_tokens)] for length in lengths]
    scored = [reward is not None for reward in rewards]
    zeros = torch.zeros(len(rewards), num_tokens, dtype=torch.float64)
    return Batch(
        prompt_ids=tuple(f"p{group}" for group in groups),
        prompt_token_ids=tuple((group,) for group in groups),
        completion_ids_BT=zeros.long(),
        mask_BT=torch.tensor(rows),
        lengths_B=torch.tensor(lengths),
        group_B=torch.tensor(groups),
        rewards_B=torch.tensor([NAN if r is None else r for r in rewards], dtype=torch.float64),
        scored_B=torch.tensor(scored),
        engine_logprobs_BT=tensors.pop("engine_logprobs_BT", zeros),
        token_rewards_BT=None if token_rewards is None else torch.tensor(token_rewards, dtype=torch.float64),
        **tensors,
    )


def random_inputs(seed=0, scale=0.6):
    """Ragged rows, one fully masked, one with a hole, one without advantage; log-ratios on both sides of any clip."""
    draws = torch.Generator().manual_seed(seed)
    lengths = (5, 3, 0, 6, 1, 4)
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    mask[3, 2] = False

    def normal():
        return torch.randn(mask.shape, generator=draws, dtype=torch.float64)

    logprobs = -normal().abs()
    advantages = normal()
    advantages[4] = 0.0
    return LossInputs(
        logprobs_BT=logprobs.clone().requires_grad_(),
        old_logprobs_BT=logprobs + scale * normal(),
        advantages_BT=advantages,
        mask_BT=mask,
    )
