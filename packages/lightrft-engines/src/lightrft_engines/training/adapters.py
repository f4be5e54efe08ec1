"""What is particular to a policy that learns by LoRA: how it is served, its reference, and the model it stands on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightrft_core.abilities import LoraAdapter
from lightrft_core.errors import UserError
from lightrft_core.protocols import ModelAdapter
from torch import Tensor, nn

from lightrft_engines.lora import save_adapters
from lightrft_engines.training.config import TrainingConfig
from lightrft_engines.training.files import Filed, check_folder, read_folder
from lightrft_engines.training.merging import Merging
from lightrft_engines.training.placed import Source
from lightrft_engines.training.reference import FOLDER
from lightrft_engines.training.roles import Role

Result = TypeVar("Result")
BASE, DIGEST = "base", "sha256"


def lora_source(adapter: ModelAdapter, config: TrainingConfig, *, whole: bool) -> Source | None:
    """The policy with adapters, where the run asks for them; `whole` is whether every rank has all weights.

    `UserError` where adapters cannot be trained as the strategy's options say.
    """
    if not isinstance(adapter, LoraAdapter) or not adapter.uses_lora:
        return None
    if not adapter.lora_shards and not whole:
        what, where = "weights in 4 bits cannot be split over ranks.", "model.lora.load_in_4bit"
        raise UserError(what, where=where, hint="Leave it out, or use the strategy ddp.")
    if config.reference_offload:
        what = "has no effect beside model.lora: the reference is the policy without its adapters."
        raise UserError(what, where="strategy.reference_offload", hint="Leave it out.")
    return Source(adapter.load_lora, adapter.lora_skeleton, marked=True, lora=True)


class Lora:
    """The plain model that a policy with adapters stands for, as others see it: weights by plain names, in `dtype`."""

    def __init__(self, role: Role, adapter: LoraAdapter, dtype: torch.dtype) -> None:
        self.module, self._role, self.dtype = role.module, role, dtype
        self._merging, self.base = Merging(role.module), BaseModel(adapter.base_digest())

    def reference(self) -> "AdapterReference":
        """The policy without its adapters."""
        return AdapterReference(self._role, self._merging)

    def names(self) -> list[str]:
        """Plain names."""
        return self._merging.names()

    def whole(self, name: str) -> Tensor:
        """One parameter; all ranks call it together."""
        with torch.no_grad():
            return self._merging.merged(name, self._role.whole).to(self.dtype)

    def served(self) -> Iterator[tuple[str, Tensor]]:
        """All of them, one at a time; all ranks iterate together."""
        for name in self.names():
            yield name, self.whole(name)

    def export_adapters(self, path: Path, *, writes: bool) -> None:
        """Gather the adapters, and write them on the rank that `writes`; all ranks call it together."""
        weights = {}
        for name in self._role.learned():
            whole = self._role.whole(name)
            if writes:
                weights[name] = whole.detach().cpu()
        if writes:
            save_adapters(self.module, path, weights)


class AdapterReference:
    """The policy without its adapters, or with those of some steps ago: it needs no weights of its own."""

    def __init__(self, role: Role, merging: Merging) -> None:
        self.module: nn.Module = role.module
        self._role, self._merging = role, merging
        self._adapters: Mapping[str, Tensor] | None = None

    def awake(self) -> AbstractContextManager[None]:
        """The module is the reference inside of it."""
        return self._merging.without_adapters() if self._adapters is None else self._exchanged(self._adapters)

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:  # Any: the function's own
        """See `placed.Frozen.run`."""
        return self._role.run(function, *arguments)

    def refresh(self) -> None:
        """Keep the adapters as they are now."""
        self._adapters = self._copied()

    def folders(self) -> dict[str, Iterator[tuple[str, Filed]]]:
        """What a checkpoint holds of it: adapters, where there are some."""
        return {} if self._adapters is None else {FOLDER: self._filed(self._adapters)}

    def check(self, path: Path) -> None:
        """`UserError` for another model's checkpoint."""
        if (path / FOLDER).is_dir():
            check_folder(path / FOLDER, dict(self._filed(self._role.learned())))

    def load(self, path: Path) -> None:
        """Be what it was when that checkpoint was written."""
        has_adapters = (path / FOLDER).is_dir()
        self._adapters = read_folder(path / FOLDER, dict(self._filed(self._copied()))) if has_adapters else None

    @contextmanager
    def _exchanged(self, adapters: Mapping[str, Tensor]) -> Iterator[None]:
        own = self._copied()
        self._role.set_learned(adapters)
        try:
            yield
        finally:
            self._role.set_learned(own)

    def _copied(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._role.learned().items()}

    def _filed(self, adapters: Mapping[str, Tensor]) -> Iterator[tuple[str, Filed]]:
        for name, tensor in adapters.items():
            yield name, self._role.filed(name, tensor)


class BaseModel:
    """The frozen model below the adapters: in checkpoints as a hash alone, so that another is refused."""

    def __init__(self, digest: bytes) -> None:
        self._digest = torch.frombuffer(bytearray(digest), dtype=torch.uint8)

    def folders(self) -> dict[str, Iterator[tuple[str, Filed]]]:
        """The hash."""
        return {BASE: iter([(DIGEST, self._digest)])}

    def check(self, path: Path) -> None:
        """`UserError` for adapters of another model, or of a run that trained all weights."""
        found = self._digest.clone()
        check_folder(path / BASE, {DIGEST: found})
        read_folder(path / BASE, {DIGEST: found})
        if not torch.equal(found, self._digest):
            raise UserError(
                "its adapters were trained on another base model than the one at model.path.",
                where=str(path),
                hint="Give model.path as the run had it: its folder's files must be the same.",
            )

    def load(self, path: Path) -> None:
        """It is there already."""
