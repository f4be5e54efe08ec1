"""Every check of a component: those that all kinds share, then those of its own kind."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightrft_core.descriptors import Algorithm, Command, Component, Descriptor
from lightrft_core.kinds import BY_NAME
from lightrft_core.protocols import Setup
from lightrft_core.requirements import unmet
from lightrft_core.sections import Section
from lightrft_core.testing import (
    advantage_checks,
    bundle_checks,
    correction_checks,
    descriptor_checks,
    engine_checks,
    filter_checks,
    kl_checks,
    loss_checks,
    model_checks,
    observer_checks,
    reward_checks,
    sampler_checks,
    selector_checks,
    shaper_checks,
    strategy_checks,
    task_checks,
)
from lightrft_core.testing.results import SKIPPED, Case, Check, CheckResult, Skipped, run_check

if TYPE_CHECKING:
    from lightrft_core.plugins import Plugins

SUITES: Mapping[str, tuple[Check, ...]] = {
    "algorithm": bundle_checks.ALGORITHM,
    "task": task_checks.CHECKS,
    "sampler": sampler_checks.CHECKS,
    "engine": engine_checks.CHECKS,
    "reward": reward_checks.CHECKS,
    "shaper": shaper_checks.CHECKS,
    "filter": filter_checks.CHECKS,
    "advantage": advantage_checks.CHECKS,
    "kl": kl_checks.CHECKS,
    "loss": loss_checks.CHECKS,
    "selector": selector_checks.CHECKS,
    "correction": correction_checks.CHECKS,
    "strategy": strategy_checks.CHECKS,
    "model": model_checks.MODEL,
    "patch": model_checks.PATCH,
    "tracker": observer_checks.TRACKER,
    "callback": observer_checks.CALLBACK,
    "command": bundle_checks.COMMAND,
}


def check_component(
    kind: str,
    component: Descriptor,
    plugins: "Plugins",
    *,
    options: Mapping[str, Any] | None = None,  # Any: YAML values
    setup: Setup | None = None,
) -> list[CheckResult]:
    """Check a component of a kind of `kinds.py`; one result a check.

    `options` are run-file keys, for what has options without defaults. `setup` gives a real model adapter and strategy
    to what cannot work with toys; without it such checks are skipped and say what they need. `ValueError` for an
    unknown kind. A failure that makes further checks pointless ends the list.
    """
    if kind not in BY_NAME:
        raise ValueError(f"{kind!r} is no kind of component; kinds are {', '.join(BY_NAME)}")
    missing = unmet(component.requires)
    if missing:
        return [CheckResult("requirements are installed", ok=True, detail=f"{SKIPPED}needs {', '.join(missing)}")]
    with tempfile.TemporaryDirectory(prefix="lightrft-check-") as folder:
        case = Case(kind, component, plugins, Path(folder), given=setup)
        results = [run_check(check, case) for check in _shared_checks(component)]
        if not all(result.ok for result in results):
            return results
        results += _configure(case, options or {}, len(SUITES[kind]))
        if case.config is None:
            return results
        return results + [run_check(check, case) for check in SUITES[kind]]


def _shared_checks(component: Descriptor) -> tuple[Check, ...]:
    if isinstance(component, Algorithm):
        return descriptor_checks.ANY
    return descriptor_checks.ANY + (
        descriptor_checks.COMMAND if isinstance(component, Command) else descriptor_checks.COMPONENT
    )


def _configure(case: Case, options: Mapping[str, Any], num_more: int) -> list[CheckResult]:  # Any: YAML values
    if not isinstance(case.descriptor, Component) or case.kind == "patch":
        case.config = Section()
        return []

    def options_validate(case: Case) -> None:
        try:
            case.config = descriptor_checks.build_options(case, options)
        except Skipped as skip:
            raise Skipped(f"{skip}; {num_more} more checks wait for it") from None

    return [run_check(options_validate, case)]
