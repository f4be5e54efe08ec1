"""`lightrft train quickstart`: a newcomer's first command learns, without a network, and says what to try next."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

NO_NETWORK = """
import os, socket


def refuse(*arguments, **options):
    with open(os.environ["CALLS_OUT"], "a") as file:
        file.write(f"{arguments}\\n")
    raise OSError("there is no network here")


socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@dataclass(frozen=True)
class Quickstart:
    """One run of it: what it printed, and where it is."""

    stdout: str
    stderr: str
    run: Path
    calls: Path

    @property
    def lines(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]

    @property
    def evaluations(self) -> dict[int, dict[str, float]]:
        return {int(line["step"]): line for line in self.lines if "eval/accuracy" in line}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory, lightrft_in) -> Quickstart:
    """Runs it in a process that cannot open a connection."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(NO_NETWORK)
    calls = folder / "calls_out.txt"
    env = {"PYTHONPATH": str(folder / "site"), "CALLS_OUT": str(calls)}
    done = lightrft_in(folder)("train", "quickstart", env=env)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    return Quickstart(done.stdout, done.stderr, run, calls)


def test_held_out_accuracy_rises_by_40_points(quickstart):
    evaluations = quickstart.evaluations
    assert min(evaluations) == 0
    assert all(line["eval/num_scored"] == 256 for line in evaluations.values())
    assert evaluations[max(evaluations)]["eval/accuracy"] >= evaluations[0]["eval/accuracy"] + 0.40


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_held_out_accuracy_rises_by_40_points_in_half_the_steps_for_other_seeds(forked, tmp_path, read_metrics, seed):
    done = forked("train", "quickstart", "--set", f"run.seed={seed}", "--set", "run.steps=20", "--set", "run.name=seed")
    assert done.returncode == 0, done.stderr
    lines = read_metrics(tmp_path / "runs/seed")
    accuracies = {line["step"]: line["eval/accuracy"] for line in lines if "eval/accuracy" in line}
    assert accuracies[20] >= accuracies[0] + 0.40


def test_it_trains_for_less_than_90_seconds(quickstart):
    assert sum(value for line in quickstart.lines for name, value in line.items() if name.startswith("seconds/")) < 90


def test_it_opens_no_connection(quickstart):
    assert not quickstart.calls.exists()


def test_every_step_is_a_line_with_the_time_that_is_left(quickstart):
    for step in range(1, 41):
        assert re.search(rf"step {step}/40 .*reward .*accuracy .*tok/s .*generate .*eta", quickstart.stdout), step


def test_it_ends_with_a_table_of_before_and_after_and_samples_of_both(quickstart):
    first, last = (quickstart.evaluations[step]["eval/accuracy"] for step in (0, 40))
    assert re.search(rf"eval/\w+ .*{first:.3f}.*{last:.3f}.*\+{last - first:.3f}", quickstart.stdout)
    samples = quickstart.stdout.partition("samples")[2]
    assert "How many" in samples
    assert samples.index("[0]") < samples.index("[1]")


def test_it_says_that_the_self_test_passed_and_why_the_policy_loss_need_not_fall(quickstart):
    assert "self-test passed" in quickstart.stderr
    assert "on-policy every ratio is 1" in quickstart.stdout + quickstart.stderr


def test_it_draws_a_plot_and_names_it(quickstart):
    plot = quickstart.run / "plots/curves.png"
    assert f"plot  {plot}" in quickstart.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_each_of_the_next_three_commands_works(quickstart, forked, tmp_path):
    commands = re.findall(r"^  lightrft (.*)$", quickstart.stdout.partition("next:")[2], re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        done = forked(*command.split())
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    assert (tmp_path / "my-model/model.safetensors").exists()


def test_the_resolved_run_file_starts_the_same_run_again(quickstart, forked):
    done = forked("train", quickstart.run / "run.yaml", "--set", "run.name=again", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "row train-0-0" in done.stdout


def test_the_run_directory_holds_what_the_documentation_promises(quickstart):
    names = {path.name for path in quickstart.run.iterdir()}
    promised = {"run.yaml", "manifest.json", "metrics.jsonl", "log.txt", "rollouts.sqlite", "checkpoints", "plots"}
    assert promised <= names
    assert json.loads((quickstart.run / "STATUS").read_text())["state"] == "done"
