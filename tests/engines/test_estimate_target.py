"""Which machine is meant, and how large it is."""

import pytest
import torch
from lightrft_core.errors import UserError
from lightrft_engines.estimate.target import Target, choose_target, read_size, resident
from lightrft_engines.training.config import SingleConfig

NOTHING = {"gpus": None, "processes": None, "gpu_memory": None}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80e9), ("80", 80e9), ("79.6 GiB", 79.6 * 2**30), ("500mb", 500e6), ("1TiB", 2**40)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert read_size(text, "--gpu-memory") == round(size)


@pytest.mark.parametrize("text", ["", "GB", "eighty", "0GB", "-1GB", "80 apples"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match=r"is no size.*80GB"):
        read_size(text, "--gpu-memory")


def test_without_flags_it_is_what_train_would_use_here(monkeypatch):
    found = choose_target(SingleConfig(), **NOTHING), choose_target(SingleConfig(), **{**NOTHING, "processes": 3})
    assert [(target.kind, target.ranks, target.limit) for target in found] == [("cpu", 1, None), ("cpu", 3, None)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert choose_target(SingleConfig(), **NOTHING) == Target("cuda", 2)


def test_flags_about_gpus_mean_gpus():
    assert choose_target(SingleConfig(), **{**NOTHING, "gpus": 8}) == Target("cuda", 8)
    found = choose_target(SingleConfig(), **{**NOTHING, "gpu_memory": "80GB"})
    assert found == Target("cuda", 1, 80_000_000_000)
    assert found.usable == 72_000_000_000


@pytest.mark.parametrize(
    ("config", "flags", "where"),
    [
        (SingleConfig(device="cpu"), {"gpus": 2}, "--gpus"),
        (SingleConfig(device="cpu"), {"gpu_memory": "8GB"}, "--gpu-memory"),
        (SingleConfig(), {"gpus": 2, "processes": 2}, "--processes"),
    ],
)
def test_a_flag_without_effect_is_refused(config, flags, where):
    with pytest.raises(UserError, match="has no effect") as problem:
        choose_target(config, **{**NOTHING, **flags})
    assert problem.value.where == where


def test_automatic_precision_is_bf16_on_gpus_and_fp32_on_cpus():
    assert Target("cuda", 1).dtype(SingleConfig()) == torch.bfloat16
    assert Target("cpu", 1).dtype(SingleConfig()) == torch.float32
    assert Target("cuda", 1).dtype(SingleConfig(precision="fp32")) == torch.float32


def test_on_a_cpu_the_overhead_is_what_this_process_has_and_on_gpus_a_known_figure():
    assert choose_target(SingleConfig(), **NOTHING).overhead == pytest.approx(resident(), rel=0.05)
    assert 100e6 < resident() < 10e9
    assert [Target("cuda", ranks).overhead for ranks in (1, 2)] == [500_000_000, 1_000_000_000]
