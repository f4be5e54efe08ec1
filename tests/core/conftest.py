"""What tests of plugins share: the source of a small plugin, and a loader that forgets its modules."""

import sys

import pytest
from lightrft_core.plugins import Plugins

HEAD = """
from lightrft_core import hookimpl
from lightrft_core.descriptors import Algorithm, Command, Component, RewardComponent
from lightrft_core.sections import LossSection
LIGHTRFT_API = 1
"""
LOSS = """
@hookimpl
def lightrft_losses():
    yield Component(name="{name}", target="{target}", summary="A loss.", {more})
"""


@pytest.fixture
def head():
    """The first lines of a plugin."""
    return HEAD


@pytest.fixture
def loss():
    """Writes the source of a plugin with one loss."""

    def source(name, target="json:dumps", more=""):
        return HEAD + LOSS.format(name=name, target=target, more=more)

    return source


@pytest.fixture
def load(plugin_site, monkeypatch):
    """Loads what is on the site; its modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(plugin_site.path)
    before = set(sys.modules)

    def run(files=(), **environ):
        return Plugins.load(files, environ={f"LIGHTRFT_{key}": value for key, value in environ.items()})

    yield run
    for name in set(sys.modules) - before:
        if str(plugin_site.path.parent) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
