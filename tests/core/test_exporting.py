"""Who exports a run's checkpoints: the strategy's own exporter, or itself."""

from lightrft_core.chosen import Chosen
from lightrft_core.descriptors import Component
from lightrft_core.exporting import exporter_of
from lightrft_core.sections import Section


def test_a_sharded_run_is_exported_by_one_process_on_the_cpu(load_run, plugins):
    run_file = load_run(sets=["strategy.use=fsdp2", "strategy.precision=bf16", "strategy.ema=true"])
    found = exporter_of(run_file.strategy, plugins)
    assert found.component.name == found.use == "single"
    assert (found.config.device, found.config.precision, found.config.ema) == ("cpu", "fp32", True)


def test_a_strategy_without_an_exporter_exports_itself(plugins):
    component = Component(name="own", target="acme:Own", config="acme:Config", summary="A strategy.")
    chosen = Chosen("strategy", "own", component, Section())
    assert exporter_of(chosen, plugins) is chosen
