"""The plain sampler: every prompt is continued `group_size` times with the same settings."""

from collections.abc import Sequence

from lightrft_core.data import Group, Prompt
from lightrft_core.drawing import sample_groups, sampling_of
from lightrft_core.protocols import Engine, Setup
from lightrft_core.sections import SamplerSection


class PlainConfig(SamplerSection):
    """Options of `plain`."""


class PlainSampler:
    """Draws each sibling from its own seed, which derives from (run seed, step, prompt id, sibling)."""

    def __init__(self, config: PlainConfig, setup: Setup) -> None:
        self._config, self._setup = config, setup

    def sample(self, engine: Engine, prompts: Sequence[Prompt], *, step: int, attempt: int = 0) -> list[Group]:
        """One group per prompt, in order; a refill (`attempt` above 0) draws anew."""
        config, model = self._config, self._setup.require_model()
        sampling = sampling_of(config, model.stop_token_ids)
        seed, purpose = self._setup.run.seed, f"{step}+{attempt}" if attempt else step
        return sample_groups(engine, model, prompts, sampling, config.group_size, run_seed=seed, purpose=purpose)
