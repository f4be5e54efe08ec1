"""What torchrun runs in `test_meeting.py`: two ranks meet twice at the same time, by vLLM's own communicator."""

import json
import mmap
import os
import sys
from pathlib import Path

import torch

SHARED = Path("/dev/shm")


def stand_in() -> torch.library.Library:
    """vLLM's native part of it, which its build for processors without AVX-512 lacks: the files, as it names them."""
    library = torch.library.Library("_C", "FRAGMENT")
    held = []

    def hold(name: str, rank: int, flags: int) -> None:
        place = os.open(SHARED / f"{name.lstrip('/')}_{rank}", flags | os.O_RDWR)
        os.ftruncate(place, mmap.PAGESIZE)
        held.append(mmap.mmap(place, mmap.PAGESIZE))
        os.close(place)

    def begin(name: str, group_size: int, rank: int, thread_num: int) -> int:
        hold(name, rank, os.O_CREAT | os.O_EXCL)
        return 1 - rank

    def join(other: int, name: str) -> None:
        hold(name, other, 0)

    for signature, work in (
        ("init_shm_manager(str name, int group_size, int rank, int thread_num) -> int", begin),
        ("join_shm_manager(int handle, str name) -> ()", join),
    ):
        library.define(signature)
        library.impl(signature.partition("(")[0], work, "CompositeExplicitAutograd")
    return library


def main() -> None:
    """Argument: folder for the findings."""
    from lightrft_engines.vllm_engine import worker  # noqa: F401  # as vLLM imports it, before it makes its groups
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    torch.distributed.init_process_group("gloo")
    world, rank = torch.distributed.group.WORLD, torch.distributed.get_rank()
    native = hasattr(torch.ops._C, "init_shm_manager")
    library = None if native else stand_in()
    os.environ["VLLM_DIST_IDENT"] = "//"  # what vLLM's worker makes of torchrun's address
    groups = [CpuCommunicator(world, torch.device("cpu"), world, "tp:0") for _ in range(2)]
    if native:
        ones = torch.ones(8)
        groups[1].all_reduce(ones)
        assert ones.tolist() == [2.0] * 8
    torch.distributed.barrier()  # both have removed the names by now
    names = [group.dist_module.group_name for group in groups]
    lines = Path("/proc/self/maps").read_text().splitlines()
    held = [line.split(maxsplit=5)[5] for line in lines if str(SHARED) in line]
    Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps({"names": names, "held": held}))
    torch.distributed.barrier()
    del library
    os._exit(0)


if __name__ == "__main__":
    main()
