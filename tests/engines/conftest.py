"""Tiny random models of several architectures, made here: nothing is downloaded."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightrft_core.data import Group, Prompt, Rollout
from lightrft_core.protocols import Setup
from lightrft_core.sections import ModelSection, OptimSection, RunSection, SamplerSection

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|end|>", "<|user|>", "<|system|>", "<|assistant|>"]
VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def pytest_collection_finish(session):
    """A first backward pass before any test: one after `torch.compile` would start threads for devices that it only
    pretends to have, and a process with such threads cannot fork ranks."""
    if not torch.cuda.is_available():
        torch.zeros(1, requires_grad=True).sum().backward()


def hf_config(kind: str, **changes):
    from transformers import Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config

    if kind == "gpt2":
        return GPT2Config(
            **{
                "vocab_size": VOCABULARY,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 256,
                "bos_token_id": 0,
                "eos_token_id": 0,
                **changes,
            }
        )
    if kind == "gemma2":
        return Gemma2Config(**{**SIZES, "sliding_window": 8, "query_pre_attn_scalar": 8, **changes})
    if kind == "mistral":
        from transformers import MistralConfig

        return MistralConfig(**{**SIZES, "sliding_window": 8, **changes})
    if kind == "qwen3_moe":
        from transformers import Qwen3MoeConfig

        return Qwen3MoeConfig(
            **{**SIZES, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, **changes}
        )
    return {"qwen2": Qwen2Config, "llama": LlamaConfig}[kind](**{**SIZES, **changes})


def make_model(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 4.0, **changes):
    """A random model with LightRFT's attention where it takes it, its weights large enough that every part matters."""
    from lightrft_engines.attention import register_attention
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    attention = "eager" if kind == "gemma2" else register_attention()
    model = AutoModelForCausalLM.from_config(hf_config(kind, **changes), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


def make_tokenizer(*, template: str | None = TEMPLATE):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 33 + VOCABULARY - len(SPECIALS) - 1)] + ["Ġ"]
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=SPECIALS[1:]
    )
    tokenizer.chat_template = template
    return tokenizer


def make_folder(path: Path, kind: str = "qwen2", *, template: str | None = TEMPLATE, **changes) -> Path:
    make_model(kind, **changes).save_pretrained(path)
    make_tokenizer(template=template).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model") / "qwen2", "qwen2")


def make_setup(path: Path | str, *, run_dir: Path = Path(), **changes) -> Setup:
    return Setup(
        **{
            "run": RunSection(),
            "optim": OptimSection(lr=1e-2),
            "sampler": SamplerSection(),
            "model_section": ModelSection(path=str(path)),
            "run_dir": run_dir,
            "num_optimizer_steps": 10,
            **changes,
        }
    )


def make_groups(seed: int = 0, *, sizes=((7, (5, 1, 9, 3)), (2, (4, 4, 2)), (11, (6,))), vocabulary=VOCABULARY):
    """Ragged groups: (prompt length, completion lengths); random tokens, rewards 0 and 1."""
    draw = torch.Generator().manual_seed(seed)

    def ids(num: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocabulary, (num,), generator=draw).tolist())

    groups = []
    for number, (prompt_length, lengths) in enumerate(sizes):
        name = f"p{number}"
        rollouts = [
            Rollout(
                name, index, ids(length), "", tuple(-1.0 for _ in range(length)), "stop", 0, reward=float(index % 2)
            )
            for index, length in enumerate(lengths)
        ]
        groups.append(Group(Prompt(name, ({"role": "user", "content": "x"},)), ids(prompt_length), rollouts))
    return groups


@dataclass
class Kit:
    """What tests build with."""

    model = staticmethod(make_model)
    tokenizer = staticmethod(make_tokenizer)
    folder = staticmethod(make_folder)
    setup = staticmethod(make_setup)
    groups = staticmethod(make_groups)


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()
