"""`lightrft plugins` as a user meets it: in a subprocess, with plugins that are really installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lightrft_core.kinds import BY_NAME


def test_list_shows_name_kind_origin_state_and_summary(lightrft):
    done = lightrft("plugins", "list")
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert first.split() == ["NAME", "KIND", "FROM", "STATE", "SUMMARY"]
    assert any(row.split()[:5] == ["clip", "loss", "lightrft-algos", "0.1.0", "ok"] for row in rows)


def test_list_of_one_kind_shows_no_other(lightrft):
    done = lightrft("plugins", "list", "--kind", "kl")
    kinds = {row.split()[1] for row in done.stdout.splitlines()[1:]}
    assert kinds <= {"kl", "plugin"}
    assert "k3" in done.stdout


def test_an_unknown_kind_is_a_user_error_with_a_suggestion(lightrft):
    done = lightrft("plugins", "list", "--kind", "los")
    assert done.returncode == 2
    assert "there is no kind 'los'. Did you mean 'loss'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_five_broken_plugins_are_rows_with_the_reason(lightrft, plugin_site):
    plugin_site.add_broken()
    done = lightrft("plugins", "list", env={"PYTHONPATH": str(plugin_site.path)})
    assert done.returncode == 0
    rows = {row.split()[0]: row for row in done.stdout.splitlines()[1:]}
    for name, state in [("bad-import", "broken"), ("bad-hook", "broken"), ("bad-name", "broken"), ("too-new", "too")]:
        assert rows[name].split()[1:5] == ["plugin", name, "1.0", state]
    assert "the licence server is down" in rows["bad-hook"]
    clashing = [row for row in done.stdout.splitlines() if row.startswith("k2 ")]
    assert len(clashing) == 2
    assert all(" clash " in row for row in clashing)


def test_list_as_json_holds_plugins_and_components(lightrft, plugin_site):
    plugin_site.add_broken()
    done = lightrft("plugins", "list", "--json", env={"PYTHONPATH": str(plugin_site.path)})
    data = json.loads(done.stdout)
    states = {row["name"]: row["state"] for row in data["plugins"]}
    assert states["too-new"] == "too new"
    assert states["lightrft-engines"] == "ok"
    clip = next(item for item in data["components"] if (item["kind"], item["name"]) == ("loss", "clip"))
    assert (clip["plugin"], clip["state"], clip["missing"]) == ("lightrft-algos", "ok", [])


def test_show_explains_every_option(lightrft):
    done = lightrft("plugins", "show", "loss.clip")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "clip_low number; >= 0, <= 1; default 0.2" in lines
    assert "How far below 1 the ratio of new to old probability still counts." in lines
    assert "use loss: {use: clip}" in lines
    assert "paper arXiv:1707.06347" in lines


def test_show_of_an_algorithm_lists_what_it_sets(lightrft):
    done = lightrft("plugins", "show", "grpo")
    assert "sets" in done.stdout
    assert '"use": "group_norm"' in done.stdout
    assert "when" in done.stdout


def test_show_of_a_plugin_shows_all_its_components(lightrft):
    data = json.loads(lightrft("plugins", "show", "lightrft-algos", "--json").stdout)
    assert ("kl", "k3") in {(page["kind"], page["name"]) for page in data}


def test_show_of_a_broken_plugin_says_why(lightrft, plugin_site):
    plugin_site.add_broken()
    done = lightrft("plugins", "show", "bad-import", env={"PYTHONPATH": str(plugin_site.path)})
    assert done.returncode == 2
    assert "plugin bad-import 1.0 is broken: it cannot be imported" in done.stderr


def test_show_of_nothing_suggests_what_there_is(lightrft):
    done = lightrft("plugins", "show", "group_nrm")
    assert done.returncode == 2
    assert "there is no plugin or component 'group_nrm'. Did you mean 'group_norm'?" in done.stderr


def test_every_component_has_a_page(lightrft):
    names = {item["name"] for item in json.loads(lightrft("plugins", "list", "--json").stdout)["components"]}
    plugins = ("lightrft-core", "lightrft-algos", "lightrft-engines", "lightrft-rewards")
    pages = [page for name in plugins for page in json.loads(lightrft("plugins", "show", name, "--json").stdout)]
    assert {page["name"] for page in pages} == names
    assert not [page for page in pages if page.get("error")]
    assert not [(page["name"], o["name"]) for page in pages for o in page.get("options", []) if not o["doc"]]


def test_check_of_a_broken_plugin_fails(lightrft, plugin_site):
    plugin_site.add_broken()
    done = lightrft("plugins", "check", "bad-hook", env={"PYTHONPATH": str(plugin_site.path)})
    assert done.returncode == 1
    assert "FAIL  plugin.bad-hook  loads" in done.stdout
    assert "1 checks, 1 failed." in done.stdout


def test_check_of_a_wrong_component_fails_and_names_the_check(forked, tmp_path):
    (tmp_path / "wrong.py").write_text(
        "from lightrft_core import hookimpl\n"
        "from lightrft_core.data import LossOutput\n"
        "from lightrft_core.descriptors import Component\n"
        "LIGHTRFT_API = 1\n"
        "@hookimpl\n"
        "def lightrft_losses():\n"
        "    yield Component(name='wrong', target='wrong:mean', summary='Reduces, which no loss may.')\n"
        "def mean(inputs, *, config):\n"
        "    return LossOutput((inputs.logprobs_BT * inputs.advantages_BT).mean())\n"
    )
    done = forked("plugins", "check", "wrong.py")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL  loss.wrong" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", BY_NAME)
def test_a_new_project_of_each_kind_passes_the_check_untouched(forked, tmp_path, kind):
    made = forked("plugins", "new", "acme", "--kind", kind)
    assert made.returncode == 0, made.stderr
    done = forked("plugins", "check", "lightrft-acme", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kind}.acme" in done.stdout
    assert "all passed" in done.stdout
    shown = forked("plugins", "show", f"{kind}.acme", "--file", "lightrft-acme")
    assert shown.returncode == 0, shown.stderr


def test_the_readme_of_a_new_project_names_the_section_to_write(lightrft, tmp_path):
    lightrft("plugins", "new", "lightrft-my-thing", "--kind", "reward")
    readme = (tmp_path / "lightrft-my-thing/README.md").read_text()
    assert "rewards: [{use: my_thing}]" in readme


def test_new_refuses_a_folder_that_exists(lightrft, tmp_path):
    (tmp_path / "lightrft-acme").mkdir()
    done = lightrft("plugins", "new", "acme", "--kind", "loss")
    assert done.returncode == 2
    assert "lightrft-acme exists already." in done.stderr


@pytest.mark.parametrize("name", ["9lives", "a b", "core", "../up", "class"])
def test_new_refuses_a_name_that_cannot_be(lightrft, tmp_path, name):
    done = lightrft("plugins", "new", name, "--kind", "loss")
    assert done.returncode == 2
    assert not list(tmp_path.glob("lightrft-*"))


COMMAND = """
import typer
from lightrft_core import hookimpl
from lightrft_core.descriptors import Command
LIGHTRFT_API = 1
app = typer.Typer()

@app.command()
def hello(name: str, loud: bool = False):
    "Say hello."
    print(f"hello {name}" + "!" * loud)
    raise typer.Exit(7 if loud else 0)

@hookimpl
def lightrft_commands():
    yield Command(name="hello", target="MODULE:app", summary="Greets.")
"""


def test_a_plugins_command_is_in_the_help_and_takes_its_own_options(lightrft, plugin_site):
    plugin_site.add("greeter", COMMAND.replace("MODULE", "greeter"))
    env = {"PYTHONPATH": str(plugin_site.path)}
    assert "Greets." in lightrft("--help", env=env).stdout
    assert lightrft("hello", "you", env=env).stdout == "hello you\n"
    loud = lightrft("hello", "you", "--loud", env=env)
    assert (loud.stdout, loud.returncode) == ("hello you!\n", 7)
    assert "Say hello." in lightrft("hello", "--help", env=env).stdout
    assert lightrft("hello", "--bad", env=env).returncode == 2


def test_two_plugins_with_one_command_are_told_apart_by_name(lightrft, plugin_site):
    plugin_site.add("one", COMMAND.replace("MODULE", "one"))
    plugin_site.add("two", COMMAND.replace("MODULE", "two").replace("hello {", "good day {"))
    env = {"PYTHONPATH": str(plugin_site.path)}
    done = lightrft("hello", "you", env=env)
    assert done.returncode == 2
    assert "command 'hello' is offered by one and two. Write `one:hello` or `two:hello`." in done.stderr
    assert lightrft("two:hello", "you", env=env).stdout == "good day you\n"


def test_neither_help_nor_list_imports_anything_heavy():
    code = (
        "import sys; from lightrft_core.cli.main import run;"
        "codes = [run(words.split()) for words in ('--help', 'plugins list', 'plugins show clip')];"
        "assert codes == [0, 0, 0];"
        "heavy = [n for n in ('torch', 'transformers', 'vllm', 'numpy', 'safetensors') if n in sys.modules];"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_core_works_where_torch_is_absent():
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, numpy=None);"
        "from lightrft_core.cli.main import run;"
        "sys.exit(run(['--help']) + run(['plugins', 'list']) + run(['plugins', 'show', 'lightrft-algos']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "group_norm" in done.stdout
    assert "broken" not in done.stdout


def test_the_test_of_a_new_project_passes(lightrft, tmp_path):
    lightrft("plugins", "new", "acme", "--kind", "filter")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "lightrft-acme"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_new_projects_keep_the_house_style(lightrft, tmp_path):
    for kind in BY_NAME:
        lightrft("plugins", "new", "acme", "--kind", kind, "--dir", kind)
    config = Path(__file__).resolve().parents[2] / "pyproject.toml"
    for words in (["check", "--ignore", "ANN201,D103"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", words[0], "--no-cache", "--config", config, *words[1:], tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_page_fits_a_terminal(plugins):
    from lightrft_core.cli.plugin_page import pages_for, render

    (page,) = pages_for("algorithm.cpgd", plugins)
    lines = render(page, 80).splitlines()
    at = next(place for place, line in enumerate(lines) if line.startswith("  formula"))
    assert lines[at + 1].startswith(" " * 15) and len(lines[at]) <= 80
    assert " ".join(render(page, 80).split()) == " ".join(render(page).split())
