"""Tensors in safetensors files, with the system's errors as `OSError` and other models' files refused by name."""

import re
from collections.abc import Mapping
from pathlib import Path

from lightrft_core.errors import UserError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write them, and `about` into the file's head; a full disk and the like raise `OSError` with the system's number.

    Other threads go on meanwhile.
    """
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata=None if about is None else dict(about))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else 0, str(error), str(path)) from error


def read_tensors(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read tensors that must have the names and shapes of `like`; `UserError` names the first that does not."""
    try:
        found: dict[str, Tensor] = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"cannot read {path.name}: {error}", where=str(path.parent)) from error
    for name, tensor in like.items():
        if name not in found:
            raise _other_model(path, f"it has no {name}")
        if found[name].shape != tensor.shape:
            raise _other_model(path, f"{name} has shape {list(found[name].shape)}, here it is {list(tensor.shape)}")
    unknown = sorted(found.keys() - like.keys())
    if unknown:
        raise _other_model(path, f"it has {unknown[0]}, which is not here")
    return found


def _other_model(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path.name} belongs to another model: {reason}.",
        where=str(path.parent),
        hint="Resume with the model that the run was started with.",
    )
