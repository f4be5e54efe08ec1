"""Algorithms in a run file: they resolve, what does nothing is refused, and the command line's choice is taken."""

import logging

import pytest
from lightrft_core.plugins import Plugins

BASE = """\
model: {path: ./model}
task: {path: ./train.jsonl}
rewards: [exact]
"""
TUNED = "algorithm: grpo\n" + BASE + "loss: {clip_high: 0.28, aggregation: token_mean}\n"
ALGORITHMS = [offer.descriptor.name for offer in Plugins.load().offers("algorithm")]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_resolves_and_its_resolved_file_says_the_same(load_run, name):
    run = load_run(f"algorithm: {name}\n{BASE}")
    assert run.algorithm == name
    again = load_run(run.to_yaml())
    assert again == run
    assert again.to_yaml() == run.to_yaml()


def test_a_loss_per_sequence_refuses_an_aggregation(run_problems):
    (text,) = run_problems("algorithm: gspo\n" + BASE + "loss: {aggregation: token_mean}\n")
    assert text == "run.yaml:5:8 loss.aggregation: has no effect: one value per sequence is averaged."


def test_the_resolved_file_leaves_out_what_does_nothing(load_run):
    plain = load_run("algorithm: gmpo\n" + BASE).to_plain()
    assert "aggregation" not in plain["loss"] and "token_budget" not in plain["loss"]
    assert "eps" not in load_run("algorithm: dr_grpo\n" + BASE).to_plain()["advantage"]
    assert load_run("algorithm: grpo\n" + BASE).to_plain()["advantage"]["eps"] == 1e-6


def test_gspo_per_token_takes_an_aggregation(load_run):
    run = load_run("algorithm: gspo\n" + BASE + "loss: {level: token, aggregation: token_mean}\n")
    assert run.to_plain()["loss"]["aggregation"] == "token_mean"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("advantage: {use: group_norm, std: none, eps: 0.1}", "advantage.eps: has no effect: std: none divides by"),
        ("advantage: {use: cpgd, max_weight: 2.0}", "advantage.max_weight: has no effect: only clip_filter has"),
        ("loss: {use: cpgd, drift_coef: 0.0, drift_cap: 1.0}", "loss.drift_cap: has no effect: drift_coef is 0"),
        (
            "shapers: [{use: length_penalty, shape: linear, right_from: 1.0}]",
            "shapers[length_penalty].right_from: has no effect: shape is linear.",
        ),
    ],
)
def test_an_option_that_does_nothing_is_refused(run_problems, section, said):
    (text,) = run_problems(f"{BASE}{section}\n")
    assert said in text


def test_lists_leave_out_what_does_nothing_too(load_run):
    run = load_run(BASE + "shapers: [{use: length_penalty, shape: linear}]\n")
    assert run.to_plain()["shapers"] == [{"use": "length_penalty", "shape": "linear", "factor": 0.1}]


def test_the_command_lines_algorithm_brings_its_own_loss(load_run, caplog):
    """Options that the file meant for another loss do not reach it."""
    with caplog.at_level(logging.WARNING):
        run = load_run(TUNED, sets=("algorithm=gspo",))
    assert (run.loss.name, run.loss.config.clip_low, run.loss.config.clip_high) == ("gspo", 3e-4, 4e-4)
    assert caplog.messages == ["run.yaml:5:19: loss.clip_high goes with clip, --set takes gspo"]


def test_what_every_loss_has_stays(load_run):
    assert load_run(TUNED, sets=("algorithm=sapo",)).loss.config.aggregation == "token_mean"


def test_an_algorithm_with_the_files_own_loss_keeps_the_files_options(load_run):
    run = load_run(TUNED, sets=("algorithm=dr_grpo",))
    assert (run.loss.config.clip_high, run.loss.config.aggregation) == (0.28, "token_mean")


def test_a_loss_that_the_file_names_gives_way_to_the_command_lines_algorithm(load_run):
    text = BASE + "loss: {use: clip, clip_high: 0.5}\n"
    assert load_run(text, sets=("algorithm=cispo",)).loss.config.clip_high == 4.0
    assert load_run(text, sets=("algorithm=dapo",)).loss.config.clip_high == 0.5


def test_in_one_file_what_it_says_wins_over_its_algorithm(load_run):
    run = load_run("algorithm: gspo\n" + BASE + "loss: {clip_high: 0.01}\nadvantage: rloo\n")
    assert (run.loss.name, run.loss.config.clip_high, run.advantage.name) == ("gspo", 0.01, "rloo")


def test_sets_win_over_the_command_lines_algorithm(load_run):
    run = load_run(TUNED, sets=("algorithm=gspo", "loss.clip_high=0.002"))
    assert (run.loss.name, run.loss.config.clip_high) == ("gspo", 0.002)


def test_a_kl_that_the_file_turned_off_stays_off(load_run):
    assert load_run(TUNED + "kl: null\n", sets=("algorithm=reinforce_pp",)).kl is None
    assert load_run(TUNED, sets=("algorithm=reinforce_pp",)).kl.name == "k1"
