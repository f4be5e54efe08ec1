"""`lightrft launch`: the commands for each node, the job script, and what is refused before anything is made."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.cli.launch_slurm import Job, script_text
from lightrft_core.cli.main import run
from lightrft_core.errors import UserError
from lightrft_core.rundir import RunDir

RUN = ("run.yaml", "--set", "run.name=one", "--set", "sampler.prompts_per_step=16", "--set", "sampler.group_size=4")


@pytest.fixture
def launch(run_folder, capsys):
    """Runs `lightrft launch WORDS`; returns exit code, stdout and stderr."""

    def call(*words):
        code = run(["launch", *words])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def no_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def job(**changes):
    given = {"run": Path("/shared/runs/one"), "nodes": 2, "gpus_per_node": 8, "cpus_per_gpu": 4, "save_seconds": 600}
    return script_text(Job(**{**given, "is_requeued": False, **changes}))


def directives(text):
    return dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if line.startswith("#SBATCH")
    )


def test_torchrun_prints_a_command_for_each_node(launch, run_folder):
    code, out, _ = launch(
        "torchrun", *RUN, "--nodes", "2", "--gpus-per-node", "4", "--host", "node0", "--port", "29501"
    )
    assert code == 0
    commands = [shlex.split(line) for line in out.splitlines() if line and not line.startswith("#")]
    folder = str(run_folder / "runs/one")
    options = ["--nnodes=2", "--nproc-per-node=4", "--master-addr=node0", "--master-port=29501"]
    for rank, command in enumerate(commands):
        assert command[:4] == [sys.executable, "-m", "lightrft_core.torchrun", folder]
        assert sorted(command[4:]) == sorted([*options, f"--node-rank={rank}"])
    assert len(commands) == 2
    assert f"8 ranks on 2 machines. Each must see {folder}" in out
    assert RunDir(Path(folder)).read_status().state == "new"


def test_the_batch_is_checked_for_all_ranks_before_a_folder_is_made(launch, run_folder):
    code, _, err = launch("torchrun", *RUN, "--nodes", "3", "--gpus-per-node", "1")
    assert code == 2
    assert "3 ranks" in err
    assert not (run_folder / "runs").exists()


def test_a_run_that_exists_is_launched_again_by_resume(launch):
    launch("torchrun", *RUN)
    assert "go on with that run" in launch("torchrun", *RUN)[2].lower()
    code, out, _ = launch("torchrun", "--resume", "one", "--nodes", "1", "--gpus-per-node", "1")
    assert (code, "--nnodes=1" in out) == (0, True)


def test_under_resume_the_same_command_submits_a_run_again(launch, run_folder, no_slurm):
    words = ("slurm", "run.yaml", "--load_checkpoint", "--nodes", "2", "--gpus-per-node", "1", "--requeue")
    scripts = [launch(*words, "--print-only") for _ in range(2)]
    assert [code for code, _, _ in scripts] == [0, 0]
    assert scripts[0][1] == scripts[1][1]
    assert f"run={run_folder}/runs/run\n" in scripts[0][1]
    assert "scontrol requeue" in scripts[0][1]
    assert launch(*words, "--print-only", "--sbatch", "what is this")[0] == 2
    assert RunDir(run_folder / "runs/run").is_run  # it may hold checkpoints: only a new run's folder is freed


def test_without_slurm_nothing_is_made_and_print_only_is_offered(launch, run_folder, no_slurm):
    code, _, err = launch("slurm", *RUN)
    assert code == 3
    assert "there is no sbatch on this machine" in err
    assert "--print-only" in err
    assert not (run_folder / "runs").exists()


def test_print_only_writes_and_prints_the_script(launch, run_folder, no_slurm):
    code, out, err = launch(
        *("slurm", *RUN, "--nodes", "2", "--gpus-per-node", "2", "--cpus-per-gpu", "6", "--partition", "gpu"),
        *("--account", "rl", "--time", "4:00:00", "--job-name", "mine", "--sbatch", "constraint=h100&ib"),
        *("--sbatch", "exclusive", "--save-time", "5m", "--requeue", "--print-only"),
    )
    assert code == 0
    path = run_folder / "runs/one/job.sh"
    assert path.read_text().strip() == out.strip()
    assert f"script  {path}" in err
    assert directives(out) == {
        "job-name": "mine",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "2",
        "cpus-per-task": "12",
        "output": f"{run_folder}/runs/one/logs/slurm-%j.txt",
        "open-mode": "append",
        "signal": "USR1@300",
        "requeue": "",
        "partition": "gpu",
        "account": "rl",
        "time": "4:00:00",
        "constraint": "'h100&ib'",
        "exclusive": "",
    }
    assert (run_folder / "runs/one/logs").is_dir()


def test_the_script_goes_where_the_user_says(launch, run_folder, no_slurm):
    assert launch("slurm", *RUN, "--print-only", "--script", "my.sh")[0] == 0
    assert (run_folder / "my.sh").read_text().startswith("#!/usr/bin/env bash\n#SBATCH")


def test_a_line_that_is_no_option_of_sbatch_is_refused_and_the_name_stays_free(launch, run_folder, no_slurm):
    code, _, err = launch("slurm", *RUN, "--print-only", "--sbatch", "what is this")
    assert code == 2
    assert "'what is this' is no option of sbatch" in err
    assert not (run_folder / "runs/one").exists()


def test_a_save_time_that_is_no_duration_is_refused(launch, no_slurm):
    code, _, err = launch("slurm", *RUN, "--print-only", "--save-time", "soon")
    assert code == 2
    assert "--save-time: 'soon' is not a duration" in err


def test_sbatchs_refusal_is_told_with_its_words(launch, run_folder, monkeypatch, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    code, _, err = launch("slurm", *RUN)
    assert code == 3
    assert "sbatch refused the job: sbatch: error: invalid partition" in err
    assert f"sbatch {run_folder}/runs/one/job.sh" in err


@pytest.mark.parametrize("is_requeued", [True, False])
def test_the_script_is_bash(tmp_path, is_requeued):
    path = tmp_path / "job.sh"
    path.write_text(job(is_requeued=is_requeued, run=Path("/a b/$(rm -rf x)/it's")))
    subprocess.run(["bash", "-n", path], check=True)


def test_paths_are_quoted_for_bash_and_for_sbatch():
    text = job(run=Path("/a b/50%"))
    assert "run='/a b/50%'" in text
    assert directives(text)["output"] == "'/a b/50%%/logs/slurm-%j.txt'"


def test_without_gpus_a_node_has_one_rank():
    text = job(gpus_per_node=0)
    assert "gpus-per-node" not in directives(text)
    assert "--nproc-per-node=1" in text


def test_the_users_line_wins_over_ours():
    assert directives(job(lines=("nodes=2-4", "signal=USR1@60")))["signal"] == "USR1@60"


def test_a_line_break_in_a_line_is_refused():
    with pytest.raises(UserError, match="is no option of sbatch"):
        job(lines=("comment=a\nrm -rf /",))


def test_only_a_requeued_job_asks_for_it():
    assert "scontrol requeue" in job(is_requeued=True)
    assert "scontrol requeue" not in job(is_requeued=False)
    assert "no-requeue" in directives(job(is_requeued=False))


SRUN = f"""#!{sys.executable}
import os, sys
from pathlib import Path
from lightrft_core.checkpoints import Checkpoints
for step in map(int, os.environ["SAVED"].split()):
    Checkpoints(Path(os.environ["ROOT"]), keep=9).save(step, {{}}, lambda folder: None)
sys.exit(75)
"""


@pytest.fixture
def requeued(tmp_path):
    """Starts the script of a job that saves steps and is stopped; returns what it prints, on a faked cluster."""
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\necho scontrol $1\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    run_dir = RunDir.create(tmp_path / "my runs", "one")

    def start(*saved):
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ROOT": str(run_dir.checkpoints), "SLURM_JOB_ID": "4242"}
        env |= {"SAVED": " ".join(map(str, saved)), "SLURM_JOB_NODELIST": "node0", "SLURM_CPUS_PER_TASK": "1"}
        text = job(run=run_dir.path, is_requeued=True)
        done = subprocess.run(["bash", "-c", text], env={**os.environ, **env}, capture_output=True, text=True)
        assert done.returncode == 75, done.stderr
        return [line for line in (done.stdout + done.stderr).splitlines() if "queued" in line or "requeue" in line]

    start.run_dir = run_dir
    return start


def goes_on_from(run_dir, step):
    return [f"queued again: goes on from {run_dir.checkpoints}/step_{step:06d}", "scontrol requeue"]


NOT_AGAIN = ["not queued again: no step was finished within the time limit; give it more --time"]


def test_a_job_that_saved_further_is_queued_again_and_one_that_did_not_is_not(requeued):
    assert requeued(3, 5) == goes_on_from(requeued.run_dir, 5)
    assert requeued(5) == NOT_AGAIN
    assert requeued() == NOT_AGAIN
    assert requeued(1_000_000) == goes_on_from(requeued.run_dir, 1_000_000)


@pytest.mark.parametrize("step", [15, 20])
def test_a_job_that_went_back_past_newer_weights_is_judged_by_what_it_goes_on_from(requeued, step):
    checkpoints = Checkpoints(requeued.run_dir.checkpoints, keep=9)
    for saved, state in ((12, {}), (20, None), (30, None)):
        checkpoints.save(saved, state, lambda folder: None)
    assert requeued() == NOT_AGAIN
    assert requeued(step) == goes_on_from(requeued.run_dir, step)
    assert requeued(step) == NOT_AGAIN


def test_a_job_that_went_back_past_a_damaged_checkpoint_is_queued_again(requeued):
    checkpoints = Checkpoints(requeued.run_dir.checkpoints, keep=9)
    for saved in (12, 20):
        checkpoints.save(saved, {}, lambda folder: None)
    (requeued.run_dir.checkpoints / "step_000020/state.json").write_text("[]")
    assert requeued(15) == goes_on_from(requeued.run_dir, 15)


def test_without_ray_train_it_says_what_to_install(launch, run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = launch("ray", *RUN)
    assert code == 3
    assert "pip install 'lightrft-core[ray]'" in err
    assert not (run_folder / "runs").exists()
