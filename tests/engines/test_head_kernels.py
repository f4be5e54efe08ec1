"""Triton's kernels: their arithmetic through its interpreter, their machine code for GPUs that are not here."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.conftest import ROOT
from tests.engines.head_cases import SMALL, Case, differences, fused

pytest.importorskip("triton")
NUMBERS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
COUNTS = ("num_tokens", "num_columns", "width", "hidden_stride", "weight_stride")


@pytest.fixture(scope="module")
def interpreted():
    """Differences from the plain loop; in a process of its own, because Triton reads the variable when it is loaded."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/engines/head_cases.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SMALL)
def test_interpreted_kernels_give_what_a_loop_gives(interpreted, name):
    assert interpreted["kernels"]
    assert max(interpreted["worst"][name]) < (4e-3 if SMALL[name].dtype == torch.float16 else 2e-6)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", ["totals_kernel", "gradient_kernel"])
def test_kernels_compile_and_fit_into_shared_memory(monkeypatch, tmp_path, name, capability, numbers):
    import triton
    from lightrft_engines import head_kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(head_kernels, name)
    known = head_kernels.shape_of(torch.empty(1, 1, dtype=NUMBERS[numbers]))
    known |= {"HAS_BIAS": True, "ENTROPY": True, "SPAN": head_kernels.SPAN}
    known = {key: value for key, value in known.items() if key in kernel.arg_names}
    kinds = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(known, "constexpr") | dict.fromkeys(COUNTS, "i32")
    kinds |= {key: f"*{numbers}" for key in ("hidden", "weight", "bias", "gradients") if key in kinds}
    source = ASTSource(kernel, kinds | {"targets": "*i64", "scale": "fp32"}, known)
    memory = {80: 163, 90: 227, 100: 227}[capability] << 10
    options = {"num_warps": head_kernels.WARPS, "num_stages": head_kernels.stages_of(memory)}
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert done.asm["cubin"]
    assert done.metadata.shared <= memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton runs here")
def test_where_triton_does_not_run_it_says_so_once(caplog):
    from lightrft_engines.head_kernels import can_run

    can_run.cache_clear()
    assert not can_run()
    assert not can_run()
    (line,) = [record.message for record in caplog.records if "torch computes" in record.message]
    assert "driver" in line


@pytest.mark.gpu
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("tokens", "vocabulary", "width"), [(1000, 151_936, 896), (4096, 32_003, 2050), (3, 100, 64)])
def test_real_heads_on_a_gpu_give_what_torch_gives(tokens, vocabulary, width, dtype, limit, entropy):
    case = Case(tokens, vocabulary, width, entropy=entropy, temperature=0.9, dtype=dtype, device="cuda")
    found = fused(case)
    assert "lightrft_engines.head_kernels" in sys.modules
    assert max(differences(found, exact(case))) < limit


@pytest.mark.gpu
def test_a_gpu_holds_a_fraction_of_the_logits():
    case = Case(8192, 151_936, 896, entropy=True, dtype=torch.bfloat16, device="cuda")
    fused(replace(case, tokens=128))
    head, *_ = case.make()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused(case)
    logits = case.tokens * case.vocabulary * 2
    inputs_and_gradients = 3 * head.weight.nbytes  # a second head, its initial fp32 copy and its gradient
    assert torch.cuda.max_memory_allocated() - before - inputs_and_gradients < 0.2 * logits


def exact(case: Case):
    """As `head_cases.loop`, in whole matrices of fp64."""
    head, hidden, targets, slopes = case.make()
    weight, states = (tensor.detach().double().requires_grad_() for tensor in (head.weight, hidden))
    logp = ((states @ weight.T) / case.temperature).log_softmax(-1)
    value, entropy = logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)
    loss = (value * slopes[0].double()).sum() + ((entropy * slopes[1].double()).sum() if case.entropy else 0)
    grads = torch.autograd.grad(loss, [states, weight])
    return [value.detach(), *([entropy.detach()] if case.entropy else []), *grads]
