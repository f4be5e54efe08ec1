"""What engines take beside the trainer."""

from lightrft_core.sections import Section
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.estimate.census import Census, Weight
from lightrft_engines.estimate.engines import engine_of
from lightrft_engines.estimate.memory import Memory
from lightrft_engines.estimate.target import Target
from lightrft_engines.sglang_engine.config import SglangConfig
from lightrft_engines.vllm_engine.config import VllmConfig

PLAIN = Census((Weight((10, 100), "blocks", 0, True),))
WEIGHTS = 2000
GPU = Target("cuda", 2, 100_000)


def engine(config, target=GPU, *, in_place=False):
    return engine_of(config, PLAIN, 2, target, in_place=in_place)


def test_the_embedded_engine_has_a_copy_only_where_it_cannot_have_the_policy():
    assert engine(EmbeddedConfig(), in_place=True).asleep == Memory()
    assert engine(EmbeddedConfig()).asleep == Memory(engine=WEIGHTS)


def test_rounded_layers_are_a_copy_in_any_case_and_take_a_byte_an_entry():
    rounded = EmbeddedConfig(quantization="int8")
    census = Census(
        (Weight((10, 100), "blocks", 0, True), Weight((30,), "blocks", 0, True), Weight((5, 7), "head", None, True))
    )
    found = [engine_of(rounded, census, 2, GPU, in_place=in_place).awake.engine for in_place in (True, False)]
    assert found == [1000 + 40, 1000 + 40 + 65 * 2]


def test_vllm_takes_its_share_of_the_gpu_and_gives_it_back_where_it_sleeps():
    found = engine(VllmConfig(memory_fraction=0.3))
    assert found.awake == found.asleep == Memory(engine=WEIGHTS, cache=30_000 - WEIGHTS)
    assert engine(VllmConfig(sleep=True)).asleep == Memory()
    assert engine(VllmConfig(sleep=True, sleep_level=1)).asleep == Memory(host=WEIGHTS)
    assert engine(VllmConfig(sleep=True)).awake == Memory(engine=WEIGHTS, cache=40_000 - WEIGHTS)


def test_ranks_that_share_it_and_8_bits_divide_its_weights():
    found = engine(VllmConfig(tensor_parallel=2, quantization="fp8", kv_cache_gb=1))
    assert found.awake == Memory(engine=WEIGHTS // 4, cache=1 << 30)
    assert found.sync.gathered == 512 << 20


def test_sglang_is_counted_as_vllm_is():
    options = {"memory_fraction": 0.3, "sleep": True, "sleep_level": 1}
    assert engine(SglangConfig(**options)) == engine(VllmConfig(**options))


def test_what_cannot_be_counted_is_said():
    assert "give --gpu-memory" in engine(VllmConfig(), Target("cuda", 2)).note
    assert "the server's memory is not counted" in engine(VllmConfig(mode="server")).note
    assert "the engine's memory is not counted" in engine(Section()).note
    assert engine(VllmConfig()).note == ""
    assert engine(VllmConfig(), Target("cpu", 2)).awake.cache == 1 << 30
