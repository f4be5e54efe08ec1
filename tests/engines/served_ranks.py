"""Two ranks with an engine under torchrun: what each of them does, and what a test is told of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def main(build) -> None:
    """Arguments: folder for the findings, folder of the model, options of the engine as JSON."""
    out, folder, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    trial = build(folder, out, **options)
    rank = trial.strategy.world.rank
    trial.change(1.1)
    trial.engine.update_weights(trial.strategy.weights, 2)
    requests = trial.requests(*((3, 40) if rank == 0 else (17,)))
    found = {
        "wrong": trial.wrong(),
        "names": len(trial.names()),
        "gap": trial.gap(requests),
        "tokens": [[one.token_ids for one in group] for group in trial.engine.generate(requests)],
        "sum": trial.strategy.world.sum([1.0]),  # the trainer's collectives work beside the engine's
    }
    (out / f"rank{rank}.json").write_text(json.dumps(found))
    trial.engine.close()
    trial.strategy.close()
    os._exit(0)  # gloo's threads of two libraries may outlive the interpreter


def on_two_ranks(module: str, out: Path, *words: str):
    """What each of two ranks that run the module wrote into a folder, which is its first argument."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", module, str(out), *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def check_two_ranks(module: str, folder: Path, out: Path, options, alone) -> None:
    """Ranks with an engine serve their weights, and write what one process writes."""
    first, second = on_two_ranks(module, out, str(folder), json.dumps(options))
    assert first["wrong"] == second["wrong"] == []
    assert max(first["gap"], second["gap"]) < 1e-4
    assert [*first["tokens"], *second["tokens"]] == alone
    assert first["sum"] == second["sum"] == [2.0]
