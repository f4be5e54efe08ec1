"""The hooks: one per kind of component, and with them the manual of plugin authors.

A plugin is a light module named by an entry point of group `lightrft`; it sets `LIGHTRFT_API = 1` and marks functions
with `hookimpl`. Each hook yields frozen descriptors, is called once at start-up, and all results are collected: the run
file chooses by name, never by order.

    from lightrft_core import hookimpl
    from lightrft_core.descriptors import Component

    LIGHTRFT_API = 1

    @hookimpl
    def lightrft_losses():
        yield Component(
            name="acme", target="acme.loss:acme_loss", config="acme.loss:AcmeConfig", summary="Our loss."
        )
"""

from collections.abc import Iterable

import pluggy

from lightrft_core.descriptors import Algorithm, Command, Component, ModelComponent, RewardComponent

API_LEVEL = 1
PROJECT = "lightrft"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def lightrft_algorithms() -> Iterable[Algorithm]:
    """Run-file section `algorithm:`, one. Bundles of other sections, as data; the user's keys override them."""


@hookspec
def lightrft_tasks() -> Iterable[Component]:
    """Section `task:`, one. Target: a class `(config, setup)` with `protocols.Task`; config extends `TaskSection`."""


@hookspec
def lightrft_samplers() -> Iterable[Component]:
    """Section `sampler:`, one. Target: a class `(config, setup)` with `protocols.Sampler`; config: `SamplerSection`."""


@hookspec
def lightrft_engines() -> Iterable[Component]:
    """Section `engine:`, one. Target: a class `(config, setup)` with `protocols.Engine`."""


@hookspec
def lightrft_rewards() -> Iterable[RewardComponent]:
    """Section `rewards:`, many. Target: a class `(config)` with `protocols.Reward`; config extends `RewardSection`.

    `score` is called with one request at a time, so that a limit ends exactly the sample that broke it;
    `provides={"batch"}` asks for all requests in one call. `needs={"reference"}` refuses prompts without an answer,
    `needs={"media"}` asks for images, video and audio, which are left out otherwise.
    """


@hookspec
def lightrft_shapers() -> Iterable[Component]:
    """Section `shapers:`, many, in order. Target: a class `(config, setup)` with `protocols.Shaper`."""


@hookspec
def lightrft_filters() -> Iterable[Component]:
    """Section `filters:`, many, in order. Target: a `protocols.FilterFunction`; dropped groups are drawn anew."""


@hookspec
def lightrft_advantages() -> Iterable[Component]:
    """Section `advantage:`, one. Target: a `protocols.AdvantageFunction`. Normalise here or nowhere.

    `needs={"groups"}`, here and of a filter, says that it compares siblings: `group_size: 1` is refused.
    """


@hookspec
def lightrft_kls() -> Iterable[Component]:
    """Section `kl:`, one or none. Target: a `protocols.KLFunction`; config extends `KLSection`.

    Return values per token, alone or as a `KLOutput` with metrics: count there what you clamp.
    """


@hookspec
def lightrft_losses() -> Iterable[Component]:
    """Section `loss:`, one. Target: a `protocols.LossFunction`; config extends `LossSection`.

    Return values per token or per sequence and never reduce them. `provides={"zero_without_advantage"}` promises a zero
    gradient where the advantage is 0, so that such rows need no forward pass.
    """


@hookspec
def lightrft_selectors() -> Iterable[Component]:
    """Section `selectors:`, many. Target: a `protocols.SelectorFunction`."""


@hookspec
def lightrft_corrections() -> Iterable[Component]:
    """Section `correction:`, one or none. Target: a `protocols.CorrectionFunction`."""


@hookspec
def lightrft_strategies() -> Iterable[Component]:
    """Section `strategy:`, one. Target: a class `(config, setup)` with `protocols.Strategy`."""


@hookspec
def lightrft_models() -> Iterable[ModelComponent]:
    """Section `model:`, by `model_type`. Target: a class `(config, setup)` with `protocols.ModelAdapter`."""


@hookspec
def lightrft_patches() -> Iterable[ModelComponent]:
    """Key `model.patches`, all that match `model_types`. Target: an idempotent function `(module) -> None`."""


@hookspec
def lightrft_trackers() -> Iterable[Component]:
    """Section `trackers:`, many. Target: a class `(config, setup)` with `protocols.Tracker`."""


@hookspec
def lightrft_callbacks() -> Iterable[Component]:
    """Section `callbacks:`, many, in order. Target: a class `(config, setup)` with `protocols.Callback`."""


@hookspec
def lightrft_commands() -> Iterable[Command]:
    """The command line. Target: a Typer app, mounted as `lightrft NAME` and imported when it is called."""
