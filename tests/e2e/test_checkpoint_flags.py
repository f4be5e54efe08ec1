"""LightRFT's flags about checkpoints, by what they leave in the run's folder."""

import json

import pytest
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.command_line import resolve_command_line
from lightrft_core.rundir import RunDir
from lightrft_core.serving.source import open_source
from lightrft_core.session import Session
from transformers import AutoModelForCausalLM

from tests.core.real_run import SMALL
from tests.e2e.test_strategies_learn import SHARDED

CPU = {"CUDA_VISIBLE_DEVICES": ""}
SIZE_GB = 4.8e6 / (1 << 30)  # a checkpoint of the quickstart model, weights and two moments in fp32


@pytest.fixture
def checkpoints(tmp_path):
    """Trains four steps with some flags; returns the checkpoints that are left."""

    def train(*flags: str) -> Checkpoints:
        small = [item for item in SMALL if not item.startswith("checkpoint.")]  # `--set` wins over flags
        sets = [*small, "run.steps=4", "evaluation.at_start=false", "selftest.enabled=false", "trackers=[jsonl]"]
        run_file, plugins = resolve_command_line("quickstart", sets, list(flags))
        run_dir = RunDir.create(tmp_path, "run")
        run_dir.write_run_file(run_file.to_yaml())
        Session(run_file, plugins, run_dir, lambda line: None).train(resume=False)
        return Checkpoints(run_dir.checkpoints, keep=9)

    return train


def test_save_steps_and_max_ckpt_num_say_when_and_how_many(checkpoints):
    assert checkpoints("--save_steps", "1", "--max_ckpt_num", "3").steps() == [2, 3, 4]


def test_max_ckpt_mem_limits_the_size_of_all_together(checkpoints):
    left = checkpoints("--save_steps", "1", "--max_ckpt_num", "9", "--max_ckpt_mem", str(2.5 * SIZE_GB))
    assert left.steps() == [3, 4]


def test_save_hf_ckpt_puts_a_model_into_every_checkpoint(checkpoints):
    left = checkpoints("--save_steps", "2", "--save_hf_ckpt", "--max_ckpt_num", "9")
    models = [AutoModelForCausalLM.from_pretrained(left.at(step).path / "hf") for step in (2, 4)]
    first, last = ([parameter.sum().item() for parameter in model.parameters()] for model in models)
    assert first != last


@pytest.fixture(scope="module")
def runs(tmp_path_factory, forked_in, tiny_run):
    """A folder with two runs of four steps: `whole`, and `weights` under `--disable_ds_ckpt`; and its command line."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "run.yaml").write_text(tiny_run)
    forked = forked_in(folder)
    for name, flags in {"whole": ["--save_hf_ckpt"], "weights": ["--disable_ds_ckpt"]}.items():
        done = forked("train", "run.yaml", "--set", f"run.name={name}", *flags, "--max_ckpt_num", "3", env=CPU)
        assert done.returncode == 0, done.stderr
    return folder, forked


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_disable_ds_ckpt_leaves_the_hugging_face_folder_alone(runs):
    folder, _ = runs
    whole, weights = (Checkpoints(folder / "runs" / name / "checkpoints", keep=9) for name in ("whole", "weights"))
    assert weights.steps() == whole.steps() == [2, 3, 4]
    for step in weights.steps():
        found = weights.at(step).path
        assert sorted(path.name for path in found.iterdir()) == ["hf", "manifest.json"]
        assert files_of(found / "hf") == files_of(whole.at(step).path / "hf")
        sizes = [sum(map(len, files_of(path).values())) for path in (found / "hf", whole.at(step).path)]
        assert sizes[0] < 0.3 * sizes[1]


@pytest.mark.slow
def test_what_disable_ds_ckpt_left_is_exported_evaluated_and_served_as_any_checkpoint(runs):
    folder, forked = runs
    found = {}
    for name in ("whole", "weights"):
        run = folder / "runs" / name
        done = forked("export", name, "--step", "3", "--to", f"{name}-model", env=CPU)
        assert done.returncode == 0, done.stderr
        measured = forked("eval", name, "--step", "3", "--json", env=CPU)
        assert measured.returncode == 0, measured.stderr
        with open_source(str(run), step=3, engine=None, sets=()) as source:
            served = [tensor.sum().item() for tensor in source.adapter.load("policy").parameters()]
            assert source.name == f"{name}-step-3"
        found[name] = files_of(folder / f"{name}-model"), json.loads(measured.stdout), served
    assert found["weights"] == found["whole"]
    refused = forked("export", "weights", "--ema", "--to", "average", env=CPU)
    assert refused.returncode == 2
    assert "--ema: this checkpoint holds the policy's weights alone. Leave it out" in refused.stderr


@pytest.mark.slow
def test_a_run_under_disable_ds_ckpt_does_not_go_on_but_another_starts_from_its_weights(runs):
    folder, forked = runs
    before = files_of(folder / "runs/weights")
    refused = forked("train", "--resume", "weights", "--set", "run.steps=6", env=CPU)
    newest = folder / "runs/weights/checkpoints/step_000004"
    assert refused.returncode == 2
    (told,) = refused.stderr.splitlines()
    assert told.startswith(f"error: {newest}: holds the policy's weights alone, since checkpoint.resumable is false: ")
    assert files_of(folder / "runs/weights") == before
    words = told.partition("`lightrft ")[2].removesuffix("`.").replace("NEW_NAME", "again").split()
    done = forked(*words, "--set", "run.steps=1", env=CPU)
    assert done.returncode == 0, done.stderr
    assert Checkpoints(folder / "runs/again/checkpoints", keep=9).steps() == [1]


@pytest.mark.slow
def test_a_run_under_disable_ds_ckpt_that_is_stopped_goes_on(forked, tmp_path, tiny_run):
    (tmp_path / "run.yaml").write_text(tiny_run)
    limits = ("--set", "run.max_time=3s", "--set", "run.steps=100000", "--set", "checkpoint.every=5")
    stopped = forked("train", "run.yaml", "--disable_ds_ckpt", *limits, env=CPU)
    assert stopped.returncode == 75, stopped.stderr
    saved = Checkpoints(tmp_path / "runs/tiny/checkpoints", keep=9).newest()
    assert saved.is_resumable
    end = ("--set", "run.max_time=null", "--set", f"run.steps={saved.step + 1}")
    resumed = forked("train", "--resume", "tiny", *end, env=CPU)
    assert resumed.returncode == 0, resumed.stderr
    assert f"(step {saved.step} of {saved.step + 1})" in resumed.stderr
    checkpoints = Checkpoints(tmp_path / "runs/tiny/checkpoints", keep=9)
    assert (checkpoints.newest().step, checkpoints.newest().is_resumable) == (saved.step + 1, False)
    back = forked("train", "--resume", "tiny", env=CPU)
    assert back.returncode == 0, back.stderr
    newest = tmp_path / f"runs/tiny/checkpoints/step_{saved.step + 1:06d}"
    assert f"{newest} is newer, and holds the policy's weights alone" in back.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_disable_ds_ckpt_on_two_ranks_in_the_background(lightrft, forked, tmp_path, tiny_run, strategy):
    (tmp_path / "run.yaml").write_text(tiny_run)
    sets = (*SHARDED[strategy], "checkpoint.background=true", "run.steps=2")
    words = [word for text in sets for word in ("--set", text)]
    done = lightrft("train", "run.yaml", "--processes", "2", "--disable_ds_ckpt", *words, env=CPU)
    assert done.returncode == 0, done.stderr
    first, last = (Checkpoints(tmp_path / "runs/tiny/checkpoints", keep=9).at(step).path for step in (1, 2))
    for path in (first, last):
        assert sorted(item.name for item in path.iterdir()) == ["hf", "manifest.json"]
    models = [AutoModelForCausalLM.from_pretrained(path / "hf").state_dict() for path in (first, last)]
    assert all(models[0][name].shape == tensor.shape for name, tensor in models[1].items())
    assert any(not models[0][name].equal(tensor) for name, tensor in models[1].items())
    done = forked("eval", "tiny", "--json", env=CPU)
    assert done.returncode == 0, done.stderr
