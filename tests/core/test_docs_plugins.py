"""Every block of docs/plugins.md is run, in order, in one folder."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from lightrft_core.kinds import BY_SECTION

PAGE = Path(__file__).resolve().parents[2] / "docs/plugins.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    return [text for found, text in BLOCK.findall(PAGE.read_text()) if found == language]


def named(text):
    first, _, _ = text.partition("\n")
    return first.removeprefix("# file: ")


def test_every_block_is_of_a_language_that_is_tested():
    assert {language for language, _ in BLOCK.findall(PAGE.read_text())} == {"bash", "python", "toml", "yaml"}


@pytest.mark.slow
def test_every_command_and_python_block_runs(tmp_path, forked):
    for text in blocks("python"):
        (tmp_path / named(text)).write_text(text)
    for line in [line for text in blocks("bash") for line in text.splitlines()]:
        words = shlex.split(line)
        at = words.index("lightrft")
        done = forked(*words[at + 1 :], env=dict(word.split("=", 1) for word in words[:at]))
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    for text in blocks("python"):
        done = subprocess.run([sys.executable, named(text)], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{named(text)}\n{done.stderr}"


def test_the_yaml_blocks_name_sections_that_exist():
    for text in blocks("yaml"):
        assert set(yaml.safe_load(text)) <= {*BY_SECTION, "plugins"}


def test_the_entry_point_is_what_a_new_project_has(tmp_path, lightrft):
    lightrft("plugins", "new", "acme", "--kind", "loss")
    project = tomllib.loads((tmp_path / "lightrft-acme/pyproject.toml").read_text())
    (block,) = blocks("toml")
    assert tomllib.loads(block)["project"]["entry-points"] == project["project"]["entry-points"]
