"""Import the object that a descriptor names: `"package.module:Name"` or `"/absolute/file.py:Name"`.

Both forms are plain strings, so they can be sent to another process (a reward worker, another rank) and loaded there.
"""

import hashlib
import importlib
import importlib.util
import re
import sys
import threading
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_RUNNING = threading.RLock()  # a second thread must not see a module that the first is still running


def split_target(target: str) -> tuple[str, str]:
    """Module (dotted name, or path of a `.py` file) and attribute; `ValueError` for another form."""
    module, _, attribute = target.rpartition(":")
    is_module = bool(_DOTTED.fullmatch(module)) or module.endswith(".py")
    if not is_module or not _DOTTED.fullmatch(attribute):
        raise ValueError(f"{target!r} is not of the form 'package.module:Name' or '/path/file.py:Name'")
    return module, attribute


def load_object(target: str) -> Any:  # Any: whatever the target names
    """The named object. Raises `ValueError` for a malformed target, and what the import or the lookup raises."""
    module, attribute = split_target(target)
    loaded = load_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    return reduce(getattr, attribute.split("."), loaded)


def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own, once per process and path. Raises what the file raises.

    The module's name holds a hash of the path, so two files of one name never meet, and its folder is not put on
    `sys.path`: a single-file plugin is one file. `FileNotFoundError` where there is none.
    """
    with _RUNNING:
        real = path.resolve()
        name = _module_name(real)
        return sys.modules[name] if name in sys.modules else _run(real, name)


def _run(real: Path, name: str) -> ModuleType:
    if not real.is_file():
        raise FileNotFoundError(f"there is no file {real}")
    spec = importlib.util.spec_from_file_location(name, real)
    if spec is None or spec.loader is None:
        raise ImportError(f"{real} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up while it is being run
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_name(path: Path) -> str:
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    return f"lightrft_file_{digest}_" + re.sub(r"\W", "_", path.stem)
