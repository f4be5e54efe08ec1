"""What a component requires is asked of package metadata, and concerns that component alone."""

from importlib.util import find_spec

import pytest
from lightrft_core.errors import UserError
from lightrft_core.plugins import State

KL = "@hookimpl\ndef lightrft_kls():\n    yield Component(name='plain', target='a:b', summary='A.')\n"


def test_an_unmet_requirement_concerns_the_component_not_the_plugin(load, plugin_site, loss):
    kl = KL
    source = loss("heavy", more="requires=('nobody-has-this>=3',)") + kl
    plugin_site.add("acme", source)
    plugins = load()
    assert {row.name: row.state for row in plugins.rows}["acme"] is State.OK
    assert plugins.find("kl", "plain", where="here").name == "plain"
    with pytest.raises(UserError) as caught:
        plugins.find("loss", "heavy", where="run.yaml: loss")
    text = str(caught.value)
    assert "loss 'heavy' of plugin acme needs nobody-has-this>=3 (not installed)" in text
    assert "`pip install 'nobody-has-this>=3'`" in text


def test_a_requirement_of_another_version_says_what_is_installed(load, plugin_site, loss):
    plugin_site.add("acme", loss("heavy", more="requires=('pluggy>=900',)"))
    with pytest.raises(UserError, match=r"needs pluggy>=900 \(version 1\.\d+\.\d+ is installed\)"):
        load().find("loss", "heavy", where="run.yaml: loss")


def test_a_requirement_whose_marker_does_not_apply_is_met(load, plugin_site, loss):
    plugin_site.add("acme", loss("light", more="requires=('nobody-has-this; python_version < \"3\"',)"))
    assert load().find("loss", "light", where="here").name == "light"


def test_a_requirement_with_alternatives_is_met_by_any_of_them(load, plugin_site, loss):
    plugin_site.add("acme", loss("light", more="requires=('nobody-has-this>=3 | pluggy>=1',)"))
    assert load().find("loss", "light", where="here").name == "light"


def test_of_alternatives_none_of_which_is_met_the_first_is_to_be_installed(load, plugin_site, loss):
    plugin_site.add("acme", loss("heavy", more="requires=('nobody-has-this>=3 | nor-this>=1',)"))
    with pytest.raises(UserError) as caught:
        load().find("loss", "heavy", where="here")
    assert "needs nobody-has-this>=3 (not installed)" in str(caught.value)
    assert caught.value.hint == "`pip install 'nobody-has-this>=3'`."


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_where_the_distribution_has_an_extra_for_it_that_is_to_be_installed(plugins):
    with pytest.raises(UserError) as caught:
        plugins.find("engine", "vllm", where="engine")
    assert "needs vllm>=0.32 (not installed)" in str(caught.value)
    assert caught.value.hint == "`pip install 'lightrft-engines[vllm]'`."
