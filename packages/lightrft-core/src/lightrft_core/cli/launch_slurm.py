"""A run as a SLURM job: the script that sbatch takes, written so that each start of it goes on with the run."""

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lightrft_core.contents import STATE
from lightrft_core.errors import EnvironmentUnfit, UserError

_BODY: Final = """
# Written by `lightrft launch slurm`. On each node torchrun starts {ranks} rank{s}; they meet at the first node.
# Every node must see this Python and this run at these paths, and whatever the run file names. The job has the
# environment of the shell that submits it: load modules and set variables there, or above the line of srun.
# Starting it again (sbatch THIS_FILE) goes on from the newest checkpoint.
python={python}
run={run}

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
resumable() {{ ls "$run"/checkpoints/step_*/{state} 2>/dev/null | sort; }}  # weights alone have no such file
before=$(resumable)
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{threads}}}"

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait={wait} \\
  "$python" -m lightrft_core.torchrun "$run" --nnodes={nodes} --nproc-per-node={ranks} \\
  --rdzv-backend=c10d --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}" &
step=$!

# SLURM signals the ranks itself; where only this shell is told, it passes that on. The run saves and exits 75.
pass_on() {{ told=yes; kill -s USR1 "$step" 2>/dev/null; }}
trap pass_on USR1 TERM
while told=no; wait "$step"; code=$?; [ "$told" = yes ]; do :; done
"""
_REQUEUE: Final = """
saved=$(comm -13 <(echo "$before") <(resumable) | sort --version-sort | tail -n 1)
if [ "$code" -eq 75 ] && [ -n "$saved" ]; then
  echo "queued again: goes on from $(dirname "$saved")"
  scontrol requeue "$SLURM_JOB_ID"
elif [ "$code" -eq 75 ]; then
  echo "not queued again: no step was finished within the time limit; give it more --time" >&2
fi
"""
_WAIT: Final = 120  # seconds that the other nodes have, once one has ended, to end by themselves


@dataclass(frozen=True)
class Job:
    """What is asked of SLURM. `lines` are the user's own `key=value` or `key`, which win over ours."""

    run: Path
    nodes: int
    gpus_per_node: int
    cpus_per_gpu: int
    save_seconds: int
    is_requeued: bool
    lines: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        """Of one node."""
        return max(self.gpus_per_node, 1)


def script_text(job: Job) -> str:
    """The whole script. Raises `UserError` for a line that is none."""
    body = _BODY.format(
        python=shlex.quote(sys.executable),
        run=shlex.quote(str(job.run)),
        ranks=job.ranks,
        s="s" if job.ranks > 1 else "",
        nodes=job.nodes,
        threads=job.cpus_per_gpu,
        state=STATE,
        wait=_WAIT,
    )
    lines = [_directive(name, value) for name, value in _options(job).items()]
    requeue = _REQUEUE if job.is_requeued else ""
    return "\n".join(["#!/usr/bin/env bash", *lines]) + f'\n{body}{requeue}exit "$code"\n'


def _options(job: Job) -> dict[str, str | None]:
    """Names and values of the #SBATCH lines; the user's come last and win."""
    options: dict[str, str | None] = {"job-name": job.run.name, "nodes": str(job.nodes), "ntasks-per-node": "1"}
    if job.gpus_per_node:
        options["gpus-per-node"] = str(job.gpus_per_node)
    options |= {
        "cpus-per-task": str(job.ranks * job.cpus_per_gpu),
        "output": f"{job.run / 'logs'}".replace("%", "%%") + "/slurm-%j.txt",
        "open-mode": "append",
        "signal": f"USR1@{job.save_seconds}",
        "requeue" if job.is_requeued else "no-requeue": None,
    }
    for line in job.lines:
        name, equals, value = line.removeprefix("--").partition("=")
        if not name.replace("-", "").isalnum() or "\n" in line:
            raise UserError(f"{line!r} is no option of sbatch.", where="--sbatch", hint="For example constraint=h100.")
        options[name] = value if equals else None
    return options


def _directive(name: str, value: str | None) -> str:
    return f"#SBATCH --{name}" + ("" if value is None else f"={shlex.quote(value)}")


def check_sbatch() -> None:
    """Raise `EnvironmentUnfit` where there is no SLURM."""
    if shutil.which("sbatch") is None:
        raise EnvironmentUnfit(
            "there is no sbatch on this machine, so no SLURM to submit to.",
            hint="Run this on a login node, or add --print-only to write the script and submit it elsewhere.",
        )


def submit(script: Path) -> str:
    """What sbatch says. Raises `EnvironmentUnfit` with its complaint."""
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        complaint = " ".join((done.stderr or done.stdout).split())
        raise EnvironmentUnfit(
            f"sbatch refused the job: {complaint}", hint=f"Mend it and submit it yourself: sbatch {script}"
        )
    return done.stdout.strip()
