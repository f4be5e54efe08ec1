"""What each of two ranks does with an engine, under torchrun; it tells its findings as JSON."""

import json
import os
import sys
from pathlib import Path


def main(build) -> None:
    """Arguments: folder of the model, folder for the findings, options of the engine as JSON."""
    folder, out, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
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
