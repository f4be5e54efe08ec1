"""`lightrft train --dry-run` as a user reads it."""

import json

import pytest
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.cli.main import run
from lightrft_core.command_line import resolve_command_line
from lightrft_core.rundir import RunDir


@pytest.fixture
def dry_run(tmp_path, monkeypatch, capsys, quickstart_model):
    """Calls it on rows; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(rows, *sets, held_out=None):
        for name, some in (("train", rows), ("test", held_out)):
            if some is not None:
                (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        text = f"model: {{path: {quickstart_model}}}\ntask: {{path: ./train.jsonl}}\n"
        (tmp_path / "run.yaml").write_text(text)
        code = run(["train", "run.yaml", "--dry-run", *sets])
        return code, *capsys.readouterr()

    return call


ROW = {"prompt": "1+1?", "ground_truth": "2"}


def test_a_reward_is_called_on_its_own_example(dry_run):
    code, out, _ = dry_run([ROW], "rewards=[gsm8k]")
    assert code == 0
    assert "#### 2<|im_end|>" in out
    assert "imagined completion: the example of reward 'gsm8k' -> reward 1, gsm8k 1, accuracy 1" in out


def test_the_weightiest_reward_of_a_prompt_says_what_it_likes(dry_run):
    rewards = "rewards=[{use: gsm8k, weight: 0.5}, {use: math}, {use: format, weight: 9, labels: [other]}]"
    assert r"\boxed{2}<|im_end|>" in dry_run([ROW], rewards)[1]


def test_without_an_example_the_bare_reference_is_scored(dry_run):
    assert "imagined completion: the bare reference -> reward 1, exact 1" in dry_run([ROW], "rewards=[exact]")[1]


def test_a_prompt_without_a_reference_shows_an_empty_answer(dry_run):
    assert "an empty answer -> reward 0" in dry_run([{"prompt": "hi"}], "rewards=[{use: format, pattern: x}]")[1]


def test_other_scripts_and_control_codes_are_readable(dry_run):
    out = dry_run([{"prompt": "четыре 四 🤖 \u202e", "ground_truth": "2"}], "rewards=[exact]")[1]
    assert r"четыре 四 🤖 \u202e" in out


def test_every_prompt_is_checked_held_out_ones_too(dry_run):
    code, _, err = dry_run([ROW] * 5 + [{"prompt": "?"}], "rewards=[exact]")
    assert (code, "prompt 'train.jsonl:6' has no reference" in err) == (2, True)
    code, _, err = dry_run([ROW], "rewards=[exact]", "evaluation.task.path=./test.jsonl", held_out=[{"prompt": "?"}])
    assert (code, "prompt 'test.jsonl:1' has no reference" in err) == (2, True)


def test_missing_held_out_data_is_found(dry_run):
    code, _, err = dry_run([ROW], "rewards=[exact]", "evaluation.task.path=./nowhere.jsonl")
    assert (code, "there is no file or folder" in err) == (2, True)
    assert "Traceback" not in err


def test_it_says_whether_a_run_would_start_or_go_on(dry_run, tmp_path):
    words = ("rewards=[exact]", "--load_checkpoint")
    folder = tmp_path / "runs/run"
    assert f"run        would start in {folder}, where there is no run yet\n" in dry_run([ROW], *words)[1]
    assert not folder.exists()
    run_dir = RunDir.create(tmp_path / "runs", "run")
    run_dir.write_run_file(resolve_command_line("run.yaml", [], list(words))[0].to_yaml())
    assert f"run        would start anew in {folder}, which holds no checkpoint yet\n" in dry_run([ROW], *words)[1]
    for step in (1, 3):
        Checkpoints(run_dir.checkpoints, 9).save(step, {"step": step}, lambda folder: None)
    assert f"run        would go on in {folder} from step 3\n" in dry_run([ROW], *words)[1]
    assert "run        " not in dry_run([ROW], "rewards=[exact]")[1]
    code, _, err = dry_run([ROW], *words, "--seed", "7")
    assert (code, "run.seed: a run that goes on keeps its value" in err) == (2, True)
