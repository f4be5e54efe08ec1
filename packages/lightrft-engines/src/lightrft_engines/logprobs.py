"""Log-probabilities of completion tokens under a causal language model, in either layout.

What a model can do is found out, not looked up: a tiny forward pass compares the layouts and the fused head with the
model's own logits before they are trusted (`probe`).
"""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightrft_core.abilities import Share
from lightrft_core.data import Batch
from lightrft_core.protocols import Layout, LogProbs
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightrft_engines.attention import ATTENTION, no_mask
from lightrft_engines.head import logprobs_of_logits, token_logprobs
from lightrft_engines.head_loss import HeadLoss, pays
from lightrft_engines.head_shards import own_vocabulary
from lightrft_engines.packing import Laid, completion_mask, packed, padded
from lightrft_engines.sequence import SequenceRanks

log = logging.getLogger(__name__)
Resolved = Literal["padded", "packed"]


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a model was seen to compute right. `window` is the shortest sliding window, in tokens; None without one."""

    fused_head: bool
    packing: bool
    window: int | None = None

    def layout(self, layout: Layout, batch: Batch) -> Resolved:
        """`auto` resolved; `ValueError` where packing is asked for and cannot be had."""
        fits = self.window is None or _longest(batch) <= self.window
        if layout == "packed" and not (self.packing and fits):
            raise ValueError("this model cannot run packed: its layers need the padded layout")
        return "packed" if layout != "padded" and self.packing and fits else "padded"


def logprobs(
    module: PreTrainedModel,
    batch: Batch,
    abilities: Abilities,
    *,
    layout: Layout = "auto",
    entropy: bool = False,
    chunk: int | None = None,
    ranks: SequenceRanks | None = None,
) -> LogProbs:
    """See `protocols.ModelAdapter.logprobs`; entries past a row's length are 0. Results live on the model's device."""
    device = module.get_input_embeddings().weight.device
    if ranks is not None:
        return _logprobs_of_slice(module, batch, abilities, ranks, entropy=entropy, chunk=chunk)
    exists_BT, targets_M = _targets(batch, device)
    laid = _laid(batch, abilities, layout, device)
    if abilities.fused_head:
        states_MD = hidden_states(module, laid).flatten(0, 1)[laid.source_M]
        values_M, entropy_M = _by_head(module, states_MD, targets_M, batch.temperature, entropy, chunk)
    else:
        logits_MV = own_logits(module, laid).flatten(0, 1)[laid.source_M]
        values_M, entropy_M = logprobs_of_logits(logits_MV, targets_M, batch.temperature, entropy=entropy)
    return LogProbs(scatter(values_M, exists_BT), None if entropy_M is None else scatter(entropy_M, exists_BT))


def loss(
    module: PreTrainedModel,
    batch: Batch,
    share: Share,
    abilities: Abilities,
    *,
    layout: Layout = "auto",
    entropy: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """See `abilities.LossAdapter.loss`."""
    head, shard = own_vocabulary(module.get_output_embeddings())
    if not abilities.fused_head or not pays(head.weight):
        found = logprobs(module, batch, abilities, layout=layout, entropy=entropy, chunk=chunk)
        return share(range(len(batch)), found)
    device = head.weight.device
    exists_BT, targets_M = _targets(batch, device)
    laid = _laid(batch, abilities, layout, device)

    def of_rows(rows: slice, values_C: Tensor, entropy_C: Tensor | None) -> Tensor:
        exists_RT = exists_BT[rows]
        found = LogProbs(scatter(values_C, exists_RT), None if entropy_C is None else scatter(entropy_C, exists_RT))
        return share(range(len(batch))[rows], found)

    states_MD = hidden_states(module, laid).flatten(0, 1)[laid.source_M]
    by_head = HeadLoss(head, batch.temperature, entropy, chunk, shard)
    return by_head.of(states_MD, targets_M, batch.lengths_B.tolist(), of_rows)


def _logprobs_of_slice(
    module: PreTrainedModel,
    batch: Batch,
    abilities: Abilities,
    ranks: SequenceRanks,
    *,
    entropy: bool,
    chunk: int | None,
) -> LogProbs:
    """The same where several ranks share the packed row; each computes its slice."""
    device = module.get_input_embeddings().weight.device
    exists_BT, targets_M = _targets(batch, device)
    own = ranks.split(packed(batch, device))
    targets_M = targets_M[own.own_M]
    if abilities.fused_head:
        states_MD = own.states(hidden_states(module, own.laid))
        values, spread = _by_head(module, states_MD, targets_M, batch.temperature, entropy, chunk)
    else:
        logits_MV = own.states(own_logits(module, own.laid))
        values, spread = logprobs_of_logits(logits_MV, targets_M, batch.temperature, entropy=entropy)
    entropy_BT = None if spread is None else scatter(own.join(spread), exists_BT)
    return LogProbs(scatter(own.join(values), exists_BT), entropy_BT)


def _targets(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where completion tokens exist, [B, T], and these tokens, [M]."""
    exists_BT = completion_mask(batch).to(device)
    return exists_BT, batch.completion_ids_BT.to(device)[exists_BT]


def _laid(batch: Batch, abilities: Abilities, layout: Layout, device: torch.device) -> Laid:
    return (packed if abilities.layout(layout, batch) == "packed" else padded)(batch, device)


def _by_head(
    module: PreTrainedModel, states_MD: Tensor, targets_M: Tensor, temperature: float, entropy: bool, chunk: int | None
) -> tuple[Tensor, Tensor | None]:
    """Through the output layer, whole or this rank's part of its vocabulary."""
    head, shard = own_vocabulary(module.get_output_embeddings())
    return token_logprobs(states_MD, head, targets_M, temperature, entropy=entropy, chunk=chunk, shard=shard)


def hidden_states(module: PreTrainedModel, laid: Laid) -> Tensor:
    """The decoder's last hidden states, [1, N, D] or [B, S, D]."""
    return decoder_states(module.get_decoder(), laid)


def decoder_states(decoder: nn.Module, laid: Laid) -> Tensor:
    """The same from the decoder itself."""
    output: Tensor = decoder(**_inputs(laid)).last_hidden_state
    return output


def probe(module: PreTrainedModel) -> Abilities:
    """Compare the fused head and the packed layout with the plain forward pass on a few tokens."""
    vocabulary = module.get_input_embeddings().weight.shape[0]
    batch = _probe_batch(vocabulary)
    device = module.get_input_embeddings().weight.device
    plain, tight = padded(batch, device), packed(batch, device)
    with torch.no_grad():
        expected_MD = hidden_states(module, plain).flatten(0, 1)[plain.source_M]
        fused = _has_plain_head(module, plain)
        can_pack = module.config._attn_implementation == ATTENTION and _packs(module, tight, expected_MD)
    if not (fused and can_pack):
        log.info("model %s: fused head %s, packing %s", type(module).__name__, fused, can_pack)
    return Abilities(fused, can_pack, _window(module))


def assumed(module: PreTrainedModel) -> Abilities:
    """What `probe` will most likely find, from the class and its options alone: for a module without weights."""
    options = _options(module).items()
    changes = [value for name, value in options if "logit" in name and ("softcap" in name or "scal" in name)]
    is_plain = all(value in (None, 1) for value in changes)
    fused = is_plain and type(module.get_output_embeddings()) is nn.Linear
    return Abilities(fused, module.config._attn_implementation == ATTENTION, _window(module))


def _inputs(laid: Laid) -> dict[str, object]:
    if laid.plan is None:
        return {"input_ids": laid.input_ids, "attention_mask": laid.mask, "use_cache": False}
    return {
        "input_ids": laid.input_ids,
        "position_ids": laid.position_ids,
        "attention_mask": no_mask(laid.input_ids.device),
        "use_cache": False,
        "lightrft_plan": laid.plan,
    }


def own_logits(module: PreTrainedModel, laid: Laid) -> Tensor:
    """As the model itself computes them."""
    output: Tensor = module(**_inputs(laid)).logits
    return output


def scatter(values_M: Tensor, exists_BT: Tensor) -> Tensor:
    """Values of the completion tokens, row by row, as [B, T] with 0 elsewhere."""
    return values_M.new_zeros(exists_BT.shape).masked_scatter(exists_BT, values_M)


def _has_plain_head(module: PreTrainedModel, laid: Laid) -> bool:
    head = module.get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    if any(value for name, value in _options(module).items() if "logit_softcap" in name):
        return False  # small logits would hide it from the comparison
    return _same(head(hidden_states(module, laid)), own_logits(module, laid), 1e-5)


def _packs(module: PreTrainedModel, laid: Laid, expected_MD: Tensor) -> bool:
    try:
        states_MD = hidden_states(module, laid).flatten(0, 1)[laid.source_M]
    except (TypeError, ValueError, RuntimeError, IndexError) as error:  # a model that takes no plan or positions
        log.info("model %s does not take packed rows: %s", type(module).__name__, error)
        return False
    return _same(states_MD, expected_MD, 1e-3)


def _same(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    tolerance = 0.05 if expected.dtype in (torch.bfloat16, torch.float16) else tolerance
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _probe_batch(vocabulary: int) -> Batch:
    """Two siblings of different lengths and a stranger."""
    ids = torch.arange(3 * 7).view(3, 7) * 31 % vocabulary
    prompts = ((1, 2, 3, 4, 5), (1, 2, 3, 4, 5), (6, 7))
    zeros = torch.zeros(3, 7)
    return Batch(
        prompt_ids=("a", "a", "b"),
        prompt_token_ids=tuple(tuple(token % vocabulary for token in prompt) for prompt in prompts),
        completion_ids_BT=ids,
        mask_BT=torch.ones(3, 7, dtype=torch.bool),
        lengths_B=torch.tensor([7, 4, 5]),
        group_B=torch.tensor([0, 0, 1]),
        rewards_B=zeros[:, 0],
        scored_B=torch.ones(3, dtype=torch.bool),
        engine_logprobs_BT=zeros,
    )


def _window(module: PreTrainedModel) -> int | None:
    """The shortest window that some layer applies, in tokens."""
    config = _options(module)
    kinds = config.get("layer_types")
    windows = [config.get("sliding_window"), config.get("attention_chunk_size")]
    if kinds is not None and not any("sliding" in kind or "chunked" in kind for kind in kinds):
        return None
    return min((window for window in windows if window), default=None)


def _options(module: PreTrainedModel) -> dict[str, Any]:  # Any: whatever config.json holds
    options: dict[str, Any] = module.config.get_text_config().to_dict()  # Any: the same
    return options


def _longest(batch: Batch) -> int:
    lengths = batch.lengths_B.tolist()
    return max((len(prompt) + own for prompt, own in zip(batch.prompt_token_ids, lengths, strict=True)), default=0)
