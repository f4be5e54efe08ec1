"""From names to parts: what is needed, how the objective is put together, how many steps, which patches."""

import logging
import shutil

import pytest
from lightrft_core.assembly import Builder, build_core, build_evaluator, build_trainer, needs_of, objective_of, rehearse
from lightrft_core.command_line import resolve_command_line
from lightrft_core.errors import Problems, UserError
from lightrft_core.kl_term import KLTerm
from lightrft_core.rundir import RunDir
from lightrft_core.stopping import Stopper
from lightrft_core.testing.toys import toy_setup

from tests.core.real_run import real_run, small_run_file

FILLED = {"old_logprobs", "ref_logprobs", "entropy", "values"}  # what a strategy fills in
PLUGIN = """
from lightrft_core import hookimpl
from lightrft_core.data import LossOutput
from lightrft_core.descriptors import Component, ModelComponent

LIGHTRFT_API = 1


@hookimpl
def lightrft_losses():
    yield Component(name="near", target=__file__ + ":near", summary=".", needs=frozenset({"ref_logprobs"}))


@hookimpl
def lightrft_patches():
    for name, kinds in (("mark", ("qwen2",)), ("everywhere", ("*",)), ("elsewhere", ("llama",))):
        yield ModelComponent(name=name, target=f"{__file__}:{name}", summary=".", model_types=kinds)


def near(inputs, *, config):
    return LossOutput((inputs.logprobs_BT - inputs.ref_logprobs_BT) ** 2)


def mark(module):
    module.marks = [*getattr(module, "marks", []), "mark"]


def everywhere(module):
    module.marks = [*getattr(module, "marks", []), "everywhere"]


def elsewhere(module):
    raise RuntimeError("this is no llama")
"""


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "acme.py"
    file.write_text(PLUGIN)
    return f"plugins=[{file}]"


@pytest.fixture
def objective(load_run, plugins, tmp_path):
    def make(*sets):
        run_file = load_run(sets=sets)
        build = Builder(plugins, toy_setup(tmp_path))
        kl = KLTerm(build.function(run_file.kl), run_file.kl.config) if run_file.kl else None
        return objective_of(run_file, build, kl)

    return make


@pytest.mark.parametrize(
    ("sets", "needs"),
    [
        (["kl=null"], set()),
        (["kl={use: k3}"], {"ref_logprobs"}),
        (["kl={use: k3, place: reward}"], {"ref_logprobs", "old_logprobs"}),
        (["kl=null", "correction={use: tis}"], {"old_logprobs"}),
        (["kl=null", "selectors=[high_entropy]"], {"entropy"}),
        (["kl={use: k2}", "correction={use: tis}", "selectors=[high_entropy]"],
         {"ref_logprobs", "old_logprobs", "entropy"}),
    ],
)  # fmt: skip
def test_needs_are_those_of_the_named_parts(load_run, sets, needs):
    assert needs_of(load_run(sets=sets)) & FILLED == needs


def test_the_objective_carries_the_loss_section(objective):
    found = objective("kl=null", "loss.aggregation=token_mean", "loss.entropy_coef=0.01")
    assert (found.aggregation, found.entropy_coef, found.needs_entropy) == ("token_mean", 0.01, True)
    assert found.kl is None


def test_the_token_budget_is_the_samplers_limit_unless_given(objective):
    norm = ("kl=null", "loss.aggregation=seq_mean_token_sum_norm")
    assert objective(*norm, "sampler.max_new_tokens=77").token_budget == 77.0
    assert objective(*norm, "loss.token_budget=500").token_budget == 500.0


@pytest.mark.parametrize(
    ("sets", "promises"),
    [
        (["kl=null"], True),
        (["kl={use: k3, place: reward}"], True),
        (["kl={use: k3}"], False),
        (["kl=null", "loss.entropy_coef=0.1"], False),
    ],
)
def test_rows_without_advantage_are_left_out_only_where_nothing_else_pulls_at_them(objective, sets, promises):
    assert objective(*sets).zero_without_advantage is promises


def test_a_kl_in_the_reward_is_not_in_the_objective(objective):
    assert objective("kl={use: k3}").kl is not None
    assert objective("kl={use: k3, place: reward}").kl is None


@pytest.fixture
def weightless(tmp_path, quickstart_model):
    """The quickstart model without its weights."""
    folder = tmp_path / "weightless"
    shutil.copytree(quickstart_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return f"model.path={folder}"


@pytest.mark.parametrize(
    ("sets", "steps"),
    [
        (["run.steps=7"], 7),
        (["run.steps=null", "task.max_prompts=10", "sampler.prompts_per_step=4"], 3),
        (["run.steps=null", "task.max_prompts=10", "sampler.prompts_per_step=4", "run.episodes=2.5"], 7),
        (["run.steps=null", "task.max_prompts=10", "sampler.prompts_per_step=64"], 1),
    ],
)
def test_steps_are_passes_over_the_prompts_rounded_up(weightless, sets, steps):
    assert rehearse(*small_run_file(weightless, *sets)).num_steps == steps


def test_a_rehearsal_loads_no_weights(weightless):
    run_file, plugins = small_run_file(weightless)
    parts = rehearse(run_file, plugins)
    prompt = parts.task.everything()[0]
    assert parts.model.decode(parts.model.render(prompt))
    assert parts.batch.samples_per_step == 4
    parts.rewards.close()


def test_a_run_without_weights_is_a_user_error(weightless, tmp_path):
    run_file, plugins = small_run_file(weightless)
    with pytest.raises(UserError, match="weightless"):
        build_core(run_file, plugins, RunDir(tmp_path), 1)


def test_the_batch_is_checked_before_anything_is_loaded(weightless, tmp_path):
    run_file, plugins = small_run_file(weightless)
    with pytest.raises(Problems, match="2 prompts cannot be shared evenly by 3 ranks"):
        build_core(run_file, plugins, RunDir(tmp_path), 3)


def test_the_schedule_knows_all_optimizer_steps(tmp_path):
    run = real_run(tmp_path, "run.steps=3", "optim.batch_size=2", "optim.epochs=2")
    assert run.core.setup.num_optimizer_steps == 3 * 2 * 2
    assert run.core.setup.run.steps == 3
    run.core.close()


def test_patches_for_the_model_apply_to_it_and_are_logged(tmp_path, plugin, caplog):
    with caplog.at_level(logging.INFO):
        run = real_run(tmp_path, plugin)
    assert run.core.strategy.policy.marks == ["mark", "everywhere"]
    assert "patch mark applies to this model" in caplog.text
    assert "elsewhere" not in caplog.text
    run.core.close()


def test_patches_that_are_named_off_do_not(tmp_path, plugin):
    run = real_run(tmp_path, plugin, "model.patches_off=[mark]")
    assert run.core.strategy.policy.marks == ["everywhere"]
    run.core.close()


def test_a_loss_that_needs_the_reference_gets_it_without_a_kl(tmp_path, plugin):
    run = real_run(tmp_path, plugin, "algorithm=null", "loss={use: near}", "kl=null")
    trainer = build_trainer(run.core, run.run_file, run.run_dir, Stopper())
    assert "ref_logprobs" in trainer.parts.needs
    assert trainer.step().metrics["train/policy_loss"] == pytest.approx(0.0, abs=1e-9)
    run.core.close()


def test_an_evaluation_ends_answers_where_training_does(tmp_path):
    run = real_run(tmp_path, "evaluation.temperature=0.5", "evaluation.max_new_tokens=9", "sampler.stop=['####']")
    sampling = build_evaluator(run.core, run.run_file).sampling
    assert sampling.stop_token_ids == run.core.model.stop_token_ids
    assert (sampling.stop, sampling.temperature, sampling.max_new_tokens) == (("####",), 0.5, 9)
    run.core.close()


def test_without_an_evaluation_task_there_is_no_evaluator(tmp_path):
    run_file, plugins = resolve_command_line("quickstart", ["evaluation.task=null"], [])
    assert run_file.evaluation_task is None
    core = build_core(run_file, plugins, RunDir(tmp_path), 1)
    assert build_evaluator(core, run_file) is None
    core.close()


def test_a_core_for_evaluation_alone_loads_no_reference_and_no_training_task(tmp_path):
    run_file, plugins = small_run_file("kl={use: k3}")
    core = build_core(run_file, plugins, RunDir(tmp_path), 1, train=False)
    assert core.task is None
    assert core.setup.needs == frozenset()
    with pytest.raises(RuntimeError, match="without its training task"):
        build_trainer(core, run_file, RunDir(tmp_path), Stopper())
    core.close()
