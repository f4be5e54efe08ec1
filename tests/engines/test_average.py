"""The moving average of the weights: its formula, half precision, resume and export."""

import pytest
import torch
from lightrft_core.data import LossOutput
from lightrft_core.errors import UserError
from lightrft_core.objective import Objective
from lightrft_core.sections import CriticSection, RunSection
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.config import SingleConfig
from lightrft_engines.training.single import SingleStrategy
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

OBJECTIVE = Objective(lambda inputs: LossOutput(-inputs.logprobs_BT * inputs.advantages_BT))


@pytest.fixture
def build(kit, qwen_folder):
    def make(*, setup=None, **options) -> SingleStrategy:
        built = kit.setup(qwen_folder, **(setup or {}))
        built.model = TextAdapter(TextConfig(path=str(qwen_folder)), built)
        return SingleStrategy(SingleConfig(**{"ema": True, "ema_beta": 0.75, **options}), built)

    return make


@pytest.fixture
def batch(kit, qwen_folder):
    made = TextAdapter(TextConfig(path=str(qwen_folder)), kit.setup(qwen_folder)).collate(kit.groups())
    made.advantages_BT = torch.linspace(-1, 1, len(made))[:, None].expand(made.mask_BT.shape).contiguous()
    return made


def weights(strategy):
    return {name: tensor.clone() for name, tensor in strategy.weights()}


def saved(strategy, path):
    path.mkdir(exist_ok=True)
    strategy.save(path)
    return load_file(path / "ema/whole.safetensors")


def test_it_is_the_weighted_sum_of_all_weights_so_far(build, batch, tmp_path):
    strategy = build()
    history = [weights(strategy)]
    for _ in range(3):
        strategy.step(batch, OBJECTIVE)
        history.append(weights(strategy))
    shares = [0.75**3, 0.25 * 0.75**2, 0.25 * 0.75, 0.25]
    for name, found in saved(strategy, tmp_path / "c").items():
        expected = sum(share * item[name].double() for share, item in zip(shares, history, strict=True))
        assert torch.allclose(found.double(), expected, atol=1e-6), name


def test_it_changes_nothing_of_the_training(build, batch):
    with_average, without = build(), build(ema=False, ema_beta=0.992)
    for strategy in (with_average, without):
        strategy.step(batch, OBJECTIVE)
    assert all(torch.equal(tensor, weights(without)[name]) for name, tensor in weights(with_average).items())


def test_a_skipped_step_leaves_it(build, batch, tmp_path):
    strategy = build()
    strategy.step(batch, OBJECTIVE)
    before = saved(strategy, tmp_path / "a")
    batch.advantages_BT[0, 0] = float("nan")
    assert strategy.step(batch, OBJECTIVE).skipped
    after = saved(strategy, tmp_path / "b")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_frozen_policy_leaves_it(build, batch, tmp_path):
    setup = {"critic": CriticSection(policy_freeze_steps=2), "run": RunSection(steps=5), "num_optimizer_steps": 5}
    strategy = build(setup=setup)
    start = saved(strategy, tmp_path / "a")
    strategy.fill(batch, frozenset({"values"}))
    batch.returns_BT = torch.ones_like(batch.values_BT)
    strategy.step(batch, OBJECTIVE)
    assert all(torch.equal(tensor, start[name]) for name, tensor in saved(strategy, tmp_path / "b").items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_resumes_exactly_in_full_precision(build, batch, tmp_path, precision):
    whole, resumed = build(precision=precision), build(precision=precision)
    whole.step(batch, OBJECTIVE)
    found = saved(whole, tmp_path / "c")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    resumed.load(tmp_path / "c")
    for strategy in (whole, resumed):
        strategy.step(batch, OBJECTIVE)
    one, other = saved(whole, tmp_path / "d"), saved(resumed, tmp_path / "e")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_taken_it_is_what_the_export_holds(build, batch, tmp_path):
    strategy = build()
    strategy.step(batch, OBJECTIVE)
    average = saved(strategy, tmp_path / "c")
    strategy.take_average()
    strategy.export(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(tensor, average[name]) for name, tensor in model.named_parameters())


def test_a_run_that_kept_none_says_so(build):
    with pytest.raises(UserError, match=r"strategy\.ema: this run kept no average of its weights"):
        build(ema=False).take_average()


def test_a_checkpoint_without_one_is_refused(build, tmp_path):
    build(ema=False).save(tmp_path)
    with pytest.raises(UserError, match="the checkpoint has no folder ema"):
        build().load(tmp_path)
