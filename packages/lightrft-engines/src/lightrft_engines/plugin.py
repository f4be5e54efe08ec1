"""What this package offers: the text model adapter, the `single` strategy and the `embedded` engine."""

from collections.abc import Iterable

from lightrft_core import hookimpl
from lightrft_core.descriptors import Component, ModelComponent

LIGHTRFT_API = 1
TRAINING = frozenset({"old_logprobs", "ref_logprobs", "entropy", "values", "reference_refresh", "ema", "mix_in"})


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
    """How weights lie over the ranks; the step is the same in all of them."""
    yield Component(
        name="single",
        target="lightrft_engines.training.single:SingleStrategy",
        config="lightrft_engines.training.config:SingleConfig",
        summary="The whole model on one device; under torchrun one replica per rank, gradients summed.",
        provides=TRAINING,
    )
    yield Component(
        name="ddp",
        target="lightrft_engines.training.single:DDPStrategy",
        config="lightrft_engines.training.config:DDPConfig",
        summary="A whole model per rank under DistributedDataParallel: communication overlaps the backward pass.",
        provides=TRAINING,
    )
    yield Component(
        name="fsdp2",
        target="lightrft_engines.training.fsdp2:Fsdp2Strategy",
        config="lightrft_engines.training.config:Fsdp2Config",
        summary="Weights, gradients and optimizer state sharded over the ranks by torch's fully_shard.",
        provides=TRAINING,
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
