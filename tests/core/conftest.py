"""A folder as a user has it (model, data, run file), and the installed plugins."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lightrft_core.errors import Problems
from lightrft_core.flags import read_command_line
from lightrft_core.overrides import parse_set
from lightrft_core.plugins import Plugins
from lightrft_core.runfile import RunFile, open_run_file

MINIMAL = """\
algorithm: grpo
model:
  path: ./model
task:
  path: ./train.jsonl
rewards: [exact]
"""


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    """The installed plugins."""
    return Plugins.load()


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `model/config.json`, `train.jsonl`, `test.jsonl`, `run.yaml`."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "qwen2"}))
    for name in ("train", "test", "more"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    (tmp_path / "run.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load(run_folder: Path, plugins: Plugins) -> Callable[..., RunFile]:
    """Loads run.yaml (or other text) with `--set` texts and flags."""

    def load(text: str | None = None, *, sets: tuple[str, ...] = (), flags: tuple[str, ...] = ()) -> RunFile:
        if text is not None:
            Path("run.yaml").write_text(text)
        parsed = read_command_line(flags)
        overrides = parsed.overrides + [parse_set(item) for item in sets]
        return open_run_file(Path("run.yaml"), overrides, plugins, parsed.errors)[0]

    return load


@pytest.fixture
def problems(load: Callable[..., RunFile]) -> Callable[..., list[str]]:
    """The sentences of everything that is wrong."""

    def problems(
        text: str | None = None, *, sets: tuple[str, ...] = (), flags: tuple[str, ...] = ()
    ) -> list[str]:
        with pytest.raises(Problems) as caught:
            load(text, sets=sets, flags=flags)
        return [str(problem) for problem in caught.value.problems]

    return problems
