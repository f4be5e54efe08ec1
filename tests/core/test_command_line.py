import pytest
from lightrft_core.command_line import resolve_command_line
from lightrft_core.errors import Problems
from lightrft_core.plugins import Plugins


def sentences(*arguments):
    with pytest.raises(Problems) as caught:
        resolve_command_line(*arguments)
    return [str(problem) for problem in caught.value.problems]


def test_a_file_sets_and_flags_are_resolved_together(run_folder):
    run, plugins = resolve_command_line("run.yaml", ["loss.clip_high=0.3"], ["--n_samples_per_prompt", "4"])
    assert run.loss.config.clip_high == 0.3
    assert run.sampler.config.group_size == 4
    assert isinstance(plugins, Plugins)


def test_sets_win_over_flags(run_folder):
    run, _ = resolve_command_line("run.yaml", ["sampler.group_size=2"], ["--n_samples_per_prompt", "4"])
    assert run.sampler.config.group_size == 2


def test_the_run_file_may_stand_after_the_flags(run_folder):
    run, _ = resolve_command_line(None, [], ["--n_samples_per_prompt", "4", "run.yaml"])
    assert (run.sampler.config.group_size, run.algorithm) == (4, "grpo")
    run, _ = resolve_command_line("--n_samples_per_prompt", [], ["4", "run.yaml"])
    assert run.sampler.config.group_size == 4


def test_a_recipe_goes_by_its_name(run_folder):
    run, _ = resolve_command_line("quickstart", [], [])
    assert run.origins["algorithm"].startswith("recipes/quickstart.yaml:") if run.algorithm else True
    assert any(source.startswith("recipes/quickstart.yaml:") for source in run.origins.values())


def test_flags_alone_make_a_run(run_folder):
    words = ["--pretrain", "model", "--prompt_data", "train.jsonl", "algorithm=grpo", "rewards=[exact]"]
    run, _ = resolve_command_line(None, [], words)
    assert (run.algorithm, [item.name for item in run.rewards]) == ("grpo", ["exact"])


def test_mistakes_in_file_flags_and_sets_are_told_together(run_folder):
    (run_folder / "run.yaml").write_text((run_folder / "run.yaml").read_text() + "optim: {lr: fast}\n")
    assert sentences("run.yaml", ["optim.beta=1", "nonsense"], ["--sed", "3"]) == [
        "run.yaml:5:13 optim.lr: 'fast' is not a number.",
        "--sed: no such flag. Did you mean --seed?",
        "--set: 'nonsense' is not key=value. For example --set optim.lr=1e-6.",
        "--set optim.beta: no such option. Did you mean 'betas'?",
    ]


def test_a_missing_run_file_is_told_alone(run_folder):
    (text,) = sentences("rn.yaml", [], [])
    assert text.startswith("rn.yaml: no such run file or recipe. Did you mean 'run.yaml'?")


def test_a_second_word_is_not_taken_for_a_run_file(run_folder):
    (text,) = sentences("run.yaml", [], ["other.yaml"])
    assert text == "command line: 'other.yaml' is neither a flag nor key=value. The run file is run.yaml."


def test_yaml_mistakes_are_told_with_the_flags(run_folder):
    (run_folder / "run.yaml").write_text("loss: [\n")
    texts = sentences("run.yaml", [], ["--sed", "3"])
    assert texts[0].startswith("run.yaml:2:1: not valid YAML: ")
    assert texts[1].startswith("--sed: no such flag.")


def test_nothing_at_all_says_what_is_needed(run_folder):
    texts = sentences(None, [], [])
    assert [text.partition(":")[0] for text in texts] == ["task.path", "model.path", "rewards"]
