"""How weights reach a server: shared memory on this machine, or from GPU to GPU (`gpu_transfer`)."""

from collections.abc import Sequence
from pathlib import Path

from lightrft_core.errors import UserError
from lightrft_core.protocols import Weights, World

from lightrft_engines.serving.buckets import MEBIBYTE, buckets, write_shared
from lightrft_engines.serving.fitting import sync_way
from lightrft_engines.serving.http import Client
from lightrft_engines.serving.server import Transfer
from lightrft_engines.vllm_engine.arguments import is_on_cpu
from lightrft_engines.vllm_engine.config import VllmConfig


class SharedMemory:
    """Files that live in memory: written by rank 0, mapped by the server's workers, gone when they have read them."""

    def __init__(self, client: Client, world: World, folder: Path, bucket_mb: int) -> None:
        self._client, self._world, self._folder, self._bucket_mb = client, world, folder, bucket_mb

    def send(self, weights: Weights) -> Sequence[str]:
        """A file and a call per bucket."""
        if self._world.rank:
            for _ in weights():  # gathering whole parameters takes all ranks
                pass
            return []
        self._call("lightrft_begin")
        for bucket in buckets(weights(), self._bucket_mb):
            path = write_shared(bucket, self._folder)
            try:
                self._call("lightrft_take_file", str(path))
            finally:
                path.unlink()
        return sorted({name for missing in self._call("lightrft_finish") for name in missing})

    def close(self) -> None:
        """Nothing is held."""

    def _call(self, method: str, *args: str) -> Sequence[Sequence[str]]:
        answer = self._client.post("/collective_rpc", {"method": method, "args": list(args)})
        results: Sequence[Sequence[str]] = answer["results"]
        return results


def choose_transfer(config: VllmConfig, client: Client, world: World, folder: Path) -> Transfer:
    """`UserError` where a server on another machine is to read this one's memory."""
    chosen = sync_way(config, is_on_cpu=is_on_cpu())
    if chosen in ("shared_memory", "ipc") and not client.is_loopback:
        raise UserError(
            f"{client.url} is another machine, which cannot read the memory of this one.",
            where="engine.sync",
            hint="Use nccl between GPUs, or a server on this machine.",
        )
    if chosen == "shared_memory":
        return SharedMemory(client, world, folder, config.bucket_mb)
    from lightrft_engines.vllm_engine.gpu_transfer import Direct

    return Direct(chosen, client, world, config.bucket_mb * MEBIBYTE)
