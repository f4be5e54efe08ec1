"""What tests of several packages share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from lightrft_core.errors import Problems
from lightrft_core.flags import read_command_line
from lightrft_core.overrides import parse_set
from lightrft_core.plugins import Plugins
from lightrft_core.runfile import RunFile, open_run_file

pytest.register_assert_rewrite(*(f"tests.engines.served_{what}" for what in ("checks", "gpu_checks", "ranks")))

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "packages/lightrft-core/src/lightrft_core/recipes"
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def quickstart_model() -> Path:
    """The small model that the quickstart starts from; scripts/make_quickstart_model.py makes it."""
    return RECIPES / "quickstart-model"


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def lightrft_in() -> Callable[[Path], Run]:
    """Makes a `lightrft` that works in a given folder, for fixtures that many tests share."""

    def work_in(folder: Path) -> Run:
        def run(
            *words: str | Path, env: dict[str, str] | None = None, timeout: float = 300
        ) -> subprocess.CompletedProcess[str]:
            command: Sequence[str | Path] = [sys.executable, "-m", "lightrft_core.cli.main", *words]
            return subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **(env or {})},
                timeout=timeout,
                check=False,
            )

        return run

    return work_in


@pytest.fixture(scope="session")
def forked_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Run]]:
    """As `lightrft_in`, by forks of one process that has imported torch already: for runs by one rank.

    For what a fresh interpreter does, such as reading `sitecustomize.py` or loading little, take `lightrft`.
    """
    files = [tmp_path_factory.mktemp("forked") / name for name in ("out", "err")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forked_cli.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    requests, answers = server.stdin, server.stdout

    def work_in(folder: Path) -> Run:
        def run(
            *words: str | Path, env: dict[str, str] | None = None, timeout: int = 300
        ) -> subprocess.CompletedProcess[str]:
            for file in files:
                file.write_text("")
            request = {
                "words": [str(word) for word in words],
                "cwd": str(folder),
                "env": {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **(env or {})},
                "out": str(files[0]),
                "err": str(files[1]),
                "timeout": timeout,
            }
            print(json.dumps(request), file=requests, flush=True)
            code = int(answers.readline())
            return subprocess.CompletedProcess(words, code, *(file.read_text() for file in files))

        return run

    with server:
        yield work_in


@pytest.fixture
def forked(tmp_path: Path, forked_in: Callable[[Path], Run]) -> Run:
    """As `lightrft`, by `forked_in`."""
    return forked_in(tmp_path)


@pytest.fixture
def lightrft(tmp_path: Path, lightrft_in: Callable[[Path], Run]) -> Run:
    """Runs the command line in a subprocess, in an empty folder, as a user would."""
    return lightrft_in(tmp_path)


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist would begin with the files of most tests, and end with those of few, each a minute long."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker ends with one while the others have nothing left to do.

    Tests that need a GPU, vLLM or SGLang are skipped where there is none.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for engine in ("vllm", "sglang"):
        if find_spec(engine) is None:
            skip = pytest.mark.skip(reason=f"needs {engine}: scripts/engine_environment.sh {engine}")
            for item in items:
                if item.get_closest_marker(engine):
                    item.add_marker(skip)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


class PluginSite:
    """A folder for PYTHONPATH in which plugins are installed as distributions, for `importlib.metadata` to find."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)

    def add(self, module: str, source: str, *, name: str | None = None, version: str = "1.0") -> None:
        """Write module and metadata; the plugin and its distribution are called `name`, by default as the module."""
        title = name or module.replace("_", "-")
        (self.path / f"{module}.py").write_text(source)
        info = self.path / f"{title.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {title}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[lightrft]\n{title} = {module}\n")

    def add_broken(self) -> None:
        """The five broken plugins of tests/plugins/broken: bad-import, bad-hook, bad-name, too-new, clashing."""
        for path in sorted((ROOT / "tests/plugins/broken").glob("*.py")):
            self.add(path.stem, path.read_text())


@pytest.fixture
def plugin_site(tmp_path: Path) -> PluginSite:
    """An empty folder for plugins; pass it to a subprocess as `PYTHONPATH`, or put it on `sys.path`."""
    return PluginSite(tmp_path / "plugin-site")


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    """The installed plugins."""
    return Plugins.load()


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as a user has it: `model/config.json`, data, and a `run.yaml`."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "qwen2"}))
    for name in ("train", "test", "more"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    (tmp_path / "run.yaml").write_text(
        "algorithm: grpo\nmodel: {path: ./model}\ntask: {path: ./train.jsonl}\nrewards: [exact]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load_run(run_folder: Path, plugins: Plugins) -> Callable[..., RunFile]:
    """Resolves run.yaml, or other text under that name, with `--set` texts and flags."""

    def load(text: str | None = None, *, sets: Sequence[str] = (), flags: Sequence[str] = ()) -> RunFile:
        if text is not None:
            Path("run.yaml").write_text(text)
        parsed = read_command_line(flags)
        overrides = parsed.overrides + [parse_set(item) for item in sets]
        return open_run_file(Path("run.yaml"), overrides, plugins, parsed.errors)[0]

    return load


@pytest.fixture
def run_problems(load_run: Callable[..., RunFile]) -> Callable[..., list[str]]:
    """The sentences of everything that is wrong with it."""

    def problems(text: str | None = None, *, sets: Sequence[str] = (), flags: Sequence[str] = ()) -> list[str]:
        with pytest.raises(Problems) as caught:
            load_run(text, sets=sets, flags=flags)
        return [str(problem) for problem in caught.value.problems]

    return problems
