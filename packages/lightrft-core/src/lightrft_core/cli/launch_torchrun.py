"""The command of each node, for machines that nothing but a person starts."""

import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path


def commands(run: Path, nodes: int, ranks_per_node: int, host: str | None, port: int) -> Iterator[str]:
    """Lines to read and to type: what must hold, then one command for each node."""
    first = host or socket.gethostname()
    yield f"# {nodes * ranks_per_node} ranks on {nodes} machine{'s' if nodes > 1 else ''}. Each must see {run}"
    yield f"# and {sys.executable} at these paths, and reach {first}:{port}."
    yield "# They wait for each other; Ctrl-C on the first saves and stops all. The same commands go on with the run."
    for rank in range(nodes):
        words = [sys.executable, "-m", "lightrft_core.torchrun", str(run)]
        words += [f"--nnodes={nodes}", f"--nproc-per-node={ranks_per_node}", f"--node-rank={rank}"]
        words += [f"--master-addr={first}", f"--master-port={port}"]
        yield ""
        yield f"# node {rank}{f' ({first})' if rank == 0 else ''}"
        yield shlex.join(words)
