"""A run file as dotted keys, to lay two of them side by side."""

import yaml

from lightrft_core.errors import UserError
from lightrft_core.protocols import Json
from lightrft_core.rundir import RunDir


def flatten(value: Json, key: str = "") -> dict[str, Json]:
    """Dotted keys of a run file; list entries that say `use` go by that name, so that their order counts little."""
    if isinstance(value, dict) and value:
        parts = {name: (f"{key}.{name}" if key else str(name)) for name in value}
        return {path: leaf for name, part in parts.items() for path, leaf in flatten(value[name], part).items()}
    if isinstance(value, list) and value and all(isinstance(item, dict) and "use" in item for item in value):
        entries = [(f"{key}[{item.get('name') or item['use']}]", item) for item in value]
        return {path: leaf for part, item in entries for path, leaf in flatten(item, part).items()}
    return {key: value}


def flat_run_file(run: RunDir) -> dict[str, Json]:
    """The keys of a run's resolved run file; empty where it has none. `UserError` where it cannot be read."""
    try:
        return flatten(yaml.safe_load(run.run_yaml.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the run file cannot be read: {error}", where=str(run.run_yaml)) from None
