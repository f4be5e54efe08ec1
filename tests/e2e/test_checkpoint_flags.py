"""LightRFT's flags about checkpoints, by what they leave in the run's folder."""

import pytest
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.command_line import resolve_command_line
from lightrft_core.rundir import RunDir
from lightrft_core.session import Session
from transformers import AutoModelForCausalLM

from tests.core.real_run import SMALL

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
