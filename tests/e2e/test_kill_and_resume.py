"""`kill -9` at twenty moments, checkpoint writes included: the resumed runs equal the undisturbed one, bit for bit."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NUM_KILLS = 20


@dataclass(frozen=True)
class Killed:
    """What `forked_runs.py` left: the folder of its runs, and what each kill hit."""

    folder: Path
    hits: list[str]

    @property
    def disturbed(self) -> list[Path]:
        return sorted(self.folder.glob("disturbed*"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory, tiny_run) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    source = folder / "kill.yaml"
    source.write_text(tiny_run)
    done = subprocess.run(
        [sys.executable, HERE / "forked_runs.py", source, folder, str(NUM_KILLS), "11"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Killed(folder, json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_runs_killed_twenty_times_equal_the_undisturbed_one(killed, run_facts):
    assert len(killed.hits) == NUM_KILLS
    assert killed.hits.count("a save") >= 3
    assert killed.hits.count("a step") >= 3
    expected = run_facts(killed.folder / "undisturbed")
    assert [line["step"] for line in expected["metrics"]] == [0, 1, 2, 3, 3, 4, 4]
    assert len(expected["rollouts"]) == 4 * 16 + 3 * 8
    for run in killed.disturbed:
        facts = run_facts(run)
        assert [name for name, value in facts.items() if value != expected[name]] == []


@pytest.mark.slow
def test_nothing_unfinished_is_left_in_the_folder_of_a_resumed_run(killed):
    for run in killed.disturbed:
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000003", "step_000004"]
        assert json.loads((run / "STATUS").read_text())["state"] == "done"


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "file", "told"),
    [
        (_cut_short, "policy/weights/whole.safetensors", "has"),
        (_flip_one_bit, "policy/optimizer/whole.safetensors", "has another content"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    killed, forked, run_facts, tmp_path, damage, file, told
):
    run = tmp_path / "runs/damaged"
    shutil.copytree(killed.folder / "undisturbed", run)
    damage(run / "checkpoints/step_000004" / file)
    done = forked("train", "--resume", "damaged")
    assert done.returncode == 0, done.stderr
    assert f"checkpoint {run}/checkpoints/step_000004 is refused: {file} {told}" in done.stderr
    assert "checkpoints/step_000003 (step 3 of 4)" in done.stderr
    assert run_facts(run) == run_facts(killed.folder / "undisturbed")
