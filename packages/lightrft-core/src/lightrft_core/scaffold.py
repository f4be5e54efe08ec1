"""`lightrft plugins new`: a project that adds one component, written from the text files in `templates/`.

Each kind has one small, real implementation to change; the project around it is the same for all.
"""

import keyword
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from lightrft_core.errors import UserError
from lightrft_core.kinds import BY_NAME
from lightrft_core.plugin_sources import BUILT_IN

WHERE = "lightrft plugins new"


@dataclass(frozen=True, slots=True)
class Sketch:
    """What the templates of a kind need to know. `target` and `config` name what the implementation defines."""

    summary: str
    target: str = ""
    has_config: bool = True
    config_module: str = "$kind"
    fields: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()


_TORCH = ("torch",)
SKETCHES = {
    "algorithm": Sketch(
        "Centred rewards, a clipped ratio, no KL.",
        has_config=False,
        fields=(
            "sections={",
            '    "advantage": {"use": "group_norm", "std": "none"},',
            '    "loss": {"use": "clip", "clip_high": 0.28, "aggregation": "token_mean"},',
            "},",
            'when="A place to start from.",',
        ),
        dependencies=("lightrft-algos",),
    ),
    "task": Sketch("Sums of two numbers, made on the spot.", "${title}Task"),
    "sampler": Sketch("Completions that may grow longer as training goes on.", "${title}Sampler"),
    "engine": Sketch(
        "Generates one token at a time, plainly.",
        "${title}Engine",
        config_module="config",
        fields=('provides=frozenset({"logprobs"}),',),
        dependencies=_TORCH,
    ),
    "reward": Sketch("Short answers score higher.", "${title}Reward"),
    "shaper": Sketch("Squashes rewards softly into a band.", "${title}Shaper"),
    "filter": Sketch("Keeps groups that are neither too easy nor too hard.", "$name"),
    "advantage": Sketch(
        "A reward against the mean of its siblings'.", "$name", fields=('formula="A_i = R_i - mean_g",',)
    ),
    "kl": Sketch(
        "Half the squared log-ratio.",
        "$name",
        fields=('needs=frozenset({"ref_logprobs"}),', 'formula="(log p - log ref)^2 / 2",'),
    ),
    "loss": Sketch(
        "REINFORCE: likelihood weighed by the advantage.",
        "$name",
        fields=('provides=frozenset({"zero_without_advantage"}),', 'formula="L_t = -A_t log p_t",'),
    ),
    "selector": Sketch("Trains only the start of each completion.", "$name"),
    "correction": Sketch(
        "Leaves out tokens on which engine and trainer disagree.",
        "$name",
        fields=('needs=frozenset({"old_logprobs"}),', 'formula="keep t if |log p_trainer - log p_engine| <= limit",'),
    ),
    "strategy": Sketch(
        "Gradient descent with momentum on one device.",
        "${title}Strategy",
        config_module="config",
        fields=('provides=frozenset({"old_logprobs", "ref_logprobs", "entropy"}),',),
        dependencies=("lightrft-engines", "safetensors", "torch"),
    ),
    "model": Sketch(
        "Text models that are told how to answer.",
        "${title}Model",
        config_module="config",
        fields=('model_types=("*",),',),
        dependencies=("lightrft-engines",),
    ),
    "patch": Sketch(
        "Freezes the embeddings.", "$name", has_config=False, fields=('model_types=("*",),',), dependencies=_TORCH
    ),
    "tracker": Sketch("Metrics as a CSV file in the run's folder.", "${title}Tracker"),
    "callback": Sketch("Warns when the reward has not risen for a while.", "${title}Callback"),
    "command": Sketch("Lists the runs that take much disk space.", "app", has_config=False),
}


def write_project(name: str, kind: str, parent: Path) -> Path:
    """Write the folder `lightrft-NAME` into `parent`, and return it. Raises `UserError` for a bad or taken name."""
    short = _short_name(name)
    project = parent / f"lightrft-{short}"
    if project.exists():
        raise UserError(f"{project} exists already.", where=WHERE, hint="Choose another name or --dir, or remove it.")
    values = _values(short, kind)
    package = project / "src" / values["module"]
    templates = {
        project / "pyproject.toml": "pyproject.toml",
        project / "README.md": "README.md",
        package / "plugin.py": "plugin.py",
        project / "tests" / f"test_{values['module']}.py": "test.py",
    }
    if SKETCHES[kind].target:
        templates[package / f"{kind}.py"] = f"{kind}.py"
    if SKETCHES[kind].config_module != "$kind":
        templates[package / "config.py"] = f"{kind}_config.py"
    texts = {path: _fill(template, values) for path, template in templates.items()}
    texts |= {package / "__init__.py": f'"""{values["summary"]}"""\n', package / "py.typed": ""}
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return project


def _short_name(name: str) -> str:
    """`acme` of `acme` or `lightrft-acme`."""
    short = name.lower().replace("_", "-").removeprefix("lightrft-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", short):
        hint = "Use letters, digits and '-', starting with a letter, such as acme."
        raise UserError(f"{name!r} cannot name a plugin.", where=WHERE, hint=hint)
    if f"lightrft-{short}" in BUILT_IN or keyword.iskeyword(short):
        raise UserError(f"the name {name!r} is taken.", where=WHERE, hint="Choose another, such as acme.")
    return short


def _values(short: str, kind: str) -> dict[str, str]:
    """What the templates' placeholders stand for."""
    name = short.replace("-", "_")
    values = {
        "kind": kind,
        "name": name,
        "plugin": short,
        "title": "".join(part.capitalize() for part in short.split("-")),
        "distribution": f"lightrft-{short}",
        "module": f"lightrft_{name}",
        "hook": BY_NAME[kind].hook,
        "descriptor": BY_NAME[kind].descriptor.__name__,
    }
    sketch = SKETCHES[kind]
    values["summary"] = sketch.summary
    values["dependencies"] = ", ".join(f'"{item}"' for item in ("lightrft-core", *sketch.dependencies))
    values["fields"] = "\n".join(f"        {line}" for line in _field_lines(sketch, values))
    values["use"] = _use(kind, name)
    return values


def _field_lines(sketch: Sketch, values: dict[str, str]) -> list[str]:
    lines = []
    if sketch.target:
        lines.append(Template(f'target="$module.$kind:{sketch.target}",').substitute(values))
    if sketch.target and sketch.has_config:
        lines.append(Template(f'config="$module.{sketch.config_module}:${{title}}Config",').substitute(values))
    return [*lines, *sketch.fields]


def _use(kind: str, name: str) -> str:
    """How to choose the component, for the README."""
    row = BY_NAME[kind]
    if kind == "algorithm":
        return f"algorithm: {name}"
    if kind == "command":
        return f"# nothing to write: call `lightrft {name}`"
    if kind == "patch":
        return f"# nothing to write: it applies to all models that it matches; `patches_off: [{name}]` leaves it out"
    return f"{row.section}: [{{use: {name}}}]" if row.count == "many" else f"{row.section}: {{use: {name}}}"


def _fill(template: str, values: dict[str, str]) -> str:
    text = files("lightrft_core").joinpath("templates", f"{template}.tmpl").read_text(encoding="utf-8")
    return Template(text).substitute(values)
