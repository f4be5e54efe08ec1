"""Writes the tables of docs/run-file.md from the code: `python scripts/write_run_file_docs.py`; a test compares."""

import re
from collections.abc import Iterator
from pathlib import Path

from lightrft_core.flag_rows import Always, Flag, Refused, Waits
from lightrft_core.flag_table import GROUPS
from lightrft_core.kinds import KINDS
from lightrft_core.resolve import CORE_SECTIONS
from lightrft_core.sections import Section
from lightrft_core.yaml_marks import to_yaml
from pydantic.fields import FieldInfo

PAGE = Path(__file__).resolve().parents[1] / "docs/run-file.md"


def core_sections() -> str:
    """A table of the options of every section that core owns, and of what all components of a kind share."""
    shared = {kind.section: kind.config_base for kind in KINDS if kind.config_base is not Section}
    lines: list[str] = []
    for name, model in (CORE_SECTIONS | shared).items():
        about = (model.__doc__ or "").splitlines()[0]
        lines += [f"### `{name}`", "", about, "", "| key | default | meaning |", "|---|---|---|"]
        lines += [_row(key, field) for key, field in model.model_fields.items()]
        lines.append("")
    return "\n".join(lines).rstrip()


def flags() -> str:
    """A table of all flags."""
    return "\n".join(_flag_lines())


def _row(key: str, field: FieldInfo) -> str:
    about = " ".join((field.description or "").split()).replace("|", "\\|")
    if field.is_required():
        return f"| `{key}` | required | {about} |"
    value = field.get_default(call_default_factory=True)
    shown = list(value) if isinstance(value, tuple) else value
    text = str(shown) if isinstance(shown, list) else to_yaml(shown).removesuffix("...\n").strip()
    return f"| `{key}` | `{text}` | {about} |"


def _flag_lines() -> Iterator[str]:
    for title, rows in GROUPS.items():
        yield from ("", f"### {title}", "", "| flag | sets | meaning |", "|---|---|---|")
        for flag in rows:
            names = ", ".join(f"`--{name}`" for name in [*flag.names.split(), *flag.off.split()])
            yield f"| {names} | {_target(flag)} | {flag.help} |"


def _target(flag: Flag) -> str:
    if isinstance(flag.to, Refused):
        return f"refused: {flag.to.why}"
    if isinstance(flag.to, Waits):
        return f"waits for {flag.to.component}"
    if isinstance(flag.to, Always):
        return f"always so: {flag.to.why}"
    keys = re.sub(r"[\w.]*\.?[\w\[\].]+", lambda key: key[0] if key[0] == "or" else f"`{key[0]}`", flag.shown_keys)
    return f"{keys} (of {flag.needs})" if flag.needs else keys


def filled(page: str) -> str:
    """The page with its tables written anew."""
    for name, text in (("sections", core_sections()), ("flags", flags().strip())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        page = before + begin + text + "\n" + end + rest.partition(end)[2]
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
