"""What this package offers."""

from collections.abc import Iterable

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component, RewardComponent

LIGHTRFT_API = 1


@hookimpl
def lightrft_losses() -> Iterable[Component]:
    """A loss."""
    yield Component(
        name="careful",
        target="lightrft_stranger.loss:careful",
        config="lightrft_stranger.loss:CarefulConfig",
        summary="Policy gradient that learns less from mistakes than from successes.",
        provides=frozenset({"zero_without_advantage"}),
        formula="L_t = -r A where A > 0, else -w r A, r = exp(l - l_old)",
    )


@hookimpl
def lightrft_rewards() -> Iterable[RewardComponent]:
    """A reward."""
    yield RewardComponent(
        name="final_number",
        target="lightrft_stranger.reward:FinalNumberReward",
        config="lightrft_stranger.reward:FinalNumberConfig",
        summary="1 where the last number of the answer is the reference.",
    )
