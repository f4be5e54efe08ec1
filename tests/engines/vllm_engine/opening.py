"""A trial of vLLM."""

from pathlib import Path

from tests.engines import served_trials


def build(path: Path, run_dir: Path, **options) -> served_trials.Trial:
    """With options of the engine."""
    from lightrft_engines.vllm_engine.config import VllmConfig
    from lightrft_engines.vllm_engine.engine import open_engine

    return served_trials.build(open_engine, VllmConfig(**{"kv_cache_gb": 0.1, **options}), path, run_dir)
