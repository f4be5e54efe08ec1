"""How two runs differ, in words, from their resolved run files and manifests."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from lightrft_core.cli.run_comparison import comparison_of
from lightrft_core.manifest import ABSENT
from lightrft_core.printable import printable
from lightrft_core.protocols import Json
from lightrft_core.rundir import RunDir

_ROLES = {"task": "training data", "evaluation": "held-out data"}
_NOT_PARTS = ("algorithm", "normalised_by")
_PLACES = frozenset(("run.dir", "run.about"))
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Change:
    """One key of the run file; `old_from` and `new_from` say who wrote the values."""

    key: str
    old: Json
    new: Json
    old_from: str
    new_from: str

    @property
    def is_told(self) -> bool:
        """Not where one run lacks the key and the other has its default: the part that it belongs to is told."""
        return not (
            (self.old == ABSENT and self.new_from == DEFAULT) or (self.new == ABSENT and self.old_from == DEFAULT)
        )

    @property
    def sentence(self) -> str:
        """`loss.clip_high: 0.2 (algorithm grpo) -> 0.28 (--set)`."""
        return f"{self.key}: {_valued(self.old, self.old_from)} -> {_valued(self.new, self.new_from)}"


@dataclass(frozen=True)
class Difference:
    """Settings key by key; sentences about the maths, and about data, seed, machine and versions."""

    names: tuple[str, str]
    settings: tuple[Change, ...]
    formula: tuple[str, ...]
    circumstances: tuple[str, ...]
    same: tuple[str, ...]

    def as_data(self) -> dict[str, Json]:
        """All of it, as JSON."""
        return asdict(self)


def difference_of(first: RunDir, second: RunDir) -> Difference:
    """Compare two runs. `UserError` where a run file cannot be read."""
    compared = comparison_of([first, second])
    one, two = first.read_manifest(), second.read_manifest()
    names = (compared.names[0], compared.names[1])
    settings = tuple(
        Change(key, values[names[0]], values[names[1]], _writer(one, key), _writer(two, key))
        for key, values in compared.differences.items()
        if key not in _PLACES
    )
    formula = tuple(_formula_sentences(one.get("formula", {}), two.get("formula", {})))
    told = dict(_circumstances(one, two))
    circumstances = tuple(text for text in told.values() if text)
    same = tuple(name for name, text in told.items() if not text)
    if not one or not two:
        circumstances += (f"{' and '.join(_missing(names, one, two))} ended before a manifest was written",)
    return Difference(names, settings, formula, circumstances, same)


def print_difference(difference: Difference) -> None:
    """As a page."""
    print(printable(f"from {difference.names[0]} to {difference.names[1]}"))
    blocks = (
        ("settings", _told(difference.settings)),
        ("formulas", difference.formula),
        ("circumstances", difference.circumstances),
    )
    for title, sentences in blocks:
        if sentences:
            print(title)
            for sentence in sentences:
                print(f"  {printable(sentence)}")
    if not any(sentences for _, sentences in blocks):
        print("nothing that is recorded differs")
    elif difference.same:
        print(f"the same in both: {', '.join(difference.same)}")


def _told(changes: Sequence[Change]) -> list[str]:
    """Sentences of those that say something, and how many do not."""
    told = [change.sentence for change in changes if change.is_told]
    left = len(changes) - len(told)
    more = f"and {left} default{'s' if left > 1 else ''} of what only one of them has (--json lists them)"
    return [*told, more] if left else told


def _formula_sentences(one: Mapping[str, Json], two: Mapping[str, Json]) -> Iterator[str]:
    """Which parts of the maths are others; their options are told among the settings."""
    if one.get("normalised_by") != two.get("normalised_by"):
        old, new = one.get("normalised_by", "nothing"), two.get("normalised_by", "nothing")
        yield f"advantages were normalised by {old}, now by {new}"
    kinds = dict.fromkeys(kind for formula in (one, two) for kind in formula if kind not in _NOT_PARTS)
    for kind in kinds:
        old, new = _parts(one.get(kind)), _parts(two.get(kind))
        gone, come = [name for name in old if name not in new], [name for name in new if name not in old]
        if gone and come:
            yield f"{kind}: {_named(old, gone)} became {_named(new, come)}"
        elif gone:
            yield f"{kind}: {_named(old, gone)} is gone"
        elif come:
            yield f"{kind}: {_named(new, come)} is new"
        for name in (name for name in old if name in new and old[name] != new[name]):
            yield f"{kind}: the formula of {name} was {old[name]}, and is {new[name]}"


def _parts(choice: Json) -> dict[str, str]:
    """Name -> formula of what a manifest says about a section."""
    entries = choice if isinstance(choice, list) else [choice] if isinstance(choice, dict) else []
    return {str(entry.get("use")): str(entry.get("formula", "")) for entry in entries}


def _named(parts: Mapping[str, str], names: list[str]) -> str:
    return " and ".join(f"{name} ({parts[name]})" if parts[name] else name for name in names)


def _circumstances(one: Mapping[str, Json], two: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    """(what, sentence), the sentence empty where both are alike."""
    yield "seed", _changed("the seed", one.get("seed"), two.get("seed"))
    hashes = (one.get("data", {}), two.get("data", {}))
    for role in dict.fromkeys([*hashes[0], *hashes[1]]):
        old, new = hashes[0].get(role), hashes[1].get(role)
        label = _ROLES.get(role, role)
        yield label, "" if old == new else _other_data(label, old, new)
    yield "number of processes", _changed("the number of processes", one.get("world_size"), two.get("world_size"))
    versions = list(_version_changes(one.get("versions", {}), two.get("versions", {})))
    yield "versions", "; ".join(versions)
    yield "plugins", "; ".join(_version_changes(_plugins(one), _plugins(two)))
    yield "code", _code(one.get("git"), two.get("git"))


def _changed(what: str, old: Json, new: Json) -> str:
    return "" if old == new else f"{what} was {ABSENT if old is None else old}, now {ABSENT if new is None else new}"


def _other_data(label: str, old: Json, new: Json) -> str:
    if old is None or new is None:
        return f"only the {'second' if old is None else 'first'} has {label}"
    return f"the {label} is not the same (its hash was {old[:12]}, now {new[:12]})"


def _version_changes(old: Mapping[str, Json], new: Mapping[str, Json]) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield f"{name} {old.get(name, 'not installed')} -> {new.get(name, 'not installed')}"


def _plugins(manifest: Mapping[str, Json]) -> dict[str, str]:
    """Plugin -> version and state; those of LightRFT's own packages are told among the versions."""
    rows = manifest.get("plugins", [])
    known = manifest.get("versions", {})
    return {row["name"]: f"{row['version']} ({row['state']})" for row in rows if row["distribution"] not in known}


def _code(old: Json, new: Json) -> str:
    return "" if old == new else f"the folder's git commit was {_commit(old)}, now {_commit(new)}"


def _commit(git: Json) -> str:
    if not git:
        return "none"
    return f"{git['commit'][:12]}{' with uncommitted changes' if git.get('is_changed') else ''}"


def _missing(names: tuple[str, str], one: Mapping[str, Json], two: Mapping[str, Json]) -> list[str]:
    return [name for name, manifest in zip(names, (one, two), strict=True) if not manifest]


def _writer(manifest: Mapping[str, Json], key: str) -> str:
    """Who wrote a key's value; `default` where nobody did, nothing where the run did not record it."""
    if "origins" not in manifest:
        return ""
    origins = manifest["origins"]
    while key:
        if key in origins:
            return str(origins[key])
        key = key.rpartition(".")[0]
    return DEFAULT


def _valued(value: Json, writer: str) -> str:
    if value == ABSENT:
        return ABSENT
    shown = "none" if value is None else str(value)
    return f"{shown} ({writer})" if writer else shown
