"""The reference renewed by the policy, and kept over a resume."""

import pytest
import torch
from lightrft_core.data import LossOutput
from lightrft_core.objective import Objective
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.config import SingleConfig
from lightrft_engines.training.single import SingleStrategy

OBJECTIVE = Objective(lambda inputs: LossOutput(-inputs.logprobs_BT * inputs.advantages_BT))


@pytest.fixture
def build(kit, qwen_folder):
    def make(needs=frozenset({"ref_logprobs"})) -> SingleStrategy:
        setup = kit.setup(qwen_folder, needs=needs)
        setup.model = TextAdapter(TextConfig(path=str(qwen_folder)), setup)
        return SingleStrategy(SingleConfig(), setup)

    return make


@pytest.fixture
def batch(kit, qwen_folder):
    made = TextAdapter(TextConfig(path=str(qwen_folder)), kit.setup(qwen_folder)).collate(kit.groups())
    made.advantages_BT = torch.linspace(-1, 1, len(made))[:, None].expand(made.mask_BT.shape).contiguous()
    return made


def of(strategy, batch, role="reference"):
    return strategy.logprobs(batch, role=role).logprobs_BT


def test_a_refresh_makes_the_policy_the_reference(build, batch):
    strategy = build()
    start = of(strategy, batch)
    strategy.step(batch, OBJECTIVE)
    assert torch.equal(of(strategy, batch), start)
    strategy.refresh_reference()
    renewed = of(strategy, batch)
    assert torch.equal(renewed, of(strategy, batch, "policy"))
    strategy.step(batch, OBJECTIVE)
    assert torch.equal(of(strategy, batch), renewed)
    assert not torch.equal(of(strategy, batch, "policy"), renewed)


def test_a_renewed_reference_is_in_the_checkpoint(build, batch, tmp_path):
    strategy = build()
    strategy.step(batch, OBJECTIVE)
    strategy.refresh_reference()
    strategy.step(batch, OBJECTIVE)
    strategy.save(tmp_path)
    resumed = build()
    resumed.load(tmp_path)
    assert torch.equal(of(resumed, batch), of(strategy, batch))


def test_the_start_model_is_not_and_comes_back(build, batch, tmp_path):
    strategy = build()
    start = of(strategy, batch)
    strategy.step(batch, OBJECTIVE)
    strategy.save(tmp_path)
    assert not (tmp_path / "reference").exists()
    strategy.refresh_reference()
    strategy.load(tmp_path)
    assert torch.equal(of(strategy, batch), start)


def test_without_a_reference_a_refresh_is_a_programmers_mistake(build):
    with pytest.raises(ValueError, match="no reference"):
        build(frozenset()).refresh_reference()
