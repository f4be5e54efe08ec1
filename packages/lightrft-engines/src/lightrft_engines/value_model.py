"""A critic from any causal language model: its decoder, and a value head on the hidden states.

    V_t = w . h_t,  h_t the state that predicts token t

The value of a token is that of what it was chosen in: it has not seen the token itself. A head that the model's files
do not have starts at 0, so that the first values are 0 whatever the seed.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from lightrft_core.data import Batch
from lightrft_core.errors import UserError
from lightrft_core.protocols import Layout
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel
from transformers.utils import cached_file

from lightrft_engines.hub import WEIGHTS, quietly
from lightrft_engines.logprobs import decoder_states, scatter
from lightrft_engines.packing import completion_mask, packed, padded
from lightrft_engines.sequence import SequenceRanks
from lightrft_engines.tensors_io import write_tensors


class ValueModel(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """Decoder and head; `prefix` is the decoder's name in the files of its model."""

    def __init__(self, backbone: PreTrainedModel, prefix: str, head_name: str, weight_1D: Tensor | None) -> None:
        super().__init__()
        self.backbone, self.prefix, self.head_name = backbone, prefix, head_name
        like = next(backbone.parameters())
        width: int = backbone.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, bias=False, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.head.weight)
        if weight_1D is not None:
            with torch.no_grad():
                self.head.weight.copy_(weight_1D)

    def get_output_embeddings(self) -> nn.Linear:
        """The head, by the name that transformers' models have for theirs."""
        return self.head


def values(critic: ValueModel, batch: Batch, layout: Layout, ranks: SequenceRanks | None = None) -> Tensor:
    """Values [B, T] in a resolved layout, on the model's device, in fp32 (fp64 for fp64); 0 past a row's length."""
    weight_1D = critic.head.weight
    accurate = torch.promote_types(weight_1D.dtype, torch.float32)
    exists_BT = completion_mask(batch).to(weight_1D.device)
    laid = (packed if layout == "packed" else padded)(batch, weight_1D.device)
    if ranks is not None:
        own = ranks.split(laid)
        states_MD = own.states(decoder_states(critic.backbone, own.laid))
        return scatter(own.join(states_MD.to(accurate) @ weight_1D.to(accurate)[0]), exists_BT)
    states_MD = decoder_states(critic.backbone, laid).flatten(0, 1)[laid.source_M]
    return scatter(states_MD.to(accurate) @ weight_1D.to(accurate)[0], exists_BT)


def read_head(path: str, revision: str | None, name: str, width: int) -> Tensor | None:
    """The head's weight [1, D] in a model's files; None where they have none. `UserError` for more than one output."""
    file, key = _file_with(path, revision, f"{name}.weight"), f"{name}.weight"
    if file is None:
        return None
    with safe_open(file, framework="pt") as tensors:
        if key not in tensors.keys():  # noqa: SIM118  a safetensors file is no mapping
            return None
        weight: Tensor = tensors.get_tensor(key)
    if weight.shape != (1, width):
        raise UserError(
            f"{key} of {path} has shape {list(weight.shape)}, and a value head has [1, {width}].",
            where="critic.path",
            hint="Name a critic or a reward model with one output, or another `critic.head`.",
        )
    return weight


def export(critic: ValueModel, path: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Config and weights, named as `AutoModelForSequenceClassification` names them where it has this model."""
    config = copy.deepcopy(critic.backbone.config)
    model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    config.architectures = [model_class.__name__] if model_class is not None else None
    config.num_labels = 1
    path.mkdir(parents=True, exist_ok=True)
    with quietly():
        config.save_pretrained(path)
    own = dict(critic.named_parameters()) if weights is None else dict(weights)
    head = {f"{critic.head_name}.weight": own.pop("head.weight")}
    write_tensors(path / WEIGHTS[0], {name.replace("backbone", critic.prefix, 1): own[name] for name in own} | head)


def _file_with(path: str, revision: str | None, key: str) -> str | None:
    """The weight file that has a tensor; the only one there is where there is no index."""
    single, index = (_file(path, revision, name) for name in WEIGHTS)
    if index is None:
        return single
    name = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].get(key)
    shard: str | None = cached_file(path, name, revision=revision) if name is not None else None
    return shard


def _file(path: str, revision: str | None, name: str) -> str | None:
    found: str | None = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return found
