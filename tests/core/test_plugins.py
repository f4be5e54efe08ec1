"""The plugin manager: states, guards, clashes, requirements, and the light rule. Plugins here are really installed."""

import json
import logging
import os
import subprocess
import sys

import pytest
from lightrft_core.errors import UserError
from lightrft_core.plugins import State
from lightrft_core.sections import LossSection

YIELD = "@hookimpl\ndef lightrft_losses():\n    yield Component(name={}, summary='A loss.')\n"


def row_of(plugins, name):
    row = plugins.row(name)
    assert row is not None
    return row


def test_lightrfts_own_plugins_load_and_come_first(load, plugin_site, loss):
    plugin_site.add("aardvark", loss("aardvark"))
    plugins = load()
    states = {row.name: row.state for row in plugins.rows}
    own = ["lightrft-algos", "lightrft-core", "lightrft-engines", "lightrft-rewards", "lightrft-vlm"]
    assert list(states) == [*own, "aardvark"]
    assert set(states.values()) == {State.OK}


def test_a_good_plugin_is_listed_with_version_and_components(load, plugin_site, loss):
    plugin_site.add("acme", loss("acme_loss"), version="2.5")
    row = row_of(load(), "acme")
    assert (row.state, row.version, row.components) == (State.OK, "2.5", (("loss", "acme_loss"),))


def test_the_five_broken_plugins_are_rows_with_a_reason(load, plugin_site):
    plugin_site.add_broken()
    plugins = load()
    found = {row.name: (row.state, row.problem) for row in plugins.rows if not row.distribution.startswith("lightrft-")}
    assert {name: state for name, (state, _) in found.items()} == {
        "bad-import": State.BROKEN,
        "bad-hook": State.BROKEN,
        "bad-name": State.BROKEN,
        "too-new": State.TOO_NEW,
        "clashing": State.CLASH,
    }
    assert "No module named 'a_package_that_nobody_has'" in found["bad-import"][1]
    assert "bad_import.py:3" in found["bad-import"][1]
    assert "lightrft_losses failed: RuntimeError: the licence server is down" in found["bad-hook"][1]
    assert "no hook 'lightrft_looses'. Did you mean 'lightrft_losses'?" in found["bad-name"][1]
    assert "API level 99 and this lightrft-core has 1" in found["too-new"][1]
    assert found["clashing"][1] == "kl 'k2' is also offered by lightrft-algos"


def test_broken_plugins_leave_the_others_usable(load, plugin_site):
    plugin_site.add_broken()
    plugins = load()
    assert plugins.find("loss", "clip", where="run.yaml: loss").name == "clip"
    assert plugins.find("algorithm", "grpo", where="run.yaml: algorithm").name == "grpo"


def test_every_bad_plugin_is_one_warning(load, plugin_site, caplog):
    plugin_site.add_broken()
    with caplog.at_level(logging.WARNING):
        load()
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 5
    assert all("\n" not in text for text in texts)
    assert any(text.startswith("plugin too-new 1.0 is too new: ") for text in texts)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("LIGHTRFT_API = None", "sets no LIGHTRFT_API; add the line `LIGHTRFT_API = 1`"),
        ("LIGHTRFT_API = '1'", "sets LIGHTRFT_API = '1'"),
        ("raise SystemExit(3)", "it cannot be imported: SystemExit: 3"),
        ("def (", "SyntaxError"),
        ("@hookimpl\ndef lightrft_losses():\n    return None", "lightrft_losses returned None; yield Component"),
        ("@hookimpl\ndef lightrft_losses():\n    yield 'clip'", "lightrft_losses yielded a str, not a Component"),
        (
            "@hookimpl\ndef lightrft_rewards():\n    yield Component(name='a', target='a:b', summary='A.')",
            "lightrft_rewards yielded a Component, not a RewardComponent",
        ),
        ("@hookimpl\ndef lightrft_losses(config):\n    yield config", "cannot be registered: PluginValidationError"),
        ("@hookimpl(wrapper=True)\ndef lightrft_losses():\n    yield", "lightrft_losses is a wrapper"),
        ("def lightrft_losses():\n    yield", "lightrft_losses is not marked with @hookimpl"),
        ("@hookimpl\ndef losses():\n    yield", "no hook 'losses'. Did you mean 'lightrft_losses'?"),
        (YIELD.format("'acme', target='nowhere'"), "'nowhere' is not of the form 'package.module:Name'"),
        (YIELD.format("'a b', target='a:b'"), "a name is made of letters"),
        (YIELD.format("'acme', target='a:b', needs='logprobs'"), "`needs` must hold words"),
        (YIELD.format("'acme', target='a:b', requires=('vllm >> 3',)"), "which is no requirement such as 'vllm>=0.28'"),
        (YIELD.format("'acme', target='a:b'") + YIELD.format("'acme', target='a:b'").splitlines()[2], "yielded twice"),
    ],
)  # fmt: skip
def test_a_fault_becomes_a_broken_row(load, plugin_site, head, body, problem):
    plugin_site.add("acme", head + body)
    row = row_of(load(), "acme")
    assert row.state is State.BROKEN
    assert problem in row.problem
    assert "\n" not in row.problem


def test_an_api_level_below_the_oldest_supported_is_outdated(load, plugin_site):
    plugin_site.add("acme", "LIGHTRFT_API = 0")
    row = row_of(load(), "acme")
    assert row.state is State.OUTDATED
    assert "install a newer version" in row.problem


def test_a_hook_that_raises_while_iterated_takes_its_whole_plugin_out(load, plugin_site, loss):
    more = (
        "\n@hookimpl\ndef lightrft_tasks():\n    yield Component(name='fine', target='a:b', summary='A.')\n    1 / 0\n"
    )
    plugin_site.add("acme", loss("acme_loss") + more)
    plugins = load()
    assert row_of(plugins, "acme").components == (("task", "fine"), ("loss", "acme_loss"))
    assert "acme_loss" not in {offer.descriptor.name for offer in plugins.offers("loss")}
    with pytest.raises(UserError, match="ZeroDivisionError"):
        plugins.find("loss", "acme_loss", where="run.yaml: loss")


def test_an_unknown_name_is_one_line_with_a_suggestion(load):
    with pytest.raises(UserError) as caught:
        load().find("loss", "clpi", where="run.yaml: loss.use")
    text = str(caught.value)
    assert text.startswith("run.yaml: loss.use: no loss 'clpi'. Did you mean 'clip'? Installed: ")
    assert "\n" not in text


def test_a_component_of_a_broken_plugin_says_why(load, plugin_site):
    plugin_site.add_broken()
    with pytest.raises(UserError) as caught:
        load().find("loss", "bad_hook_loss", where="run.yaml: loss")
    text = str(caught.value)
    assert text.startswith("run.yaml: loss: loss 'bad_hook_loss' cannot be used, because plugin bad-hook 1.0 is broken")
    assert "the licence server is down" in text
    assert text.endswith("Update or repair that plugin, or choose another component.")
    assert "\n" not in text


@pytest.mark.parametrize("plugin", ["bad-import", "bad-hook", "bad-name", "too-new"])
def test_naming_a_bad_plugin_says_what_is_wrong_with_it(load, plugin_site, plugin):
    plugin_site.add_broken()
    with pytest.raises(UserError, match=f"because plugin {plugin} 1.0 is (broken|too new)"):
        load().find("loss", f"{plugin}:anything", where="run.yaml: loss")


def test_an_unknown_name_points_at_a_plugin_that_failed_early(load, plugin_site):
    plugin_site.add("acme", "import a_package_that_nobody_has")
    with pytest.raises(UserError, match=r"It may be in plugin acme 1.0 is broken: it cannot be imported"):
        load().find("loss", "zzzzzzz", where="run.yaml: loss")


def test_a_clash_names_both_plugins_and_how_to_choose(load, plugin_site, loss):
    plugin_site.add("one", loss("twin"))
    plugin_site.add("two", loss("twin", target="json:loads"))
    plugins = load()
    with pytest.raises(UserError) as caught:
        plugins.find("loss", "twin", where="run.yaml: loss")
    assert str(caught.value) == (
        "run.yaml: loss: loss 'twin' is offered by one and two. Write `one:twin` or `two:twin`."
    )
    found = plugins.find("loss", "two:twin", where="run.yaml: loss")
    assert plugins.target(found) is json.loads


def test_a_clash_leaves_the_other_components_of_both_alone(load, plugin_site):
    plugin_site.add_broken()
    plugins = load()
    assert row_of(plugins, "lightrft-algos").state is State.CLASH
    assert plugins.find("kl", "k3", where="here").name == "k3"


def test_one_name_may_belong_to_two_kinds(load, plugin_site, loss):
    kl = YIELD.replace("losses", "kls").format("'same', target='a:b'")
    plugin_site.add("acme", loss("same") + kl)
    assert row_of(load(), "acme").state is State.OK


def test_two_distributions_with_one_plugin_name_are_a_clash_before_import(load, plugin_site, loss):
    plugin_site.add("first", loss("first_loss"))
    plugin_site.add("second", "raise RuntimeError('never imported')")
    info = next(plugin_site.path.glob("second-*.dist-info"))
    (info / "entry_points.txt").write_text("[lightrft]\nfirst = second\n")
    rows = [row for row in load().rows if row.name == "first"]
    assert [row.state for row in rows] == [State.OK, State.CLASH]
    assert "LIGHTRFT_DISABLE=first" in rows[1].problem


def test_disabling_works_before_import(load, plugin_site):
    plugin_site.add("acme", "import builtins; builtins.acme_was_imported = True")
    row = row_of(load(DISABLE="other, acme"), "acme")
    assert (row.state, row.problem) == (State.DISABLED, "by LIGHTRFT_DISABLE")
    assert "acme" not in sys.modules


def test_disabling_everything_keeps_lightrfts_own(load, plugin_site, loss):
    plugin_site.add("acme", loss("acme_loss"))
    states = {row.name: row.state for row in load(DISABLE="*").rows}
    assert states.pop("acme") is State.DISABLED
    assert set(states.values()) == {State.OK}


def test_disabling_a_plugin_that_is_not_there_is_a_warning(load, caplog):
    load(DISABLE="acmee")
    assert "LIGHTRFT_DISABLE names 'acmee', which is no plugin here" in caplog.text


def test_a_component_of_a_disabled_plugin_says_so(load, plugin_site, loss):
    plugin_site.add("acme", loss("acme_loss"))
    with pytest.raises(UserError, match=r"plugin acme 1.0 is disabled: by LIGHTRFT_DISABLE"):
        load(DISABLE="acme").find("loss", "acme:acme_loss", where="run.yaml: loss")


@pytest.mark.parametrize("name", ["bad_import", "too_new", "clashing"])
def test_strict_raises_on_a_bad_plugin(load, plugin_site, name):
    plugin_site.add_broken()
    others = ",".join({"bad-import", "bad-hook", "bad-name", "too-new", "clashing"} - {name.replace("_", "-")})
    with pytest.raises(UserError, match=name.replace("_", "-")):
        load(STRICT="1", DISABLE=others)


def test_strict_keeps_the_cause(load, plugin_site, head):
    plugin_site.add("acme", head + "1 / 0")
    with pytest.raises(UserError) as caught:
        load(STRICT="1")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_trace_prints_every_hook_call_to_stderr(load, plugin_site, capsys, loss):
    plugin_site.add("acme", loss("acme_loss"))
    load(TRACE="1")
    captured = capsys.readouterr()
    assert "lightrft: acme: lightrft_losses() -> acme_loss (" in captured.err
    assert "lightrft: lightrft-algos: lightrft_kls() -> k1, k2, k3" in captured.err
    assert captured.out == ""


def test_a_target_that_cannot_be_imported_names_plugin_and_cause(load, plugin_site, loss):
    plugin_site.add("acme", loss("acme_loss", target="a_module_that_nobody_has:loss"))
    plugins = load()
    component = plugins.find("loss", "acme_loss", where="here")
    with pytest.raises(UserError) as caught:
        plugins.target(component)
    text = str(caught.value)
    assert text.startswith("plugin acme 1.0: 'acme_loss' cannot be loaded from a_module_that_nobody_has:loss: ")
    assert "Install the package that holds 'a_module_that_nobody_has'" in text


def test_the_config_class_is_the_components_own_or_its_kinds(load, plugin_site, loss):
    own = "\nclass Own(LossSection):\n    '''Options.'''\n"
    plugin_site.add("acme", loss("with_options", more="config='acme:Own'") + own)
    plugin_site.add("bare", loss("without_options"))
    plugins = load()
    found = plugins.config_class("loss", plugins.find("loss", "with_options", where="here"))
    assert found.__name__ == "Own"
    assert issubclass(found, LossSection)
    assert plugins.config_class("loss", plugins.find("loss", "without_options", where="here")) is LossSection


def test_a_config_that_is_no_section_of_its_kind_is_the_plugins_fault(load, plugin_site, loss):
    plugin_site.add("acme", loss("acme_loss", more="config='json:JSONDecoder'"))
    plugins = load()
    with pytest.raises(UserError, match=r"plugin acme 1.0: the options of loss 'acme_loss' .* must extend LossSection"):
        plugins.config_class("loss", plugins.find("loss", "acme_loss", where="here"))


def test_loading_plugins_imports_nothing_heavy():
    code = (
        "import sys; from lightrft_core.plugins import Plugins; plugins = Plugins.load();"
        "assert len(plugins.rows) >= 5, plugins.rows;"
        "print([name for name in ('torch', 'transformers', 'vllm', 'numpy', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout == "[]\n"


def test_reading_every_components_options_imports_nothing_heavy():
    code = (
        "import sys; from lightrft_core.plugins import Plugins; from lightrft_core.descriptors import Component;"
        "plugins = Plugins.load(); loaded = "
        "[plugins.config_class(o.kind, o.descriptor) for o in plugins.all_offers"
        " if isinstance(o.descriptor, Component)]; assert len(loaded) > 10;"
        "print([name for name in ('torch', 'transformers', 'vllm', 'numpy', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
