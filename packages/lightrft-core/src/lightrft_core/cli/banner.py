"""The lines that a run and a dry run begin with: what will be trained, how, and what the command line changed."""

from collections.abc import Iterator
from typing import cast

from lightrft_core.batch_rule import BatchPlan
from lightrft_core.plugins import Plugins
from lightrft_core.runfile import RunFile
from lightrft_core.sections import ModelSection

OURS = "lightrft-"


def banner(run_file: RunFile, plugins: Plugins, batch: BatchPlan) -> Iterator[str]:
    """One `name value` line each."""
    model = cast(ModelSection, run_file.model.config)
    if run_file.run.about:
        yield f"about      {run_file.run.about}"
    yield f"model      {model.path}" + (" (runs the model's own code)" if model.trust_remote_code else "")
    yield f"algorithm  {run_file.algorithm or 'own sections'} = {formula(run_file)}"
    yield f"rewards    {', '.join(reward.name for reward in run_file.rewards)}"
    yield f"batch      {batch.describe()}"
    changes = sorted(key for key, origin in run_file.origins.items() if origin.startswith("--"))
    if changes:
        yield "changed    " + ", ".join(f"{key} ({run_file.origins[key]})" for key in changes)
    strangers = [row for row in plugins.rows if row.components and not row.distribution.startswith(OURS)]
    if strangers:
        yield "plugins    " + ", ".join(f"{row.title} ({row.state})" for row in strangers)


def formula(run_file: RunFile) -> str:
    """The parts that make the maths, in words."""
    names = [f"advantage {run_file.advantage.name}", f"loss {run_file.loss.name}"]
    names.append(f"kl {run_file.kl.name}" if run_file.kl is not None else "no kl")
    names += [f"correction {run_file.correction.name}"] if run_file.correction is not None else []
    for kind, parts in (("filter", run_file.filters), ("shaper", run_file.shapers), ("selector", run_file.selectors)):
        names += [f"{kind} {part.name}" for part in parts]
    return " + ".join(names)
