"""`kill -9` of one of two ranks, within saves and within saves beside training: the other ends, the run resumes.

What the resumed runs leave equals what the undisturbed one does, bit for bit.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NUM_RANKS, NUM_KILLS = 2, 4
VARIANTS = {
    "single": (),
    "fsdp2": ("strategy.use=fsdp2",),
    "fsdp2_in_background": ("strategy.use=fsdp2", "checkpoint.background=true", "checkpoint.export=true"),
    "deepspeed": ("strategy.use=deepspeed", "strategy.stage=3"),
}


@dataclass(frozen=True)
class Killed:
    """What `forked_ranks.py` left: the folder of its runs, and what each kill hit."""

    folder: Path
    hits: list[str]

    @property
    def disturbed(self) -> list[Path]:
        return sorted(self.folder.glob("disturbed*"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory, tiny_run) -> dict[str, Killed]:
    folder = tmp_path_factory.mktemp("killed")
    source = folder / "kill.yaml"
    source.write_text(tiny_run)
    variants = [(name, seed, sets) for seed, (name, sets) in enumerate(VARIANTS.items(), 3)]
    words = (source, folder, str(NUM_RANKS), str(NUM_KILLS), json.dumps(variants))
    done = subprocess.run(
        [sys.executable, HERE / "forked_ranks.py", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: Killed(folder / name, hits) for name, hits in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_runs_of_which_one_rank_was_killed_equal_the_undisturbed_one(killed, run_facts, name):
    assert len(killed[name].hits) == NUM_KILLS
    expected = run_facts(killed[name].folder / "undisturbed")
    assert [line["step"] for line in expected["metrics"]] == [0, 1, 2, 3, 3, 4, 4]
    assert len(expected["rollouts"]) == 4 * 16 + 3 * 8
    assert any(file.startswith("policy/optimizer/") for file in expected["files"])
    for run in killed[name].disturbed:
        facts = run_facts(run)
        assert [part for part, value in facts.items() if value != expected[part]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_unfinished_is_left(killed, name):
    for run in killed[name].disturbed:
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_000003", "step_000004"]


@pytest.mark.slow
def test_some_kills_hit_a_save_and_some_a_step(killed):
    hits = [hit for item in killed.values() for hit in item.hits]
    assert set(hits) == {"a save", "a step"}
