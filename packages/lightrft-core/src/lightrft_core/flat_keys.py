"""A run file as dotted keys, to lay two of them side by side."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import yaml

from lightrft_core.errors import UserError
from lightrft_core.protocols import Json
from lightrft_core.rundir import RunDir


def flatten(value: Json, key: str = "") -> dict[str, Json]:
    """Dotted keys of a run file; list entries that say `use` go by that name, so that their order counts little.

    A second entry of one name is `shapers[clip 2]`.
    """
    if isinstance(value, dict) and value:
        parts = {name: (f"{key}.{name}" if key else str(name)) for name in value}
        return {path: leaf for name, part in parts.items() for path, leaf in flatten(value[name], part).items()}
    if isinstance(value, list) and value and all(isinstance(item, dict) and "use" in item for item in value):
        entries = [(f"{key}[{label}]", item) for label, item in zip(_labels(value), value, strict=True)]
        return {path: leaf for part, item in entries for path, leaf in flatten(item, part).items()}
    return {key: value}


def _labels(entries: Sequence[Mapping[str, Json]]) -> Iterator[str]:
    seen: Counter[str] = Counter()
    for entry in entries:
        label = str(entry.get("name") or entry["use"])
        seen[label] += 1
        yield label if seen[label] == 1 else f"{label} {seen[label]}"


def flat_run_file(run: RunDir) -> dict[str, Json]:
    """The keys of a run's resolved run file; empty where it has none. `UserError` where it cannot be read."""
    try:
        return flatten(yaml.safe_load(run.run_yaml.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the run file cannot be read: {error}", where=str(run.run_yaml)) from None
