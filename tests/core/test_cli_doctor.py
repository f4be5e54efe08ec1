"""`lightrft doctor`: what it finds, ready to paste, and exit 3 where training cannot work."""

import json
import stat
import sys

import pytest
from lightrft_core.cli.main import run


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A folder to work in, and no program on the PATH but those put there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


@pytest.fixture
def findings(bare, capsys):
    def look(*words):
        code = run(["doctor", "--json", *words])
        return code, {line["what"]: (line["state"], line["detail"]) for line in json.loads(capsys.readouterr().out)}

    return look


def with_program(folder, name, script):
    program = folder / "bin" / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_a_sound_environment_exits_with_0(findings):
    code, found = findings()
    assert code == 0
    assert found["python"][0] == "ok"
    assert sys.executable in found["python"][1]
    assert {"torch", "transformers", "safetensors", "machine", "disk", "plugin lightrft-algos"} <= set(found)
    assert "components" in found["plugin lightrft-algos"][1]


def test_the_text_has_a_line_for_each_finding(bare, capsys):
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "note", "warn"}
    assert any(line.split()[:2] == ["ok", "torch"] for line in lines)


def test_nothing_is_written(findings, bare):
    findings("--dir", str(bare / "a" / "b"))
    assert sorted(path.name for path in bare.iterdir()) == ["bin"]


def test_without_nvidia_smi_the_cpu_is_named(findings):
    _, found = findings()
    assert found["gpu"] == ("note", "none (no nvidia-smi): training runs on the CPU in fp32")


def test_gpus_that_torch_cannot_use_are_a_warning(findings, bare, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with_program(bare, "nvidia-smi", "echo 'NVIDIA H200, 143771 MiB, 570.1'")
    code, found = findings()
    assert code == 0
    assert found["gpu 0"] == ("ok", "NVIDIA H200, 143771 MiB, 570.1")
    assert found["cuda"][0] == "warn"


def test_a_broken_plugin_is_a_warning_with_its_problem(findings, plugin_site, monkeypatch):
    plugin_site.add_broken()
    monkeypatch.syspath_prepend(plugin_site.path)
    before = set(sys.modules)
    code, found = findings()
    for name in set(sys.modules) - before:
        del sys.modules[name]
    assert code == 0
    state, detail = found["plugin bad-import"]
    assert state == "warn"
    assert detail.startswith("broken: ")


def test_a_plugin_that_was_left_out_is_a_note(findings, monkeypatch):
    monkeypatch.setenv("LIGHTRFT_DISABLE", "lightrft-vlm")
    _, found = findings()
    assert found["plugin lightrft-vlm"] == ("note", "disabled: by LIGHTRFT_DISABLE")


def test_a_missing_torch_makes_the_environment_unfit(bare, lightrft, tmp_path):
    """A Python that sees core's own needs and no torch: its metadata are hidden by a finder of our own."""
    hide = tmp_path / "hide"
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\n"
        "version = metadata.version\n"
        "def hidden(name):\n"
        "    if name == 'torch':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "metadata.version = hidden\n"
    )
    done = lightrft("doctor", env={"PYTHONPATH": str(hide)})
    assert done.returncode == 3
    [line] = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert line.split(maxsplit=2) == ["fail", "torch", "not installed; pip install 'lightrft-core[all]'"]
