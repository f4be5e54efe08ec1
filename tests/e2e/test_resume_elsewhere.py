"""A run that began on one process goes on by FSDP2 on two, then by DDP on one, and is exported without either."""

import json
from pathlib import Path

import pytest
from lightrft_core.rundir import RunDir
from safetensors.torch import load_file

CPU = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, lightrft_in, forked_in, tiny_run) -> dict[str, Path]:
    """An undisturbed run, and one that moved twice; with what that said."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "run.yaml").write_text(tiny_run)

    def go(*words):
        work_in = lightrft_in if "--processes" in words else forked_in
        done = work_in(folder)("train", *words, env=CPU)
        assert done.returncode == 0, done.stderr
        return done.stderr

    go("run.yaml", "--set", "run.name=whole")
    go("run.yaml", "--set", "run.steps=2")
    said = go("--resume", "tiny", "--processes", "2", "--set", "strategy.use=fsdp2", "--set", "run.steps=3")
    said += go("--resume", "tiny", "--set", "strategy.use=ddp", "--set", "run.steps=4")
    (folder / "said").write_text(said)
    return {"whole": folder / "runs/whole", "moved": folder / "runs/tiny", "said": folder / "said"}


@pytest.mark.slow
def test_the_run_that_moved_has_the_numbers_of_the_one_that_did_not(runs, read_metrics):
    whole, moved = read_metrics(runs["whole"]), read_metrics(runs["moved"])
    assert [line["step"] for line in whole] == [0, 1, 2, 3, 3, 4, 4]
    last = {line["step"]: line for line in moved}[4]
    same = {name: value for name, value in whole[-1].items() if not name.startswith("gap/")}
    assert {name: last[name] for name in same} == pytest.approx(same, abs=1e-4)


@pytest.mark.slow
def test_what_changed_is_told_and_kept_in_the_manifest(runs):
    said = runs["said"].read_text()
    assert "(step 2 of 3)\nchanged since then: run.steps 2 -> 3, strategy.use single -> fsdp2, processes 1 -> 2" in said
    assert "(step 3 of 4)\nchanged since then: run.steps 3 -> 4, strategy.use fsdp2 -> ddp, processes 2 -> 1" in said
    first, second = RunDir(runs["moved"]).read_manifest()["resumed"]
    assert (first["step"], first["changed"]["strategy.use"]) == (2, ["single", "fsdp2"])
    assert (second["step"], second["changed"]["processes"]) == (3, [2, 1])
    assert "resumed at step 2 with changes: run.steps 2 -> 3" in (runs["moved"] / "log.txt").read_text()


@pytest.mark.slow
def test_the_checkpoint_of_two_ranks_is_exported_by_one_process(runs, forked, tmp_path):
    done = forked("export", runs["moved"], "--step", "3", "--to", "out", env=CPU)
    assert done.returncode == 0, done.stderr
    shards = sorted((runs["moved"] / "checkpoints/step_000003/policy/weights").iterdir())
    assert [path.name for path in shards] == ["shard-00000.safetensors", "shard-00001.safetensors"]
    exported = load_file(tmp_path / "out/model.safetensors")
    name = "model.embed_tokens.weight"
    import torch

    assert torch.equal(exported[name], torch.cat([load_file(path)[name] for path in shards]))
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"


@pytest.mark.slow
def test_another_seed_is_refused_and_nothing_is_written(runs, forked):
    before = (runs["moved"] / "run.yaml").read_text()
    done = forked("train", "--resume", runs["moved"], "--set", "run.seed=8")
    assert done.returncode == 2
    assert "run.seed: a run that goes on keeps its value, which is 7" in done.stderr
    assert (runs["moved"] / "run.yaml").read_text() == before
