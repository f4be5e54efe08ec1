"""GSM8K as its recipe trains it: on files in its form, evaluated on every row, resumed, scored again, exported."""

import json
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightrft_core.checkpoints import Checkpoints
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/gsm8k_grpo.yaml"
GSM8K = ROOT.parent / "shared/data/gsm8k"
NUM_TEST = 13
SMALL = ("--n_samples_per_prompt", "4", "--rollout_batch_size", "8", "--train_batch_size", "16")
SMALL += ("--set", "sampler.max_new_tokens=8", "--set", "task.max_prompt_tokens=4096", "--set", "optim.lr=1e-3")


def write_rows(path: Path, num: int, seed: int) -> None:
    """Rows as OpenAI published them: a question, and a solution that ends in `#### number`."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(num):
            price, count, rest = draw.randint(2, 40), draw.randint(2, 30), draw.randint(1, 900)
            total = price * count + rest
            question = (
                f"Janet’s shop sells {count} boxes of tea for ${price} each and one kettle for ${rest}. "
                "How much money does she make altogether?"
            )
            answer = (
                f"The tea brings {count}*{price}=<<{count}*{price}={count * price}>>{count * price} dollars.\n"
                f"Altogether she makes ${count * price}+{rest}=<<{count * price}+{rest}={total}>>{total}.\n"
                f"#### {total:,}"
            )
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")


@dataclass(frozen=True)
class Trained:
    """A run of 2 steps that was resumed to 3."""

    folder: Path
    first: subprocess.CompletedProcess[str]
    resumed: subprocess.CompletedProcess[str]

    @property
    def run(self) -> Path:
        return self.folder / "runs/small"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, forked_in, quickstart_model) -> Trained:
    folder = tmp_path_factory.mktemp("gsm8k")
    write_rows(folder / "train.jsonl", 40, seed=1)
    write_rows(folder / "test.jsonl", NUM_TEST, seed=2)
    forked = forked_in(folder)
    data = ("--pretrain", quickstart_model, "--prompt_data", "train.jsonl")
    first = forked("train", RECIPE, *data, *SMALL, "--set", "run.steps=2", "--set", "run.name=small")
    resumed = forked("train", "--resume", "small", "--set", "run.steps=3")
    return Trained(folder, first, resumed)


def test_the_recipe_trains_any_local_model_on_a_file(trained, read_metrics):
    assert trained.first.returncode == 0, trained.first.stderr
    steps = [line for line in read_metrics(trained.run) if "train/loss" in line]
    assert [line["step"] for line in steps[:2]] == [1, 2]
    assert all(line["reward/unscored_fraction"] == 0 for line in steps)


def test_every_row_of_the_test_file_beside_it_is_scored(trained, read_metrics):
    evaluations = [line for line in read_metrics(trained.run) if "eval/accuracy" in line]
    assert {line["step"] for line in evaluations} == {0, 2, 3}
    assert {line["eval/num_scored"] for line in evaluations} == {NUM_TEST}


def test_it_goes_on_to_more_steps(trained, read_metrics):
    assert trained.resumed.returncode == 0, trained.resumed.stderr
    assert "(step 2 of 3)" in trained.resumed.stderr
    assert [line["step"] for line in read_metrics(trained.run) if "train/loss" in line] == [1, 2, 3]


def test_eval_scores_the_checkpoint_as_the_run_did_and_writes_every_answer(trained, forked_in, read_metrics):
    done = forked_in(trained.folder)("eval", "small", "--json", "--out", "answers.jsonl")
    assert done.returncode == 0, done.stderr
    own = read_metrics(trained.run)[-1]
    assert json.loads(done.stdout) == pytest.approx({name: own[name] for name in own if name.startswith("eval/")})
    answers = [json.loads(line) for line in (trained.folder / "answers.jsonl").read_text().splitlines()]
    assert len({answer["prompt_id"] for answer in answers}) == NUM_TEST
    assert all(answer["reference"].isdigit() for answer in answers)


def test_the_exported_folder_loads_with_the_weights_of_the_checkpoint(trained, forked_in):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = forked_in(trained.folder)("export", "small", "--to", "exported")
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(trained.folder / "exported", dtype=torch.float32)
    checkpoint = Checkpoints(trained.run / "checkpoints", keep=1).newest()
    weights = load_file(checkpoint.path / "policy/weights/whole.safetensors")
    assert checkpoint.step == 3
    exported = dict(model.named_parameters())
    assert exported.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(exported[name].detach(), weight.float(), rtol=2**-8, atol=0)
    assert AutoTokenizer.from_pretrained(trained.folder / "exported").chat_template


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_dir(), reason="the real GSM8K files are not here")
def test_it_trains_on_the_real_file_and_scores_every_row_of_the_real_test_file(
    forked, tmp_path, quickstart_model, read_metrics
):
    data = ("--pretrain", quickstart_model, "--prompt_data", GSM8K / "train.jsonl")
    short = ("--set", "evaluation.max_new_tokens=2", "--set", "run.steps=2", "--set", "run.name=real")
    done = forked("train", RECIPE, *data, *SMALL, *short, "--set", "evaluation.at_start=false")
    assert done.returncode == 0, done.stderr
    lines = read_metrics(tmp_path / "runs/real")
    assert len([line for line in lines if "train/loss" in line]) == 2
    num_rows = len((GSM8K / "test.jsonl").read_text().splitlines())
    assert [line["eval/num_scored"] for line in lines if "eval/accuracy" in line] == [num_rows]
