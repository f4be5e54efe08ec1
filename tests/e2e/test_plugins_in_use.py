"""Plugins and rewards of strangers in a run: broken ones do no harm unless they are named, good ones train."""

import json

import pytest
from lightrft_core.store import RolloutStore

TRAIN_TWO = ("--set", "run.steps=2", "--set", "selftest.enabled=false", "--set", "evaluation.at_start=false")

LENGTH_PLUGIN = """
from lightrft_core import hookimpl
from lightrft_core.data import LossOutput, Score
from lightrft_core.descriptors import Component, RewardComponent
from lightrft_core.sections import LossSection, RewardSection

LIGHTRFT_API = 1


class PushConfig(LossSection):
    'Options of push.'

    scale: float = 1.0
    'Factor of every value.'


def push(inputs, *, config):
    return LossOutput(-config.scale * inputs.advantages_BT * inputs.logprobs_BT)


class BrevityConfig(RewardSection):
    'Options of brevity.'

    goal: int = 10
    'Length that scores best.'


class Brevity:
    def __init__(self, config):
        self.goal = config.goal

    def score(self, requests):
        return [Score(-abs(len(request.response) - self.goal) / self.goal) for request in requests]


@hookimpl
def lightrft_losses():
    yield Component(name='push', target='mine:push', config='mine:PushConfig', summary='Plain policy gradient.')


@hookimpl
def lightrft_rewards():
    yield RewardComponent(name='brevity', target='mine:Brevity', config='mine:BrevityConfig', summary='Short answers.')
"""

# Scores most answers with 1, and some, chosen by their text, in a way that no reward should.
JUDGE = """
import time


def judge(responses):
    return [judge_one(sum(response.encode()) % 8) for response in responses]


def judge_one(number):
    JUDGEMENT
    return 1.0
"""
ODD = """
    if number == 0:
        raise KeyError('no such answer')
    if number < 3:
        return float('nan') if number == 1 else None
"""


@pytest.fixture
def broken(plugin_site):
    """An environment in which the five broken plugins are installed."""
    plugin_site.add_broken()
    return {"PYTHONPATH": str(plugin_site.path)}


def test_five_broken_plugins_are_rows_in_the_list(lightrft, broken):
    listed = lightrft("plugins", "list", "--json", env=broken)
    assert listed.returncode == 0, listed.stderr
    table = lightrft("plugins", "list", env=broken).stdout
    for name, state in {
        "bad-import": "broken",
        "bad-hook": "broken",
        "bad-name": "broken",
        "too-new": "too new",
        "clashing": "clash",
    }.items():
        assert any(name in line and state in line for line in table.splitlines()), (name, table)
    for reason in ("a_package_that_nobody_has", "the licence server is down", "lightrft_looses"):
        assert reason in listed.stdout


def test_training_goes_on_beside_five_broken_plugins(forked, broken, tmp_path, tiny_run):
    (tmp_path / "run.yaml").write_text(tiny_run)
    done = forked("train", "run.yaml", *TRAIN_TWO, env=broken)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        pytest.param("loss: {use: bad_hook_loss}", ["bad-hook", "the licence server is down"], id="hook_that_raises"),
        pytest.param(
            "loss: {use: bad_name_loss}",
            ["(bad-import, bad-name, too-new)", "lightrft plugins list"],
            id="unknown_hook",
        ),
        pytest.param(
            "loss: {use: 'bad-import:anything'}", ["bad-import", "a_package_that_nobody_has"], id="import_error"
        ),
        pytest.param("loss: {use: 'too-new:too_new_dream'}", ["too-new", "99"], id="too_new_api"),
        pytest.param("kl: {use: k2}", ["k2", "lightrft-algos:k2", "clashing:k2"], id="name_clash"),
    ],
)
def test_using_a_broken_plugin_is_an_error_of_one_line_that_says_what_to_do(
    lightrft, broken, tmp_path, tiny_run, section, expected
):
    base = "\n".join(line for line in tiny_run.splitlines() if not line.startswith("kl:"))
    (tmp_path / "run.yaml").write_text(f"{base}\n{section}\n")
    done = lightrft("train", "run.yaml", env=broken)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    message, count = done.stderr.partition("error: ")[2].splitlines()
    assert count == "1 problem, nothing started."
    assert [part for part in expected if part not in message] == [], message


def test_a_single_file_plugin_with_a_loss_and_a_reward_trains(forked, tmp_path, tiny_run, read_metrics):
    (tmp_path / "mine.py").write_text(LENGTH_PLUGIN)
    text = tiny_run.replace("rewards: [gsm8k]", "rewards: [{use: brevity, goal: 5}]")
    (tmp_path / "run.yaml").write_text(f"{text}\nplugins: [./mine.py]\nloss: {{use: push, scale: 0.5}}\n")
    done = forked("train", "run.yaml", *TRAIN_TWO)
    assert done.returncode == 0, done.stderr
    steps = [line for line in read_metrics(tmp_path / "runs/tiny") if "train/loss" in line]
    assert len(steps) == 2
    assert all(line["reward/brevity"] == line["reward/mean"] < 0 for line in steps)
    manifest = json.dumps(json.loads((tmp_path / "runs/tiny/manifest.json").read_text()))
    assert "mine" in manifest


def test_samples_that_a_reward_cannot_score_are_left_out_and_the_run_goes_on(forked, tmp_path, tiny_run, read_metrics):
    done = _train_with_judge(forked, tmp_path, tiny_run, ODD, "--set", "run.max_unscored_fraction=1.0")
    assert done.returncode == 0, done.stderr
    steps = [line for line in read_metrics(tmp_path / "runs/tiny") if "train/loss" in line]
    assert len(steps) == 2
    assert all(0 < line["reward/unscored_fraction"] < 1 for line in steps)
    assert all(line["reward/mean"] == 1.0 for line in steps)
    assert "unscored: reward 'judge' on prompt 'train-0-" in done.stderr
    store = RolloutStore(tmp_path / "runs/tiny/rollouts.sqlite", readonly=True)
    unscored = [row for row in store.search(limit=-1) if row.unscored is not None]
    store.close()
    assert all(row.reward is None and row.unscored.startswith("reward 'judge' on prompt") for row in unscored)
    reasons = " ".join(row.unscored for row in unscored)
    assert [word for word in ("no such answer", "nan", "None") if word not in reasons] == []


def test_a_reward_that_hangs_is_ended_after_its_time_limit(forked, tmp_path, tiny_run, read_metrics):
    small = ("--set", "sampler.prompts_per_step=1", "--set", "optim.batch_size=4", "--set", "run.steps=1")
    small += ("--set", "rewards[judge].timeout=0.5", "--set", "run.max_unscored_fraction=1.0")
    done = _train_with_judge(forked, tmp_path, tiny_run, "time.sleep(3600)", *small)
    assert done.returncode == 0, done.stderr
    assert "took longer than 0.5 s (its `timeout`)" in done.stderr
    assert [line["reward/unscored_fraction"] for line in read_metrics(tmp_path / "runs/tiny")] == [1.0]


def test_a_reward_that_cannot_score_too_many_samples_stops_the_run_and_says_why(forked, tmp_path, tiny_run):
    limits = ("--set", "run.max_unscored_fraction=0.05", "--set", "run.unscored_patience=2")
    done = _train_with_judge(forked, tmp_path, tiny_run, ODD, *limits)
    assert done.returncode == 1, done.stderr
    message = done.stderr.partition("error: ")[2]
    assert "of the samples could not be scored, in 2 steps in a row" in message
    assert "run.max_unscored_fraction" in message
    assert "Traceback" not in done.stderr


def _train_with_judge(forked, folder, tiny_run, judgement, *words):
    (folder / "judge.py").write_text(JUDGE.replace("JUDGEMENT", judgement))
    text = tiny_run.replace("rewards: [gsm8k]", "rewards: [{use: python, name: judge, path: './judge.py:judge'}]")
    (folder / "run.yaml").write_text(text.replace("evaluation: {", "evaluation: {at_end: false, "))
    return forked("train", "run.yaml", *TRAIN_TWO, *words)
