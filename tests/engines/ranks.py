"""Forked gloo ranks: torch is imported once, and a group of ranks starts in a tenth of a second."""

from datetime import timedelta

import torch
import torch.distributed as dist

LIMIT = 120


def on_ranks(work, size: int, tmp_path):
    """Results of `work(rank)` on `size` forked gloo ranks, in rank order."""
    if dist.is_initialized():  # a strategy alone made a group of one in this process: forked ranks would inherit it
        dist.destroy_process_group()
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    store = tmp_path / f"store{size}-{len(list(tmp_path.iterdir()))}"
    processes = [context.Process(target=_enter, args=(work, rank, size, store, queue)) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        results = dict(queue.get(timeout=LIMIT) for _ in processes)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    failed = [result for result in results.values() if isinstance(result, BaseException)]
    if failed:
        raise failed[0]
    return [results[rank] for rank in range(size)]


def _enter(work, rank, size, store, queue):
    torch.set_num_threads(1)
    try:
        limit = timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=limit)
        queue.put((rank, work(rank)))
    except Exception as error:
        queue.put((rank, error))
        raise
