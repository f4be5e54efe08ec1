"""`lightrft estimate`: memory, batch and advice, from the command line, with nothing loaded and nothing written."""

import json
import logging

import pytest
from lightrft_core.cli.main import run

RUN_FILE = """
algorithm: grpo
model: {path: MODEL}
task: {path: ./train.jsonl}
sampler: {group_size: 4, prompts_per_step: 4, max_new_tokens: 64}
rewards: [exact]
optim: {batch_size: 8}
run: {steps: 3}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, quickstart_model):
    (tmp_path / "run.yaml").write_text(RUN_FILE.replace("MODEL", str(quickstart_model)))
    (tmp_path / "train.jsonl").write_text('{"prompt": "How many are 2 and 2?", "ground_truth": "4"}\n' * 5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.fixture
def estimate(folder, capsys):
    """Exit code and output of `lightrft estimate WORDS`."""

    def call(*words):
        try:
            code = run(["estimate", *words])
        finally:
            logging.getLogger().handlers.clear()
        done = capsys.readouterr()
        return code, done.out, done.err

    return call


def test_the_command_is_there_and_writes_nothing(lightrft, folder):
    done = lightrft("estimate", "run.yaml", "--gpu-memory", "80GB", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    assert "peak       " in done.stdout
    assert not (folder / "runs").exists()


def test_it_tells_memory_and_batch_and_advises(estimate):
    code, told, _ = estimate("run.yaml", "--processes", "2")
    assert code == 0
    assert "4 prompts x 4 = 16 samples / 8 per update = 2 updates per rollout" in told
    assert "2 processes on CPUs, single, float32" in told
    for word in ("weights", "gradients", "optimizer", "activations", "cache", "total", "peak       "):
        assert word in told
    assert "--set strategy.checkpointing=true (a third more time for training)" in told


def test_as_json_it_is_all_in_bytes_and_settings_and_flags_of_train_count(estimate):
    words = ("run.yaml", "--json", "--gpus", "2", "--gpu-memory", "80GB")
    plain = json.loads(estimate(*words)[1])
    changed = json.loads(estimate(*words, "--n_samples_per_prompt", "8", "--set", "strategy.precision=fp32")[1])
    assert (plain["device"], plain["dtype"], plain["ranks"], plain["fits"]) == ("cuda", "bfloat16", 2, True)
    assert plain["phases"]["train"]["weights"] == 2 * 2 * plain["parameters"]["total"]  # the reference's too
    assert (changed["dtype"], changed["batch"]["samples_per_step"]) == ("float32", 32)
    assert plain["peak"]["total"] == max(memory["total"] for memory in plain["phases"].values())


def test_it_exits_1_where_the_run_does_not_fit(estimate):
    code, told, _ = estimate("run.yaml", "--gpus", "1", "--gpu-memory", "550MB")
    assert code == 1
    assert "does not fit into 550 MB of which 10% stay free (495 MB)" in told
    assert "together   all of these are not enough" in told


def test_where_it_fits_nothing_is_advised(estimate):
    code, told, _ = estimate("run.yaml", "--gpus", "1", "--gpu-memory", "80GB")
    assert code == 0
    assert "fits into 80,000 MB" in told
    assert "what would help" not in told


def test_recipes_and_folders_of_runs_are_estimated_too(estimate, folder):
    words = ("--json", "--gpu-memory", "80GB")
    _, recipe, _ = estimate("quickstart", *words)
    (folder / "runs/mine").mkdir(parents=True)
    (folder / "runs/mine/run.yaml").write_text((folder / "run.yaml").read_text().replace("./train", "../../train"))
    code, mine, _ = estimate("runs/mine", *words)
    assert code == 0
    assert json.loads(recipe)["batch"]["samples_per_step"] == 128
    assert json.loads(mine)["batch"]["samples_per_step"] == 16


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "loss.clip_hihg=1"], "Did you mean 'clip_high'?"),
        (["--gpus", "3"], "4 prompts cannot be shared evenly by 3 ranks"),
        (["--gpu-memory", "lots"], "--gpu-memory: 'lots' is no size. Write 80GB"),
        (["--set", "strategy.device=cpu", "--gpus", "1"], "--gpus: has no effect: strategy.device is cpu."),
        (["--processes", "2", "--set", "strategy.sequence_parallel=2"], "2 ranks cannot share a sequence"),
        (["--processes", "4", "--set", "strategy.sequence_parallel=3"], "3 ranks cannot share each sequence"),
        (["--set", "strategy.use=fsdp2", "--set", "strategy.tensor_parallel=2", "--gpus", "2"], "cannot share a layer"),
    ],
)
def test_mistakes_are_told_as_everywhere(estimate, words, told):
    code, _, error = estimate("run.yaml", *words)
    assert code == 2
    assert told in error
    assert "Traceback" not in error
