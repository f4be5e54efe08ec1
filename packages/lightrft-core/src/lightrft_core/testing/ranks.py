"""A loss on two real ranks: two processes that share a gloo group, each with every other row of the batch.

Processes are started anew, never forked: torch's threads do not survive a fork.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from lightrft_core.data import Tensor
from lightrft_core.kinds import BY_NAME
from lightrft_core.sections import Aggregation
from lightrft_core.testing import tensors
from lightrft_core.testing.descriptor_checks import fresh_environment
from lightrft_core.testing.results import Case, CheckFailed

NUM_RANKS = 2
LIMIT = 300.0


def gradients_on_ranks(case: Case, aggregations: Sequence[Aggregation]) -> Mapping[str, Tensor]:
    """The summed gradient [B, T] of `tensors.loss_inputs()` by aggregation. Raises `CheckFailed` where a rank fails."""
    torch = tensors.torch_module()
    base = BY_NAME[case.kind].config_base
    with tempfile.TemporaryDirectory(prefix="lightrft-ranks-") as folder:
        order = {
            "target": case.component.target,
            "config_target": case.component.config or f"{base.__module__}:{base.__qualname__}",
            "config": case.options.model_dump(mode="json"),
            "aggregations": list(aggregations),
            "folder": folder,
        }
        ranks = [_start(order | {"rank": rank}) for rank in range(NUM_RANKS)]
        outputs = [_finish(process) for process in ranks]
    found = json.loads(outputs[0])
    return {name: torch.tensor(rows, dtype=torch.float64) for name, rows in found.items()}


def _start(order: Mapping[str, Any]) -> "subprocess.Popen[str]":  # Any: JSON values
    environment = fresh_environment() | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "lightrft_core.testing.rank_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(order))
    process.stdin.close()
    process.stdin = None
    return process


def _finish(process: "subprocess.Popen[str]") -> str:
    try:
        output, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise CheckFailed(f"a rank did not finish within {LIMIT:.0f} s") from None
    if process.returncode != 0:
        raise CheckFailed(f"a rank failed: {(errors.strip().splitlines() or ['no message'])[-1]}")
    return output
