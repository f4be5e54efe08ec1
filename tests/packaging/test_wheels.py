"""Each wheel, built as for a release and installed into a fresh environment with what it declares and nothing else.

The environment is a new venv that holds the wheels alone; third-party dependencies are links to exactly those
distributions which the wheels' metadata asks for, found in this interpreter's environment. So nothing is downloaded,
a dependency that is not declared is missing, and no `lightrft_*` but the wheels' own can be imported.
"""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {name: ROOT / "packages" / name for name in sorted(path.name for path in (ROOT / "packages").iterdir())}
PACKAGES["lightrft-stranger"] = ROOT / "tests/plugins/lightrft-stranger"
OWN = [name for name in PACKAGES if name != "lightrft-stranger"]
pytestmark = pytest.mark.slow

REPORT = """
import json, pkgutil, sys
from importlib.util import find_spec
from lightrft_core.descriptors import Algorithm
from lightrft_core.plugins import Plugins
from lightrft_core.requirements import unmet
plugins = Plugins.load()
light = [name for name in ("torch", "transformers", "numpy") if name in sys.modules]
for offer in plugins.all_offers:
    if not isinstance(offer.descriptor, Algorithm) and not unmet(offer.descriptor.requires):
        plugins.target(offer.descriptor)
owners = ["core", "algos", "engines", "vlm", "rewards", "stranger"]
specs = {name: find_spec(f"lightrft_{name}") for name in owners}
print(json.dumps({
    "states": {row.name: row.state for row in plugins.rows},
    "offers": [[offer.kind, offer.descriptor.name] for offer in plugins.all_offers],
    "files": {name: spec.origin for name, spec in specs.items() if spec},
    "heavy_after_loading": light,
    "has_torch": find_spec("torch") is not None,
}))
"""

STRANGERS_RUN = f"""
algorithm: grpo
model: {{path: {ROOT / "recipes/quickstart-model"}}}
task: {{path: ./sums.jsonl}}
sampler: {{group_size: 4, prompts_per_step: 2, max_new_tokens: 8}}
rewards: [{{use: final_number, near_miss: 0.1}}]
loss: {{use: careful, mistake_weight: 0.25}}
run: {{name: sums, steps: 2}}
"""


@dataclass(frozen=True)
class Environment:
    """A fresh venv."""

    path: Path

    @property
    def site(self) -> Path:
        """Where the wheels are."""
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.path)}))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Its own Python, from a folder without sources."""
        command = [str(self.path / "bin/python"), "-I", *words]
        return subprocess.run(command, cwd=self.path, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """All wheels, each built in a copy of its project."""
    folder = tmp_path_factory.mktemp("wheels")
    built = {}
    for name, project in PACKAGES.items():
        copy = folder / "sources" / name
        shutil.copytree(project, copy, ignore=shutil.ignore_patterns("__pycache__", "dist", "build"))
        command = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(folder / name),
            str(copy),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        (built[name],) = (folder / name).glob("*.whl")
    return built


@pytest.fixture
def install(tmp_path, wheels):
    """Makes an environment of some of the wheels and their declared dependencies."""

    def make(*names: str) -> Environment:
        environment = Environment(tmp_path / "environment")
        venv.create(environment.path, with_pip=False, symlinks=True)
        for name in names:
            with zipfile.ZipFile(wheels[name]) as wheel:
                wheel.extractall(environment.site)
        links = tmp_path / "dependencies"
        links.mkdir()
        for name in names:
            _link_requirements(_installed(environment.site, name), links, provided=set(names))
        (environment.site / "dependencies.pth").write_text(f"{links}\n")
        return environment

    return make


def _installed(site: Path, name: str) -> Distribution:
    (info,) = site.glob(f"{name.replace('-', '_')}-*.dist-info")
    return PathDistribution(info)


def _link_requirements(dist: Distribution, links: Path, provided: set[str]) -> None:
    """Link what `dist` declares without extras, and what that declares, as far as it is installed here."""
    todo, seen = list(_requirements(dist)), set(provided)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        assert not name.startswith("lightrft"), f"{dist.name} depends on {name}, which is not in this environment"
        try:
            found = distribution(name)
        except PackageNotFoundError:  # a dependency of a dependency that this platform's build does without
            assert name not in set(_requirements(dist)), f"{name} is not installed, but {dist.name} depends on it"
            continue
        _link(found, links)
        todo += _requirements(found)


def _requirements(dist: Distribution) -> Iterator[str]:
    for text in dist.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield re.sub(r"[-_.]+", "-", requirement.name).lower()


def _link(dist: Distribution, links: Path) -> None:
    """Link a distribution's top-level files and folders; a folder that several share is linked file by file."""
    site = Path(str(dist.locate_file("")))
    for top in {file.parts[0] for file in dist.files or () if file.parts[0] != ".."} - {"__pycache__"}:
        place = links / top
        if not place.exists() and (site / top).exists():
            place.symlink_to(site / top)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_holds_its_own_package_and_nothing_else(wheels, name):
    module = name.replace("-", "_")
    names = zipfile.ZipFile(wheels[name]).namelist()
    assert {path.split("/")[0].split("-")[0] for path in names} == {module}
    assert f"{module}/plugin.py" in names
    assert not [path for path in names if "__pycache__" in path or "/tests/" in path or path.endswith(".pyc")]


@pytest.mark.parametrize("name", OWN)
def test_a_wheel_is_typed_and_names_its_entry_point(wheels, name):
    module = name.replace("-", "_")
    with zipfile.ZipFile(wheels[name]) as wheel:
        assert f"{module}/py.typed" in wheel.namelist()
        info = next(path for path in wheel.namelist() if path.endswith("entry_points.txt"))
        assert f"[lightrft]\n{name} = {module}.plugin" in wheel.read(info).decode()


def test_the_core_wheel_holds_templates_recipes_and_the_quickstart_model(wheels):
    names = zipfile.ZipFile(wheels["lightrft-core"]).namelist()
    for kind in ("loss", "engine", "command"):
        assert f"lightrft_core/templates/{kind}.py.tmpl" in names
    assert "lightrft_core/recipes/quickstart.yaml" in names
    assert "lightrft_core/recipes/quickstart-model/model.safetensors" in names


@pytest.mark.parametrize("name", OWN)
def test_each_wheel_works_alone_beside_core(install, name):
    chosen = sorted({"lightrft-core", name})
    environment = install(*chosen)
    done = environment.run("-c", REPORT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["states"] == dict.fromkeys(chosen, "ok")
    assert report["heavy_after_loading"] == []
    assert sorted(report["files"]) == sorted(item.removeprefix("lightrft-") for item in chosen)
    assert all(Path(file).is_relative_to(environment.site) for file in report["files"].values())


@pytest.mark.parametrize("name", ["lightrft-core", "lightrft-rewards"])
def test_core_and_rewards_live_without_torch(install, name):
    environment = install(*{"lightrft-core", name})
    report = json.loads(environment.run("-c", REPORT).stdout)
    assert report["has_torch"] is False
    for words in (["--help"], ["plugins", "list"], ["plugins", "show", "tracker.jsonl"], ["config", "schema"]):
        done = environment.run("-m", "lightrft_core.cli.main", *words)
        assert done.returncode == 0, done.stderr


def test_a_strangers_wheel_is_listed_beside_core_algos_and_engines(install):
    environment = install("lightrft-core", "lightrft-algos", "lightrft-engines", "lightrft-stranger")
    report = json.loads(environment.run("-c", REPORT).stdout)
    assert report["states"]["stranger"] == "ok"
    assert ["loss", "careful"] in report["offers"]
    assert ["reward", "final_number"] in report["offers"]
    assert set(report["files"]) == {"core", "algos", "engines", "stranger"}
    done = environment.run("-m", "lightrft_core.cli.main", "plugins", "check", "stranger")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loss.careful" in done.stdout
    assert "reward.final_number" in done.stdout


def test_a_strangers_loss_and_reward_train_beside_core_algos_and_engines(install):
    environment = install("lightrft-core", "lightrft-algos", "lightrft-engines", "lightrft-stranger")
    (environment.path / "sums.jsonl").write_text('{"prompt": "1+1?", "ground_truth": "2"}\n' * 4)
    (environment.path / "run.yaml").write_text(STRANGERS_RUN)
    done = environment.run("-m", "lightrft_core.cli.main", "train", "run.yaml")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (environment.path / "runs/sums/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all("reward/final_number" in line and line["reward/unscored_fraction"] == 0 for line in lines)
