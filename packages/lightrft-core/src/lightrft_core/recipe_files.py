"""Finding a run file: by its path, or a recipe that comes with LightRFT by its name."""

from pathlib import Path

from lightrft_core.errors import UserError
from lightrft_core.suggest import nearest

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(name_or_path: str) -> Path:
    """An existing file, or a recipe that comes with LightRFT by its name. `UserError` with the nearest name."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    names = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    wanted = path.stem if path.suffix in (".yaml", ".yml") else name_or_path
    if name_or_path in names:
        return RECIPES / f"{name_or_path}.yaml"
    if path.is_dir():
        hint = f"Resume a run with `lightrft train --resume {name_or_path}`."
        raise UserError("is a folder, not a run file.", where=name_or_path, hint=hint)
    beside = [str(file) for file in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
    near = nearest(wanted, names, limit=1) or nearest(name_or_path, beside, limit=1)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    hint = f"{guess}Recipes that come with LightRFT: {', '.join(names) or 'none'}."
    raise UserError("no such run file or recipe.", where=name_or_path, hint=hint)


def shown(path: Path) -> str:
    """A file's name in messages: short where it can be."""
    for folder, prefix in ((RECIPES, "recipes/"), (Path.cwd(), "")):
        if path.is_absolute() and path.is_relative_to(folder):
            return f"{prefix}{path.relative_to(folder)}"
    return str(path)
