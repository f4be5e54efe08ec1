"""Plugins named by path: single files and project folders."""

import subprocess
import sys

import pytest
from lightrft_core.descriptors import Component
from lightrft_core.errors import UserError
from lightrft_core.plugins import State
from lightrft_core.sections import Section


def row_of(plugins, name):
    row = plugins.row(name)
    assert row is not None
    return row


def test_a_single_file_plugin_offers_components_of_its_own_file(load, tmp_path, loss):
    file = tmp_path / "mine.py"
    file.write_text(
        loss("mine_loss", target="mine:compute", more="config='mine:Options'")
        + "\nclass Options(LossSection):\n    '''Options.'''\n    power: int = 2\n    '''A power.'''\n"
        + "\ndef compute(inputs, *, config):\n    return inputs ** config.power\n"
    )
    plugins = load([file])
    component = plugins.find("loss", "mine:mine_loss", where="run.yaml: loss")
    assert isinstance(component, Component)
    config = plugins.config_class("loss", component)()
    assert isinstance(config, Section)
    assert plugins.target(component)(3, config=config) == 9
    assert component.target == f"{file}:compute"


def test_a_single_file_plugin_may_name_a_file_beside_it(load, tmp_path, loss):
    (tmp_path / "other.py").write_text("def compute(): return 'other'")
    (tmp_path / "mine.py").write_text(loss("mine_loss", target="./other.py:compute"))
    plugins = load([tmp_path / "mine.py"])
    assert plugins.target(plugins.find("loss", "mine_loss", where="here"))() == "other"


def test_a_target_in_a_single_file_resolves_in_another_process(load, tmp_path, loss):
    (tmp_path / "mine.py").write_text(loss("mine_loss", target="mine:compute") + "\ndef compute(): return 'hello'\n")
    plugins = load([tmp_path / "mine.py"])
    target = plugins.find("loss", "mine_loss", where="here").target
    code = f"from lightrft_core.loading import load_object; print(load_object({target!r})())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/").stdout == "hello\n"


def test_two_files_of_one_name_in_two_folders_never_meet(tmp_path):
    from lightrft_core.loading import load_object

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"WHO = '{folder}'")
    assert [load_object(f"{tmp_path}/{folder}/same.py:WHO") for folder in ("a", "b")] == ["a", "b"]


def test_a_file_of_plain_functions_is_told_where_it_belongs(load, tmp_path):
    (tmp_path / "mine.py").write_text("LIGHTRFT_API = 1\ndef reward(response): return 1.0\n")
    row = row_of(load([tmp_path / "mine.py"]), "mine")
    assert row.state is State.BROKEN
    assert "a plain reward function needs no entry in `plugins`" in row.problem


def test_a_missing_plugin_file_is_a_user_error(load, tmp_path):
    with pytest.raises(UserError, match=r"there is no .*nothing\.py\. Name a \.py file, or a folder"):
        load([tmp_path / "nothing.py"])


def test_a_project_folder_takes_the_place_of_the_installed_plugin(load, plugin_site, tmp_path, loss):
    plugin_site.add("acme", loss("installed_loss"))
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "pyproject.toml").write_text(
        '[project]\nname = "acme"\nversion = "9"\n[project.entry-points.lightrft]\nacme = "acme_from_folder"\n'
    )
    (project / "src/acme_from_folder.py").write_text(loss("folder_loss"))
    plugins = load([project])
    states = [(row.version, row.state) for row in plugins.rows if row.name == "acme"]
    assert sorted(states) == [("1.0", State.DISABLED), ("9", State.OK)]
    assert plugins.find("loss", "folder_loss", where="here").name == "folder_loss"
