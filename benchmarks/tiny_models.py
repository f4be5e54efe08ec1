"""A small random Qwen2 whose completion lengths are known in advance: every token ends the text with the same chance.

One channel of the residual stream is made constant and so large that normalisation leaves it nearly untouched; only the
end token's output row reads it, so that its logit, and with it its probability, is the same at every position. This is
plain weights: it can be saved, loaded and trained by anything that runs Qwen2.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

EOS, PAD = 1, 0
LOUDNESS = 10.0


@dataclass(frozen=True)
class Size:
    """Dimensions of the model."""

    hidden: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    intermediate: int = 512
    vocabulary: int = 4096


SMALL = Size()
TINY = Size(hidden=96, layers=2, heads=4, intermediate=192, vocabulary=1024)


def tiny_qwen2(
    mean_length: float | None, size: Size = SMALL, *, seed: int = 0, attention: str = "sdpa", device: str = "cpu"
) -> Qwen2ForCausalLM:
    """A random model in float32 whose completions have geometric lengths of this mean; None: they never end."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    config._attn_implementation = attention
    with torch.device(device):
        model = Qwen2ForCausalLM(config).eval()
    logit = -30.0 if mean_length is None else _logit(1 / mean_length, size.vocabulary)
    _fix_end_token(model, logit)
    return model


def _logit(probability: float, vocabulary: int) -> float:
    """The end token's logit among others whose logits are near 0."""
    return math.log(probability / (1 - probability) * (vocabulary - 1))


@torch.no_grad()
def _fix_end_token(model: Qwen2ForCausalLM, logit: float) -> None:
    width = model.config.hidden_size
    model.model.embed_tokens.weight[:, 0] = LOUDNESS * math.sqrt(width)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    norms = [norm for layer in model.model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    for norm in (*norms, model.model.norm):
        norm.weight.fill_(LOUDNESS / _quiet_scale(model, norm))  # the other channels leave it at scale 1, as usual
        norm.weight[0] = 0
    model.model.norm.weight[0] = 1
    head = model.lm_head.weight
    head[:, 0] = 0
    head[EOS] = 0
    head[EOS, 0] = logit / math.sqrt(width)


def _quiet_scale(model: Qwen2ForCausalLM, norm: nn.Module) -> float:
    """Root mean square of the quiet channels that enter a norm."""
    seen: list[torch.Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ids = torch.randint(2, model.config.vocab_size, (8, 32), generator=torch.Generator().manual_seed(0))
    model.model(ids.to(model.device))
    hook.remove()
    return float(seen[0][..., 1:].square().mean().sqrt())
