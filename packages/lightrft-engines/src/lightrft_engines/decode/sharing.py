"""How far a model can run our attention plans: found out by a trial, as far as a trial can show it.

A plan replaces the model's attention whole. Sinks and soft caps would be lost, which a trial on a few tokens may not
show, so they are looked up; windows and chunks do no harm to sequences that fit into them.
"""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightrft_engines.attention import ATTENTION
from lightrft_engines.decode.readers import SharedReader

logger = logging.getLogger(__name__)

PLAIN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
TRIAL = ((5, 3, 8, 1, 7), (2, 6))
NEXT = (4, 9, 4)


def longest_shared(module: nn.Module) -> float:
    """Tokens of prompt and completion up to which plans compute what the model does: infinite mostly, 0 for never."""
    if not _takes_plans(module):
        return 0
    config = module.config.get_text_config().to_dict()
    kinds = config.get("layer_types")
    if kinds is not None and set(kinds) == {"full_attention"}:
        return math.inf
    if kinds is not None and not set(kinds) <= PLAIN_LAYERS:
        return 0
    windows = [config.get("sliding_window"), config.get("attention_chunk_size")]
    return min((window for window in windows if window), default=math.inf)


def _takes_plans(module: nn.Module) -> bool:
    config = module.config.get_text_config()
    if config._attn_implementation != ATTENTION or not module._supports_attention_backend:
        return False
    if any("softcap" in key and "attn" in key and value for key, value in config.to_dict().items()):
        return False
    if any(name.rpartition(".")[2] in ("sinks", "sink") for name, _ in module.named_parameters()):
        return False
    return _passes_trial(module)


def _passes_trial(module: nn.Module) -> bool:
    """Two prompts, three rows, one step, against plain forward passes."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            found, expected = _with_plans(module), _plainly(module)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:  # the model takes no plans
        logger.info("%s cannot share prompts: %s", type(module).__name__, error)
        return False
    finally:
        module.train(was_training)
    tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 0.05
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _with_plans(module: nn.Module) -> Tensor:
    reader = SharedReader(module, len(NEXT), 2, max_prefill_tokens=64)
    (first, second), logits_PV = reader.read(TRIAL)
    reader.join((first, second, first))
    return torch.cat((logits_PV, reader.step(torch.tensor(NEXT, device=logits_PV.device))))


def _plainly(module: nn.Module) -> Tensor:
    first, second = TRIAL
    sequences: Sequence[tuple[int, ...]] = (first, second, (*first, NEXT[0]), (*second, NEXT[1]), (*first, NEXT[2]))
    device = next(module.parameters()).device
    logits = [module(torch.tensor([ids], device=device), use_cache=False).logits[0, -1] for ids in sequences]
    return torch.stack(logits)
