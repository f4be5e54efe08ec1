"""A run with a critic, from its flags and sections to its checkpoints; refused where nothing reads its values."""

import json
from dataclasses import replace

import pytest
import torch
from lightrft_core.manifest import formula
from lightrft_core.plugins import Plugins
from lightrft_core.protocols import SoloWorld

from tests.core.real_run import real_run

BASE = "model: {path: ./model}\ntask: {path: ./train.jsonl}\nrewards: [exact]\n"
PPO = "algorithm: ppo\n" + BASE
FLAGS = {
    "--critic_pretrain org/rm": ("path", "org/rm"),
    "--critic_learning_rate 9e-6": ("lr", 9e-6),
    "--value_clip 0.3": ("clip", 0.3),
    "--freezing_actor_steps 5": ("policy_freeze_steps", 5),
    "--freezing_actor_steps -1": ("policy_freeze_steps", 0),
    "--save_value_network": ("export", True),
    "--value_head_prefix value_head": ("head", "value_head"),
}


@pytest.mark.parametrize("words", FLAGS)
def test_flags_of_the_critic_set_its_section(load_run, words):
    key, value = FLAGS[words]
    run = load_run(BASE, flags=("--advantage_estimator", "gae", *words.split()))
    assert getattr(run.critic, key) == value
    assert run.to_plain()["critic"][key] == value


def test_flags_of_gae_set_the_advantage(load_run):
    run = load_run(BASE, flags=("--advantage_estimator", "gae", "--lambd", "0.9", "--gamma", "0.99"))
    assert (run.advantage.config.lambd, run.advantage.config.gamma) == (0.9, 0.99)


def test_ppo_whitens_once_and_has_no_kl(load_run):
    run = load_run(PPO)
    assert (run.advantage.name, run.advantage.config.normalize) == ("gae", True)
    assert (run.loss.name, run.loss.config.aggregation, run.kl) == ("clip", "token_mean", None)
    assert formula(run)["normalised_by"] == "advantage gae"
    assert formula(run)["critic"]["options"]["clip"] == 0.2


def test_a_resolved_run_loads_again_to_an_equal_one(load_run):
    run = load_run(PPO + "critic: {lr: 1.0e-4, warmup_steps: 3}\n")
    assert load_run(run.to_yaml()) == run


@pytest.mark.parametrize("key", ["lr", "path", "clip", "export", "policy_freeze_steps", "schedule"])
def test_a_critic_that_nothing_needs_is_refused(run_problems, key):
    value = {"path": "x", "export": "true", "schedule": "constant"}.get(key, "1")
    (text,) = run_problems("algorithm: grpo\n" + BASE + f"critic: {{{key}: {value}}}\n")
    assert f"critic.{key}: has no effect: nothing in this run needs a critic's values." in text
    assert "advantage 'gae'" in text


def test_a_file_for_ppo_may_be_run_as_grpo_from_the_command_line(load_run):
    run = load_run(PPO + "critic: {lr: 1.0e-4}\n", sets=("algorithm=grpo",))
    assert not run.needs_values
    assert "critic" not in run.to_plain()


def test_idle_options_of_its_schedule_are_refused(run_problems):
    (text,) = run_problems(PPO + "critic: {min_lr_ratio: 0.2}\n")
    assert "critic.min_lr_ratio: has no effect: schedule is constant." in text


def test_an_unknown_option_gets_a_suggestion(run_problems):
    (text,) = run_problems(PPO + "critic: {clipp: 0.2}\n")
    assert "critic.clipp" in text and "'clip'" in text


def test_a_strategy_without_a_critic_is_refused(run_problems, monkeypatch):
    found = Plugins.find

    def without(self, kind, name, *, where):
        component = found(self, kind, name, where=where)
        return replace(component, provides=component.provides - {"values"}) if kind == "strategy" else component

    monkeypatch.setattr(Plugins, "find", without)
    (text,) = run_problems(PPO)
    assert "single has no critic, and this run needs its values. Choose an advantage without a critic." in text


SMALL_PPO = ("algorithm=ppo", "critic.lr=1e-3", "run.steps=4", "optim.batch_size=2", "selftest.enabled=false")


def test_the_batch_that_trains_holds_values_returns_and_whitened_advantages(tmp_path):
    run = real_run(tmp_path, *SMALL_PPO, "sampler.prompts_per_step=4")
    trainer = run.trainer()
    seen, step = [], run.core.strategy.step
    run.core.strategy.step = lambda batch, objective: seen.append(batch) or step(batch, objective)
    trainer.step()
    advantages = torch.cat([batch.advantages_BT[batch.mask_BT] for batch in seen])
    assert len(seen) == 4
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantages.std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    for batch in seen:
        assert float(batch.values_BT.abs().max()) == 0.0  # the first step's head is 0, so that ...
        last = batch.lengths_B - 1
        assert torch.equal(batch.returns_BT.gather(1, last[:, None])[:, 0], batch.rewards_B)
    run.core.close()


def numbers(report):
    return {name: value for name, value in report.metrics.items() if not name.startswith("throughput")}


def test_a_resumed_run_goes_on_to_the_same_numbers(tmp_path):
    for name in ("whole", "again"):
        (tmp_path / name).mkdir()
    whole, again = (real_run(tmp_path / name, *SMALL_PPO) for name in ("whole", "again"))
    first, second = whole.trainer(), again.trainer()
    for _ in range(2):
        first.step()
    first.save()
    checkpoint = first.parts.checkpoints.newest(SoloWorld())
    expected = [numbers(first.step()) for _ in range(2)]
    again.core.strategy.load(checkpoint.path)
    second.resume(json.loads(json.dumps(checkpoint.state)))
    assert [numbers(second.step()) for _ in range(2)] == expected
    assert "train/value_loss" in expected[0] and "train/critic_lr" in expected[0]
    whole.core.close()
    again.core.close()


def test_reward_kl_reaches_the_returns(tmp_path):
    run = real_run(tmp_path, *SMALL_PPO, "kl={use: k1, place: reward, coef: 0.5}")
    trainer = run.trainer()
    trainer.step()
    assert "train/kl" in numbers(trainer.step())
    run.core.close()


def test_evaluation_and_export_load_no_critic_unless_it_is_exported(tmp_path):
    from lightrft_core.assembly import build_core
    from lightrft_core.exporting import build_exporter

    run = real_run(tmp_path, *SMALL_PPO, "critic.export=true")
    run.core.close()
    core = build_core(run.run_file, run.plugins, run.run_dir, 1, train=False)
    assert core.strategy.critic is None
    core.close()
    strategy = build_exporter(run.run_file, run.plugins, run.run_dir)
    assert strategy.critic is not None
    strategy.close()
