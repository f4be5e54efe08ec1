"""What this package offers: the text model adapter, the `single` strategy and the `embedded` engine."""

from collections.abc import Iterable

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component, ModelComponent

LIGHTRFT_API = 1


@hookimpl
def lightrft_models() -> Iterable[ModelComponent]:
    """Any causal language model that transformers knows."""
    yield ModelComponent(
        name="text",
        target="lightrft_engines.text:TextAdapter",
        config="lightrft_engines.config:TextConfig",
        summary="Any Hugging Face causal language model, with its chat template.",
        model_types=("*",),
        provides=frozenset({"values"}),
    )


@hookimpl
def lightrft_strategies() -> Iterable[Component]:
    """Replicated training on one device, or on one device per rank."""
    yield Component(
        name="single",
        target="lightrft_engines.single:SingleStrategy",
        config="lightrft_engines.config:SingleConfig",
        summary="The whole model on one device; under torchrun one replica per rank, gradients summed.",
        provides=frozenset({"old_logprobs", "ref_logprobs", "entropy", "values", "reference_refresh", "ema", "mix_in"}),
    )


@hookimpl
def lightrft_engines() -> Iterable[Component]:
    """Decoding inside the training process."""
    yield Component(
        name="embedded",
        target="lightrft_engines.embedded:EmbeddedEngine",
        config="lightrft_engines.embedded_config:EmbeddedConfig",
        summary="Our own batched decoder on the trainer's weights: no copy, no server, prompts shared by siblings.",
        provides=frozenset({"logprobs"}),
    )
