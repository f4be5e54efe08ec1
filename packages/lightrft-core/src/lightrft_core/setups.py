"""What components may know before any of them is built: the options of a run, or of a model alone, with its patches."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import cast

from lightrft_core.descriptors import ModelComponent
from lightrft_core.model_choice import model_type
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import Setup
from lightrft_core.runfile import RunFile
from lightrft_core.sections import ModelSection, OptimSection, RunSection, SamplerSection

logger = logging.getLogger(__name__)


def first_setup(run_file: RunFile, plugins: Plugins, run_dir: Path) -> Setup:
    """What is known before anything is built."""
    model, sampler = cast(ModelSection, run_file.model.config), cast(SamplerSection, run_file.sampler.config)
    setup = setup_for(model, run_file.patches_off, plugins, run_dir)
    setup.run, setup.optim, setup.sampler = run_file.run, run_file.optim, sampler
    return setup


def setup_for(model: ModelSection, patches_off: Collection[str], plugins: Plugins, run_dir: Path) -> Setup:
    """The same for a model alone: all else is as by default."""
    patches = _patches(model, patches_off, plugins)
    return Setup(
        run=RunSection(),
        optim=OptimSection(),
        sampler=SamplerSection(),
        model_section=model,
        run_dir=run_dir,
        num_optimizer_steps=1,
        patches=tuple((patch.name, plugins.target(patch)) for patch in patches),
        shard_units=tuple(unit for patch in patches for unit in patch.shard_units),
    )


def _patches(model: ModelSection, patches_off: Collection[str], plugins: Plugins) -> list[ModelComponent]:
    """Patches for this model type that the run file does not name off."""
    kind = model_type(model.path)
    chosen = []
    for patch in (offer.descriptor for offer in plugins.offers("patch")):
        assert isinstance(patch, ModelComponent)
        fits = "*" in patch.model_types or kind in patch.model_types
        if fits and patch.name not in patches_off:
            logger.info("patch %s applies to this model", patch.name)
            chosen.append(patch)
    return chosen
