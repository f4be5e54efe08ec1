"""What every component must have: a complete descriptor, light and documented options, a target that imports."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from lightrft_core.descriptor_checks import descriptor_problem
from lightrft_core.sections import Section
from lightrft_core.testing.results import Case, Check, Skipped, require

HEAVY = ("torch", "transformers", "vllm", "sglang")
IMPORT_LIMIT = 300.0
_IMPORT = """
import sys
from lightrft_core.loading import load_object
load_object(sys.argv[1])
print(",".join(name for name in sys.argv[2].split(",") if name in sys.modules))
"""


def descriptor_is_complete(case: Case) -> None:
    """A name, a one-line summary, well-formed targets and words."""
    problem = descriptor_problem(case.descriptor)
    require(problem is None, str(problem))
    require("\n" not in case.descriptor.summary, "the summary must be one line")


def target_imports(case: Case) -> None:
    """The target exists and can be called, or is an app."""
    target = case.plugins.target(case.descriptor)  # type: ignore[arg-type]  # only for kinds that have a target
    require(callable(target), f"the target is {target!r}, which cannot be called")


def options_import_without_torch(case: Case) -> None:
    """Listing and validating a run file must not load a deep-learning library."""
    if case.component.config is None:
        return
    loaded = imported_alongside(case.component.config)
    require(not loaded, f"importing {case.component.config} also imports {loaded}; keep options in a module without")


def options_are_documented(case: Case) -> None:
    """Every option has a sentence, the JSON schema builds, and unknown keys are refused."""
    config = case.plugins.config_class(case.kind, case.component)
    schema = config.model_json_schema()
    require(schema.get("additionalProperties") is False, "unknown options must be refused: extend Section")
    bare = [name for name, field in config.model_fields.items() if not field.description]
    require(not bare, f"no sentence under {', '.join(bare)}")
    require(config.model_config.get("frozen"), "options must be frozen")


def build_options(case: Case, options: Mapping[str, Any]) -> Section:  # Any: YAML values
    """The validated options. Raises `Skipped` where one without a default was not given."""
    config = case.plugins.config_class(case.kind, case.component)
    required = [name for name, field in config.model_fields.items() if field.is_required() and name not in options]
    if required:
        raise Skipped(f"a value for {', '.join(required)}: pass `options=`")
    return config.model_validate(dict(options))


def imported_alongside(target: str) -> str:
    """Heavy libraries that a fresh Python loads with `target`, comma-separated. Raises `CheckFailed` if it cannot."""
    command = [sys.executable, "-c", _IMPORT, target, ",".join(HEAVY)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=IMPORT_LIMIT, env=fresh_environment(), check=False
    )
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    require(done.returncode == 0, f"a fresh Python cannot import {target}: {last[0]}")
    return done.stdout.strip()


def fresh_environment() -> dict[str, str]:
    """The environment for a child that finds the modules which this process finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


ANY: tuple[Check, ...] = (descriptor_is_complete,)
COMMAND: tuple[Check, ...] = (target_imports,)
COMPONENT: tuple[Check, ...] = (options_import_without_torch, options_are_documented, target_imports)
