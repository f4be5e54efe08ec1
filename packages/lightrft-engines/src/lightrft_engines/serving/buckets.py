"""Weights in buckets: many tensors travel together, because a call per parameter costs more than its bytes."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lightrft_core.errors import EnvironmentUnfit
from safetensors.torch import load_file
from torch import Tensor

from lightrft_engines.tensors_io import write_tensors

MEBIBYTE = 1 << 20
SHARED = Path("/dev/shm")  # noqa: S108  # memory that the processes of this machine share
Bucket = list[tuple[str, Tensor]]


def buckets(weights: Iterable[tuple[str, Tensor]], max_mb: int) -> Iterator[Bucket]:
    """Tensors in their order, cut where the next would exceed `max_mb`; a larger one travels alone."""
    bucket: Bucket = []
    size = 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > max_mb * MEBIBYTE:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


def write_shared(bucket: Bucket, folder: Path) -> Path:
    """Put a bucket where another process of this machine can map it; the caller removes it when it was read.

    A new name each time: a reader may still hold the last file's pages.
    """
    path = folder / f"bucket-{next(_numbers)}.safetensors"
    try:
        write_tensors(path, {name: tensor.cpu() for name, tensor in bucket})
    except OSError as error:
        raise EnvironmentUnfit(
            f"cannot put {sum(tensor.nbytes for _, tensor in bucket) / MEBIBYTE:.0f} MiB of weights into {folder}: "
            f"{os.strerror(error.errno) if error.errno else error}",
            where="engine.bucket_mb",
            hint="Lower it, or give the machine or container more shared memory (`--shm-size`).",
        ) from error
    return path


def read_shared(path: str | Path) -> Sequence[tuple[str, Tensor]]:
    """A bucket that `write_shared` wrote, mapped into this process."""
    return list(load_file(path).items())


def _count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


_numbers = _count()
