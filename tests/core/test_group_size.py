"""A group of one has no siblings to compare: what needs them is refused before anything is loaded."""

import pytest

BASE = "model: {path: ./model}\ntask: {path: ./train.jsonl}\nrewards: [exact]\n"


@pytest.mark.parametrize("advantage", ["group_norm", "rloo"])
def test_an_advantage_that_compares_siblings_refuses_a_group_of_one(run_problems, advantage):
    text = f"{BASE}advantage: {advantage}\nsampler: {{group_size: 1}}\n"
    (problem,) = run_problems(text)
    assert f"sampler.group_size: 1 leaves advantage.{advantage} no siblings to compare: nothing would train." in problem
    assert problem.startswith("run.yaml:5:")


def test_a_filter_that_compares_siblings_refuses_it_too(run_problems):
    flags = ("--n_samples_per_prompt", "1", "--dynamic_sampling")
    (problem,) = run_problems(BASE + "advantage: reinforce\n", flags=flags)
    assert "--n_samples_per_prompt (sampler.group_size): 1 leaves filters.spread no siblings" in problem


def test_an_advantage_without_siblings_takes_a_group_of_one(load_run):
    run = load_run(BASE + "advantage: reinforce\nsampler: {group_size: 1}\n")
    assert run.sampler.config.group_size == 1
