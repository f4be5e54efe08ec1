"""A trial of SGLang, with a stand-in for its compiled kernels where they are not installed."""

import logging
import multiprocessing
import os
import random
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.engines import served_trials

STAND_IN = Path(__file__).parent / "stand_in"


def use_stand_in() -> None:
    """For this process and those that it starts."""
    if find_spec("sgl_kernel") is None:
        sys.path.insert(0, str(STAND_IN))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(STAND_IN), *filter(None, [os.environ.get("PYTHONPATH")])])


def state_of_this_process() -> dict:
    """What a library may not change behind the trainer's back."""
    import torch

    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    method = multiprocessing.get_start_method(allow_none=True)
    drawn = (random.getstate(), torch.get_rng_state().tolist(), torch.set_num_threads)
    root = logging.getLogger()
    return {
        "signals": signals,
        "method": method,
        "random": drawn,
        "logging": (root.level, root.handlers[:]),
        "environment": dict(os.environ),
    }


def build(path: Path, run_dir: Path, **options) -> served_trials.Trial:
    """With options of the engine; the trial keeps what this process was before and after the engine's start."""
    use_stand_in()
    from lightrft_engines.sglang_engine.arguments import prepare
    from lightrft_engines.sglang_engine.config import SglangConfig
    from lightrft_engines.sglang_engine.engine import open_engine

    prepare()
    states = []

    def open_watched(config, setup):
        states.append(state_of_this_process())
        engine = open_engine(config, setup)
        states.append(state_of_this_process())
        return engine

    trial = served_trials.build(open_watched, SglangConfig(**{"kv_cache_gb": 0.1, **options}), path, run_dir)
    trial.states = states
    return trial
