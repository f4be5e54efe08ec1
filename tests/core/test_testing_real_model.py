"""The kit on the real parts: text adapter, single strategy and embedded engine with the quickstart's model."""

import pytest
from lightrft_core.plugins import Plugins
from lightrft_core.testing import check_component
from lightrft_core.testing.toys import toy_setup

PLUGINS = Plugins.load()


def built(kind, name, setup, **options):
    component = PLUGINS.find(kind, name, where="test")
    config = PLUGINS.config_class(kind, component)(**options)
    return PLUGINS.target(component)(config, setup)


def unsound(results):
    return [result for result in results if not result.ok or result.is_skipped]


@pytest.fixture
def setup(quickstart_model, tmp_path):
    setup = toy_setup(tmp_path)
    config = PLUGINS.config_class("model", PLUGINS.find("model", "text", where="test"))
    setup.model_section = config(path=str(quickstart_model))
    setup.optim = setup.optim.model_copy(update={"lr": 1e-3})
    setup.needs = frozenset({"old_logprobs", "ref_logprobs", "entropy"})
    setup.num_optimizer_steps = 10
    setup.strategy = None
    setup.model = built("model", "text", setup, path=str(quickstart_model))
    return setup


def test_the_text_adapter_conforms(setup, quickstart_model):
    component = PLUGINS.find("model", "text", where="test")
    options = {"path": str(quickstart_model)}
    assert unsound(check_component("model", component, PLUGINS, options=options, setup=setup)) == []


def test_the_single_strategy_conforms(setup):
    component = PLUGINS.find("strategy", "single", where="test")
    assert unsound(check_component("strategy", component, PLUGINS, setup=setup)) == []


def test_the_embedded_engine_conforms(setup):
    setup.strategy = built("strategy", "single", setup)
    component = PLUGINS.find("engine", "embedded", where="test")
    assert unsound(check_component("engine", component, PLUGINS, setup=setup)) == []


def test_a_task_with_a_file_conforms(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "What is {n} + 1?", "reference": "{n + 1}"}}\n' for n in range(7)))
    component = PLUGINS.find("task", "jsonl", where="test")
    results = check_component("task", component, PLUGINS, options={"path": str(path)})
    assert unsound(results) == []
