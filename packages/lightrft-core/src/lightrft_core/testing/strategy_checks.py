"""A strategy: steps change the weights, bad gradients change nothing, a saved one goes on as it would have."""

import math
from dataclasses import replace
from typing import Any

from lightrft_core.abilities import GaugingStrategy, StagingStrategy
from lightrft_core.data import Batch, Group, LossInputs, LossOutput, Rollout, StepStats
from lightrft_core.objective import Objective
from lightrft_core.protocols import ModelAdapter, Setup
from lightrft_core.testing import tensors
from lightrft_core.testing.engine_case import prompts_for
from lightrft_core.testing.results import Case, Check, Skipped, require
from lightrft_core.testing.torch_toys import torch_setup

TOLERANCE = 1e-5
ALLOWED_FILES = (".safetensors", ".json", ".txt")
TEXTS = ("4", "12", "345", "6789")


def setup_of(case: Case) -> Setup:
    """The caller's setup, or one with a tiny torch policy."""
    tensors.torch_module()
    return case.given or torch_setup(case.run_dir)


def build(case: Case) -> Any:  # Any: the strategy under test
    """A fresh one. Without a setup of the caller's the toy is tried first; a strategy that cannot use it is skipped."""
    if case.given is None and "works" not in case.parts:
        try:
            trial = case.target(case.options, setup_of(case))
            trial.step(batch_of(setup_of(case)), plain_objective())
        except Exception as error:  # the boundary around a stranger's strategy, which may rightly refuse toys
            case.parts["works"] = Skipped(f"a model: pass `setup=` (with a toy: {type(error).__name__}: {error})")
        else:
            case.parts["works"] = True
    if isinstance(case.parts.get("works"), Skipped):
        raise case.parts["works"]
    return case.target(case.options, setup_of(case))


def completed_groups(model: ModelAdapter, setup: Setup) -> list[Group]:
    """Groups of written completions, ragged and scored, ending in a stop token where the model has one."""
    groups = []
    for prompt in prompts_for(setup):
        rollouts = []
        for index, text in enumerate(TEXTS):
            token_ids = (*model.encode(text), *model.stop_token_ids[:1])
            rollouts.append(
                Rollout(prompt.id, index, token_ids, text, (-1.0,) * len(token_ids), "stop", 0, reward=float(index % 2))
            )
            rollouts[-1].shaped_reward = rollouts[-1].reward
        groups.append(Group(prompt, model.render(prompt), rollouts))
    return groups


def batch_of(setup: Setup, scale: float = 1.0) -> Batch:
    """A batch with an advantage of +-`scale` on every row."""
    model = setup.require_model()
    batch = model.collate(completed_groups(model, setup))
    signs_B = batch.rewards_B * 2.0 - 1.0
    batch.advantages_BT = (signs_B * scale).unsqueeze(1).expand(batch.mask_BT.shape).clone()
    return batch


def plain_objective() -> Objective:
    """The policy gradient without any clip."""

    def loss(inputs: LossInputs) -> LossOutput:
        return LossOutput(-(inputs.logprobs_BT - inputs.old_logprobs_BT).exp() * inputs.advantages_BT)

    return Objective(loss, "token_mean")


def a_step_changes_the_weights(case: Case) -> None:
    """Finite numbers, no skip, and another fingerprint than before."""
    strategy = build(case)
    before = dict(strategy.fingerprint())
    stats: StepStats = strategy.step(batch_of(setup_of(case)), plain_objective())
    require(stats.skipped is None, f"a sound step was skipped: {stats.skipped}")
    require(math.isfinite(stats.grad_norm) and stats.grad_norm > 0, f"grad_norm is {stats.grad_norm}")
    bad = [name for name, pair in stats.metrics.items() if not all(map(math.isfinite, pair))]
    require(not bad, f"not finite: {', '.join(bad)}")
    require(dict(strategy.fingerprint()) != before, "the step changed no weight")


def a_bad_gradient_changes_nothing(case: Case) -> None:
    """The step is reported as skipped, weights stay bit for bit, and the next sound step works."""
    strategy = build(case)
    before = _weights(strategy)
    stats: StepStats = strategy.step(batch_of(setup_of(case), scale=math.inf), plain_objective())
    require(stats.skipped, "a step with a non-finite gradient was not reported as skipped")
    require(_gap(_weights(strategy), before) == 0.0, "a skipped step changed weights")
    after: StepStats = strategy.step(batch_of(setup_of(case)), plain_objective())
    require(after.skipped is None and math.isfinite(after.grad_norm), "the step after a skipped one fails")
    require(math.isfinite(_gap(_weights(strategy), before)), "weights are not finite after a skipped step")


def row_order_does_not_change_the_step(case: Case) -> None:
    """Rows in reverse give the same weights, within rounding."""
    results = []
    for reverse in (False, True):
        strategy, batch = build(case), batch_of(setup_of(case))
        rows = list(range(len(batch)))
        strategy.step(batch.rows(rows[::-1] if reverse else rows), plain_objective())
        results.append(_weights(strategy))
    gap = _gap(*results)
    require(gap <= TOLERANCE, f"another order of rows changes weights by {gap:.3g}")


def a_saved_run_goes_on_exactly(case: Case) -> None:
    """Step, save, step; a fresh one that loads and steps has the same weights bit for bit. No pickle on disk."""
    strategy, folder = build(case), case.run_dir / "saved"
    folder.mkdir(exist_ok=True)
    strategy.step(batch_of(setup_of(case)), plain_objective())
    strategy.save(folder)
    strategy.step(batch_of(setup_of(case)), plain_objective())
    other = build(case)
    other.load(folder)
    other.step(batch_of(setup_of(case)), plain_objective())
    gap = _gap(_weights(other), _weights(strategy))
    require(gap == 0.0, f"after save and load the next step differs by {gap:.3g}")
    names = [path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in ALLOWED_FILES]
    require(not names, f"only safetensors and JSON may be saved, not {', '.join(names)}")


def a_staged_copy_is_of_its_moment(case: Case) -> None:
    """Stage, step, write: a fresh one that loads has the weights from before the step. An export may come alone."""
    strategy, folder = build(case), case.run_dir / "staged"
    if not isinstance(strategy, StagingStrategy):
        raise Skipped("a strategy that saves in the background (`stage`, `beside`)")
    folder.mkdir(exist_ok=True)
    strategy.step(batch_of(setup_of(case)), plain_objective())
    before, write = _weights(strategy), strategy.stage()
    strategy.step(batch_of(setup_of(case)), plain_objective())
    write(folder)
    other = build(case)
    other.load(folder)
    gap = _gap(_weights(other), before)
    require(gap == 0.0, f"what was staged differs by {gap:.3g} from the weights of that moment")
    alone = case.run_dir / "staged_export"
    alone.mkdir(exist_ok=True)
    strategy.stage(export="hf", state=False)(alone)
    names = [path.name for path in alone.iterdir()]
    require(names == ["hf"], f"stage(export='hf', state=False) wrote {', '.join(names) or 'nothing'}, not `hf` alone")


def fill_sets_what_is_needed(case: Case) -> None:
    """Old and reference log-probabilities and the entropy, [B, T], without gradient."""
    strategy, batch = build(case), batch_of(setup_of(case))
    strategy.fill(batch, frozenset({"old_logprobs", "entropy"}))
    for name, values in (("old_logprobs_BT", batch.old_logprobs_BT), ("entropy_BT", batch.entropy_BT)):
        require(values is not None, f"fill left {name} None")
        assert values is not None
        require(values.shape == batch.mask_BT.shape, f"{name} has shape {tuple(values.shape)}, expected [B, T]")
        require(not values.requires_grad, f"{name} carries a gradient")
    again_BT = strategy.logprobs(batch).logprobs_BT
    assert batch.old_logprobs_BT is not None
    gap = tensors.deviation(again_BT.cpu(), batch.old_logprobs_BT.cpu(), batch.mask_BT)
    require(gap <= TOLERANCE, f"logprobs() and fill() differ by {gap:.3g}")


def the_gap_to_the_engine_is_measured(case: Case) -> None:
    """By the step, and from filled log-probabilities; an update over the objective's limit is left out."""
    strategy, batch = build(case), batch_of(setup_of(case))
    if not isinstance(strategy, GaugingStrategy):
        raise Skipped("a strategy that measures the gap to the engine (`gap`)")
    batch.engine_logprobs_BT = strategy.logprobs(batch).logprobs_BT.cpu() - 0.25
    before = _weights(strategy)
    stats: StepStats = strategy.step(batch, replace(plain_objective(), max_gap=0.2))
    require(stats.gap is not None and abs(stats.gap.mean - 0.25) < 1e-3, "a gap of 0.25 is reported as another")
    require(stats.skipped and _gap(_weights(strategy), before) == 0.0, "a gap over the limit changed weights")
    require(strategy.gap(batch) is None, "gap() of a batch without old log-probabilities is not None")
    strategy.fill(batch, frozenset({"old_logprobs"}))
    found = strategy.gap(batch)
    require(found is not None and abs(found.mean - 0.25) < 1e-3, "gap() of filled log-probabilities is another")


def weights_have_names_once(case: Case) -> None:
    """And two readings agree."""
    strategy = build(case)
    names = [name for name, _ in strategy.weights()]
    require(names and len(set(names)) == len(names), "weights() gives no name or one twice")
    require(dict(strategy.fingerprint()) == dict(strategy.fingerprint()), "two fingerprints of one policy differ")
    strategy.close()


def _weights(strategy: Any) -> dict[str, Any]:  # Any: the strategy under test, and tensors
    return {name: tensor.detach().cpu().clone() for name, tensor in strategy.weights()}


def _gap(left: dict[str, Any], right: dict[str, Any]) -> float:  # Any: tensors
    if set(left) != set(right):
        return math.inf
    return max(tensors.deviation(left[name], right[name]) for name in left)


CHECKS: tuple[Check, ...] = (
    a_step_changes_the_weights,
    a_bad_gradient_changes_nothing,
    row_order_does_not_change_the_step,
    a_saved_run_goes_on_exactly,
    a_staged_copy_is_of_its_moment,
    fill_sets_what_is_needed,
    the_gap_to_the_engine_is_measured,
    weights_have_names_once,
)
