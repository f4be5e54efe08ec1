"""A shaper whose work the advantage takes out again is refused, or left out where only the file asked for it."""

import logging

import pytest
from lightrft_core.old_command import import_command

BASE = "model: {path: ./model}\ntask: {path: ./train.jsonl}\nrewards: [exact]\n"
NORM = BASE + "shapers: [running_norm]\n"
REASON = (
    "has no effect: the advantage divides by the spread of the rewards, whatever their scale; rloo, reinforce and "
    "group_norm with std: none keep it. Leave it out."
)
UNDOING = (
    "group_norm",
    "{use: group_norm, std: batch}",
    "{use: group_norm, std: none, normalize: true}",
    "cpgd",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "{use: rloo, normalize: true}",
    "{use: reinforce, normalize: true}",
)
KEEPING = (
    "{use: group_norm, std: none}",
    "{use: group_norm, eps: 0.1}",
    "{use: cpgd, weight: equal}",
    "{use: cpgd, weight: clip_filter}",
    "rloo",
    "reinforce",
    "{use: gae, normalize: true}",
)


@pytest.mark.parametrize("advantage", UNDOING)
def test_a_running_norm_before_an_advantage_that_divides_by_a_spread_is_refused(run_problems, advantage):
    (text,) = run_problems(NORM + f"advantage: {advantage}\n")
    assert text == f"run.yaml:4:11 shapers[running_norm]: {REASON}"


@pytest.mark.parametrize("advantage", KEEPING)
def test_it_is_taken_where_the_advantage_keeps_the_scale(load_run, advantage):
    run = load_run(NORM + f"advantage: {advantage}\n")
    assert [shaper.name for shaper in run.shapers] == ["running_norm"]
    assert load_run(run.to_yaml()) == run


def test_the_flag_is_refused_by_its_own_name(run_problems):
    (text,) = run_problems(BASE, flags=("--advantage_estimator", "group_norm", "--reward_running_norm"))
    assert text == f"--reward_running_norm (shapers[running_norm]): {REASON}"


def test_an_old_scripts_second_normalisation_of_advantages_is_told_first(run_problems):
    flags = ("--advantage_estimator", "group_norm", "--reward_running_norm", "--advantages_norm")
    (text,) = run_problems(BASE, flags=flags)
    assert "a second normalisation" in text


OLD = (
    "python train.py --pretrain model --prompt_data train.jsonl --advantage_estimator group_norm --reward_running_norm"
)


def test_an_imported_script_is_told_that_it_is_left_out(plugins, run_folder):
    found = import_command(f"{OLD} --use_kl_loss", plugins)
    assert "running_norm" not in found.text
    assert any(
        line.startswith("--reward_running_norm (shapers[running_norm]): has no effect") for line in found.dropped
    )


def test_an_imported_script_keeps_it_beside_lightrfts_kl_in_the_reward(plugins, run_folder):
    found = import_command(OLD, plugins)
    assert "use: running_norm" in found.text
    assert found.dropped == []


@pytest.mark.parametrize(
    "rest",
    [
        "kl: {use: k1, place: reward}\n",
        "selectors: [{use: best_of, min_reward: 0.5}]\n",
    ],
)
def test_it_is_taken_where_something_else_sees_the_scale(load_run, rest):
    assert load_run(NORM + rest).shapers[0].name == "running_norm"


def test_it_is_taken_before_a_shaper_that_sees_the_scale_and_not_behind_it(load_run, run_problems):
    assert len(load_run(BASE + "shapers: [running_norm, {use: clip, limit: 2.0}]\n").shapers) == 2
    (text,) = run_problems(BASE + "shapers: [{use: clip, limit: 2.0}, running_norm]\n")
    assert "shapers[running_norm]" in text


@pytest.mark.parametrize("advantage", ["rloo", "{use: group_norm, std: none}"])
def test_subtracting_a_mean_before_a_baseline_is_refused(run_problems, advantage):
    (text,) = run_problems(BASE + f"shapers: [{{use: running_norm, minus_mean: true}}]\nadvantage: {advantage}\n")
    assert "shapers[running_norm].minus_mean: has no effect: the advantage subtracts a mean anyway." in text


def test_subtracting_a_mean_is_taken_without_a_baseline(load_run):
    run = load_run(BASE + "shapers: [{use: running_norm, minus_mean: true}]\nadvantage: reinforce\n")
    assert run.shapers[0].config.minus_mean


def test_discounting_sees_the_shift_that_whitening_would_undo(load_run, run_problems):
    text = BASE + "shapers: [{use: running_norm, minus_mean: true}]\nadvantage: {use: reinforce_pp, gamma: GAMMA}\n"
    assert load_run(text.replace("GAMMA", "0.9")).shapers[0].config.minus_mean
    assert run_problems(text.replace("GAMMA", "1.0"))[0].startswith("run.yaml:4:11 shapers[running_norm]: has no")


def test_what_the_file_meant_for_another_advantage_is_left_out_with_a_warning(load_run, caplog):
    text = "algorithm: reinforce\n" + NORM
    with caplog.at_level(logging.WARNING):
        run = load_run(text, sets=("algorithm=grpo",))
    assert run.shapers == ()
    assert any(message.startswith("shapers[running_norm] is left out: the advantage") for message in caplog.messages)
    assert load_run(run.to_yaml()) == run


def test_an_option_that_the_file_meant_for_another_advantage_is_left_out(load_run):
    text = BASE + "shapers: [{use: running_norm, minus_mean: true, eps: 1.0e-4}]\nadvantage: reinforce\n"
    run = load_run(text, sets=("advantage=rloo",))
    assert (run.shapers[0].config.minus_mean, run.shapers[0].config.eps) == (False, 1e-4)
    assert load_run(run.to_yaml()) == run
