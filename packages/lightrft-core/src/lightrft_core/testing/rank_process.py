"""One rank of `ranks.gradients_on_ranks`: reads its order from stdin and prints the summed gradients as JSON."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightrft_core.descriptors import Component
from lightrft_core.loading import load_object
from lightrft_core.objective import Totals
from lightrft_core.plugins import Plugins
from lightrft_core.sections import Aggregation
from lightrft_core.testing import tensors
from lightrft_core.testing.loss_checks import gradient, totals_of
from lightrft_core.testing.ranks import NUM_RANKS
from lightrft_core.testing.results import Case


def run_rank(order: Mapping[str, Any]) -> None:  # Any: JSON values
    """Join the group, take this rank's rows, and print the summed gradients on rank 0."""
    torch = tensors.torch_module()
    rank, folder = int(order["rank"]), Path(order["folder"])
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=NUM_RANKS)
    descriptor = Component(name="loss", target=order["target"], summary="Under test.", config=order["config_target"])
    config = load_object(order["config_target"]).model_validate(order["config"])
    case = Case("loss", descriptor, Plugins(rows=()), folder, config=config)
    inputs = tensors.loss_inputs()
    rows = list(range(rank, len(inputs.mask_BT), NUM_RANKS))
    share = totals_of(tensors.select_rows(inputs, rows))
    counts = torch.tensor([share.tokens, share.sequences], dtype=torch.float64)
    torch.distributed.all_reduce(counts)
    totals = Totals(tokens=float(counts[0]), sequences=float(counts[1]))
    summed = {}
    for aggregation in order["aggregations"]:
        found, _ = gradient(case, inputs, cast(Aggregation, aggregation), [rows], totals)
        torch.distributed.all_reduce(found)
        summed[aggregation] = found.tolist()
    torch.distributed.destroy_process_group()
    if rank == 0:
        sys.stdout.write(json.dumps(summed))


if __name__ == "__main__":
    run_rank(json.load(sys.stdin))
