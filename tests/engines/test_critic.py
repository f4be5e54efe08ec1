"""A critic beside the policy: one update whatever the cut, what it learns, its warm-up, its part of checkpoints."""

import json

import pytest
import torch
from lightrft_core.data import LossOutput
from lightrft_core.errors import UserError
from lightrft_core.objective import Objective
from lightrft_core.sections import CriticSection, OptimSection, RunSection
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.config import SingleConfig
from lightrft_engines.training.single import SingleStrategy
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.engines.test_ranks import on_ranks

OBJECTIVE = Objective(lambda inputs: LossOutput(-inputs.logprobs_BT * inputs.advantages_BT))
SECTION = CriticSection(lr=1e-2, eps=1e-3)
OPTIM = OptimSection(lr=1e-2, eps=1e-3)


def make_strategy(kit, folder, *, critic=SECTION, setup=None, **options) -> SingleStrategy:
    built = kit.setup(folder, **{"optim": OPTIM, "critic": critic, **(setup or {})})
    built.model = TextAdapter(TextConfig(path=str(folder)), built)
    return SingleStrategy(SingleConfig(**options), built)


def make_batch(kit, folder, strategy, seed=0):
    """A filled batch whose returns are 1 for one token of two, and 0 for the other, by the token before it."""
    batch = TextAdapter(TextConfig(path=str(folder)), kit.setup(folder)).collate(kit.groups(seed))
    strategy.fill(batch, frozenset({"values"}))
    draw = torch.Generator().manual_seed(seed + 1)
    batch.advantages_BT = torch.randn(len(batch), 1, generator=draw).expand(batch.mask_BT.shape).contiguous()
    batch.returns_BT = torch.randn(batch.mask_BT.shape, generator=draw)
    return batch


def weights(strategy) -> dict[str, torch.Tensor]:
    """Of critic and policy."""
    critic = {f"critic.{name}": tensor.clone() for name, tensor in strategy.critic.role.learned().items()}
    return critic | {name: tensor.clone() for name, tensor in strategy.weights()}


def distance(found, expected) -> float:
    return max(float((found[name] - expected[name]).detach().abs().max()) for name in expected)


@pytest.fixture
def build(kit, qwen_folder):
    return lambda **options: make_strategy(kit, qwen_folder, **options)


@pytest.fixture
def batch(kit, qwen_folder, build):
    return make_batch(kit, qwen_folder, build())


def two_steps(strategy, batch):
    """The second step is the one in which the head, no longer 0, hands gradients to the backbone."""
    return [strategy.step(batch, OBJECTIVE) for _ in range(2)]


def test_the_update_does_not_depend_on_the_cut(build, batch):
    whole = build(max_tokens_per_micro_batch=10_000)
    stats = two_steps(whole, batch)
    for options in (
        {"micro_batch_size": 1},
        {"max_tokens_per_micro_batch": 16},
        {"micro_batch_size": 2, "packing": False},
        {"checkpointing": True},
    ):
        other = build(**options)
        again = two_steps(other, batch)
        assert distance(weights(other), weights(whole)) <= 1e-5, options
        for name, (total, count) in stats[1].metrics.items():
            assert again[1].metrics[name] == (pytest.approx(total, rel=1e-3, abs=1e-5), pytest.approx(count)), name


def test_the_first_update_equals_adamw_on_gradients_of_a_plain_loop(build, batch, qwen_folder):
    strategy = build()
    model = AutoModelForCausalLM.from_pretrained(qwen_folder)
    head = torch.zeros(32, requires_grad=True)
    loss, num = 0.0, int(batch.mask_BT.sum())
    for row, prompt in enumerate(batch.prompt_token_ids):
        length = int(batch.lengths_B[row])
        ids = torch.tensor([[*prompt, *batch.completion_ids_BT[row, :length].tolist()]])
        states = model(ids, output_hidden_states=True).hidden_states[-1][0, len(prompt) - 1 : -1]
        loss = loss + 0.5 * ((states @ head - batch.returns_BT[row, :length]) ** 2).sum() / num
    loss.backward()
    norm = float(head.grad.norm())  # a head of 0 hands no gradient on
    grad = head.grad * min(1.0, 1.0 / norm)
    expected = -1e-2 * grad / (grad.abs() + 1e-3)  # Adam's first step
    metrics = strategy.step(batch, OBJECTIVE).metrics
    assert metrics["value_loss"] == (pytest.approx(float(loss.detach()), rel=1e-5), pytest.approx(1.0))
    assert metrics["critic_grad_norm"][0] == pytest.approx(norm, rel=1e-4)
    assert strategy.critic.role.module.head.weight[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_critic_leaves_the_policys_update_as_it_is(kit, build, batch, qwen_folder):
    with_critic, without = build(), make_strategy(kit, qwen_folder, critic=None)
    with_critic.step(batch, OBJECTIVE)
    without.step(batch, OBJECTIVE)
    assert distance(dict(with_critic.weights()), dict(without.weights())) == 0


def test_values_of_rows_that_train_nothing_are_0(build, batch):
    strategy = build()
    two_steps(strategy, batch)
    batch.mask_BT[2] = False
    strategy.fill(batch, frozenset({"values"}))
    assert float(batch.values_BT[2].abs().max()) == 0
    assert float(batch.values_BT[3].abs().max()) > 0
    assert not batch.values_BT.requires_grad


def test_rows_without_advantage_still_teach_the_critic(build, batch):
    from dataclasses import replace

    first, second = build(), build()
    two_steps(first, batch)
    batch.advantages_BT[:] = 0
    objective = replace(OBJECTIVE, zero_without_advantage=True)
    for _ in range(2):
        second.step(batch, objective)
    found, expected = weights(second), weights(first)
    critic = [name for name in expected if name.startswith("critic.")]
    assert max(float((found[name] - expected[name]).detach().abs().max()) for name in critic) == 0


def test_it_learns_the_returns_of_a_batch(kit, build, qwen_folder):
    strategy = build(critic=CriticSection(lr=3e-3, clip=None))
    batch = make_batch(kit, qwen_folder, strategy)
    batch.returns_BT = (batch.completion_ids_BT % 2).roll(1, -1).float()
    explained = []
    for _ in range(60):
        strategy.fill(batch, frozenset({"values"}))
        total, count = strategy.step(batch, OBJECTIVE).metrics["explained_variance"]
        explained.append(total / count)
    assert abs(explained[0]) < 1e-6
    assert explained[-1] > 0.9


def test_the_clip_holds_values_near_the_old_ones(build, batch):
    batch.values_BT = torch.zeros_like(batch.values_BT)
    batch.returns_BT = torch.full_like(batch.returns_BT, 5.0)
    strategy = build(critic=CriticSection(lr=0.05, clip=0.2))
    stats = [strategy.step(batch, OBJECTIVE) for _ in range(4)]
    shares = [stat.metrics["value_clip_fraction"] for stat in stats]
    assert shares[0][0] == 0 and shares[-1][0] > 0
    assert stats[-1].metrics["value_loss"][0] >= 0.5 * 4.8**2 * 0.5


def test_the_policy_stays_frozen_for_so_many_rollout_steps(build, batch):
    setup = {"run": RunSection(steps=5), "num_optimizer_steps": 10}
    strategy = build(critic=CriticSection(lr=1e-2, policy_freeze_steps=1), setup=setup)
    start = weights(strategy)
    frozen = two_steps(strategy, batch)  # two updates a rollout step
    moved = weights(strategy)
    assert [stat.lr for stat in frozen] == [0.0, 0.0]
    assert all("policy_loss" not in stat.metrics and stat.skipped is None for stat in frozen)
    assert distance(dict(strategy.weights()), {n: t for n, t in start.items() if not n.startswith("critic.")}) == 0
    assert distance(moved, start) > 0
    awake = strategy.step(batch, OBJECTIVE)
    assert awake.lr == 1e-2 and "policy_loss" in awake.metrics
    assert distance(dict(strategy.weights()), {n: t for n, t in start.items() if not n.startswith("critic.")}) > 0


def test_a_policy_frozen_for_the_whole_run_is_refused(build):
    with pytest.raises(UserError, match=r"critic\.policy_freeze_steps: 5 is not less than the run's 5 steps"):
        build(critic=CriticSection(policy_freeze_steps=5), setup={"run": RunSection(steps=5)})


def test_a_non_finite_gradient_of_either_changes_nothing(build, batch):
    strategy = build()
    two_steps(strategy, batch)
    before = weights(strategy)
    for name in ("returns_BT", "advantages_BT"):
        whole = getattr(batch, name)
        setattr(batch, name, whole.clone())
        getattr(batch, name)[2, 0] = float("nan")
        stats = strategy.step(batch, OBJECTIVE)
        assert stats.skipped == "the gradient norm is nan"
        setattr(batch, name, whole)
    assert distance(weights(strategy), before) == 0
    assert strategy.step(batch, OBJECTIVE).skipped is None


def test_a_resumed_run_goes_on_to_the_same_numbers(kit, build, batch, qwen_folder, tmp_path):
    whole = build()
    two_steps(whole, batch)
    whole.save(tmp_path)
    resumed = build()
    resumed.load(tmp_path)
    for seed in (1, 2):
        ours, theirs = (make_batch(kit, qwen_folder, strategy, seed) for strategy in (whole, resumed))
        assert torch.equal(ours.values_BT, theirs.values_BT)
        assert whole.step(ours, OBJECTIVE) == resumed.step(theirs, OBJECTIVE)
    assert distance(weights(resumed), weights(whole)) == 0


def test_half_precision_keeps_full_masters_and_resumes(build, batch, tmp_path):
    whole = build(precision="bf16")
    two_steps(whole, batch)
    whole.save(tmp_path)
    assert load_file(tmp_path / "critic/weights/whole.safetensors")["head.weight"].dtype == torch.float32
    resumed = build(precision="bf16")
    resumed.load(tmp_path)
    assert whole.step(batch, OBJECTIVE) == resumed.step(batch, OBJECTIVE)


def test_its_files_are_beside_the_policys(build, batch, tmp_path):
    strategy = build()
    strategy.step(batch, OBJECTIVE)
    strategy.save(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "critic/optimizer/whole.safetensors",
        "critic/weights/whole.safetensors",
        "policy/optimizer/whole.safetensors",
        "policy/weights/whole.safetensors",
        "random-00000.safetensors",
        "strategy.json",
    ]
    assert json.loads((tmp_path / "strategy.json").read_text())["steps"]["critic"] == 1


def test_a_run_without_its_critic_loads_the_policy_alone(kit, build, batch, qwen_folder, tmp_path):
    strategy = build()
    two_steps(strategy, batch)
    strategy.save(tmp_path)
    alone = make_strategy(kit, qwen_folder, critic=None)
    alone.load(tmp_path)
    assert distance(dict(alone.weights()), dict(strategy.weights())) == 0


def test_a_checkpoint_without_a_critic_is_refused_and_nothing_changes(kit, build, batch, qwen_folder, tmp_path):
    make_strategy(kit, qwen_folder, critic=None).save(tmp_path)
    strategy = build()
    two_steps(strategy, batch)
    before = weights(strategy)
    with pytest.raises(UserError, match="/critic: the checkpoint has no folder weights"):
        strategy.load(tmp_path)
    assert distance(weights(strategy), before) == 0


@pytest.mark.parametrize("export", [True, False])
def test_the_export_holds_the_critic_where_that_is_asked_for(build, batch, tmp_path, export):
    strategy = build(critic=CriticSection(lr=1e-2, export=export))
    two_steps(strategy, batch)
    strategy.export(tmp_path / "out")
    assert (tmp_path / "out/critic/model.safetensors").is_file() == export
    assert (tmp_path / "out/model.safetensors").is_file()


def test_without_a_critic_values_are_a_programmers_mistake(kit, qwen_folder, batch):
    with pytest.raises(ValueError, match="this run has no critic"):
        make_strategy(kit, qwen_folder, critic=None).fill(batch, frozenset({"values"}))


def update(kit, folder, rows):
    strategy = make_strategy(kit, folder)
    batch = make_batch(kit, folder, strategy).rows(rows)
    stats = two_steps(strategy, batch)[1]
    return {name: tensor.tolist() for name, tensor in weights(strategy).items()}, dict(stats.metrics)


def test_two_ranks_make_the_update_of_one(kit, qwen_folder, tmp_path):
    values, metrics = update(kit, qwen_folder, list(range(8)))
    shares = ([0, 1, 2, 5, 7], [3, 4, 6])
    first, second = on_ranks(lambda rank: update(kit, qwen_folder, shares[rank]), 2, tmp_path)
    assert first[0] == second[0]
    for name, expected in values.items():
        assert float((torch.tensor(first[0][name]) - torch.tensor(expected)).abs().max()) <= 1e-5, name
    for name, (total, count) in metrics.items():
        found = first[1][name]
        assert found[0] / found[1] == pytest.approx(total / count, rel=1e-3, abs=1e-5), name


def test_a_rank_without_rows_takes_part(kit, qwen_folder, tmp_path):
    values, _ = update(kit, qwen_folder, list(range(8)))
    first, second = on_ranks(lambda rank: update(kit, qwen_folder, list(range(8)) if rank else []), 2, tmp_path)
    assert first[0] == second[0]
    assert max(float((torch.tensor(first[0][n]) - torch.tensor(values[n])).abs().max()) for n in values) <= 1e-5
