"""The kit on the real parts: text adapter, single strategy and embedded engine with the quickstart's model."""

import copy
from dataclasses import replace

import pytest
from lightrft_core.descriptors import Component
from lightrft_core.plugins import Plugins
from lightrft_core.testing import check_component
from lightrft_core.testing.toys import toy_setup
from lightrft_engines.embedded import EmbeddedEngine

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


class KeepsOldWeights(EmbeddedEngine):
    """Tells the fingerprint of the trained weights, and generates with those that it started with."""

    def __init__(self, config, setup):
        super().__init__(config, setup)
        self._decoder.module = copy.deepcopy(self._module)


class DrawsWhereGreedy(EmbeddedEngine):
    """Takes some token at temperature 0, the same for every seed."""

    def generate(self, requests):
        if requests[0].sampling.temperature == 0:
            drawn = replace(requests[0].sampling, temperature=3.0)
            requests = [replace(one, sampling=drawn, seeds=(5,) * len(one.seeds)) for one in requests]
        return super().generate(requests)


@pytest.mark.parametrize(
    ("wrong", "found_by"),
    [
        (KeepsOldWeights, "a step of the trainer is served"),
        (DrawsWhereGreedy, "greedy takes the trainers likeliest token"),
    ],
)
def test_an_engine_that_is_not_the_trainers_policy_is_found(setup, wrong, found_by):
    setup.strategy = built("strategy", "single", setup)
    config = "lightrft_engines.embedded_config:EmbeddedConfig"
    component = Component(name="wrong", target=f"{__file__}:{wrong.__name__}", config=config, summary="Wrong.")
    assert found_by in [
        result.name for result in check_component("engine", component, PLUGINS, setup=setup) if not result.ok
    ]


def test_a_task_with_a_file_conforms(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "What is {n} + 1?", "reference": "{n + 1}"}}\n' for n in range(7)))
    component = PLUGINS.find("task", "jsonl", where="test")
    results = check_component("task", component, PLUGINS, options={"path": str(path)})
    assert unsound(results) == []
