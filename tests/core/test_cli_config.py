import json
import re

import pytest
from lightrft_core.errors import UserError
from lightrft_core.old_command import import_command
from lightrft_core.runfile import load_run_file
from lightrft_core.schema import run_file_schema
from lightrft_core.starter import starter_text
from lightrft_core.yaml_marks import parse_yaml

SCRIPT = r"""#!/bin/bash
# don't trip over this quote
export N_SAMPLES=8
DATA="/data/gsm8k"; LR=1e-6
export WANDB_API_KEY=secret
torchrun --nnodes 1 --nproc-per-node 8 --master_port=1234 \
   examples/gsm8k_geo3k/train_colocate.py \
   --pretrain "$MODEL_PATH" --save_path "results/${NAME}" \
   --n_samples_per_prompt $N_SAMPLES --actor_learning_rate ${LR} \
   --prompt_data $DATA/train.jsonl --input_key prompt \
   --eval_steps 20 --gradient_checkpointing --bf16 --fsdp --engine_type trtllm \
   --reward_recipe '{"gsm8k_rule":
      [["rule", null, 1.0]]}' \
   --kl_estimator k3 --init_kl_coef 0.01 --use_kl_loss --overlong_buffer_len 1024 \
   --lora_rank 0 --save_hf_ckpt --bogus_flag 3 \
   2>&1 | tee log.txt
echo done --really
"""


def imported(text, plugins):
    found = import_command(text, plugins)
    return parse_yaml(found.text, "run.yaml").plain(), found.dropped, found.notes


# ---- import


def test_an_old_command_becomes_a_run_file(plugins, run_folder):
    command = "python train.py --pretrain model --prompt_data train.jsonl --n_samples_per_prompt 4 --use_dapo"
    data, dropped, _ = imported(command, plugins)
    assert data["algorithm"] == "dapo"
    assert data["sampler"]["group_size"] == 4
    assert data["task"] == {"path": str(run_folder / "train.jsonl")}
    assert dropped == []


def test_what_saves_and_goes_on_is_imported(plugins, run_folder):
    flags = "--load_checkpoint --save_interval 2 --gradient_checkpointing_use_reentrant"
    command = f"python train.py --pretrain model --prompt_data train.jsonl {flags}"
    data, dropped, _ = imported(f"{command} --gradient_checkpointing", plugins)
    assert (data["run"], data["checkpoint"]) == ({"resume": True}, {"every_episodes": 2})
    assert data["strategy"] == {"checkpointing": True, "checkpointing_reentrant": True}
    assert dropped == []
    _, dropped, _ = imported(command, plugins)
    assert dropped == ["--gradient_checkpointing_use_reentrant: had no effect without --gradient_checkpointing."]


def test_an_imported_file_loads(plugins, run_folder):
    recipe = """--reward_recipe '{"a": [["exact", 1.0]]}'"""
    found = import_command(
        f"python t.py --pretrain ./model --prompt_data ./train.jsonl {recipe} --logging_steps 5", plugins
    )
    (run_folder / "old.yaml").write_text(found.text)
    run = load_run_file(run_folder / "old.yaml", [], plugins)
    assert run.rewards[0].config.labels == ("a",)
    assert [item.name for item in run.trackers] == ["console", "jsonl"]


def test_a_script_that_is_not_there_is_not_taken_for_a_command(plugins, run_folder):
    with pytest.raises(UserError, match=r"train\.sh: there is no such script\."):
        import_command("train.sh", plugins)


def test_a_script_is_read_with_its_variables_quotes_and_continuations(plugins, tmp_path):
    path = tmp_path / "run.sh"
    path.write_text(SCRIPT)
    data, _, notes = imported(str(path), plugins)
    assert data["sampler"]["group_size"] == 8
    assert data["optim"]["lr"] == 1e-6
    assert data["task"]["path"] == "/data/gsm8k/train.jsonl"
    assert data["rewards"] == [{"use": "gsm8k_rule", "name": "gsm8k_rule", "weight": 1.0, "labels": ["gsm8k_rule"]}]
    assert data["kl"] == {"use": "k3", "coef": 0.01, "place": "loss"}
    assert "$MODEL_PATH is not set in the script: fill it in (--pretrain)." in notes
    assert "it ran 8 processes per node: `lightrft train RUN.yaml --processes 8`." in notes


def test_what_does_nothing_or_waits_is_listed_with_the_reason(plugins, tmp_path):
    path = tmp_path / "run.sh"
    path.write_text(SCRIPT)
    data, dropped, _ = imported(str(path), plugins)
    text = "\n".join(dropped)
    assert "--bogus_flag: no such flag." in text
    assert "--lora_rank: has no effect: 0 means off, as without it." in text
    assert "--overlong_buffer_len: had no effect without --overlong_buffer." in text
    assert "--eval_steps: had no effect without --eval_data." in text
    assert "--engine_type sets engine.use: trtllm, which no installed plugin offers yet." in text
    assert data["checkpoint"] == {"export": True}
    assert "shapers" not in data and "evaluation" not in data
    assert "secret" not in str(data) + text


def test_defaults_of_lightrft_that_differ_are_written_out(plugins, run_folder):
    data, _, notes = imported("python train.py --pretrain model --prompt_data train.jsonl", plugins)
    assert data["optim"] == {"lr": 5e-7, "warmup_ratio": 0.03, "schedule": "cosine_with_min_lr"}
    assert data["sampler"] == {"group_size": 4, "max_new_tokens": 2048, "top_p": 0.9}
    assert data["kl"] == {"use": "k3", "coef": 0.001, "place": "reward"}
    assert any("LightRFT's defaults that differ" in note and "optim.lr: 5e-07" in note for note in notes)


def test_the_kl_was_in_the_reward_unless_told_otherwise(plugins):
    assert imported("python t.py --init_kl_coef 0.1", plugins)[0]["kl"]["place"] == "reward"
    assert imported("python t.py --init_kl_coef 0.1 --use_kl_loss", plugins)[0]["kl"]["place"] == "loss"
    assert imported("python t.py --init_kl_coef 0 --seed 1", plugins)[0]["kl"] is None
    assert "kl" not in imported("python t.py --use_dapo", plugins)[0]


@pytest.mark.parametrize(
    "launcher",
    [
        "python train.py",
        "python3 -u examples/train.py",
        "CUDA_VISIBLE_DEVICES=0,1 deepspeed --num_gpus 2 train.py",
        "torchrun --nproc_per_node=2 --master-port 1 train.py",
        "srun -N 1 bash -x; python -m torch.distributed.run --nproc-per-node 2 train.py",
        "python -m lightrft.cli.train",
        "ray job submit -- python train.py",
        "",
    ],
)
def test_launchers_and_environment_prefixes_are_left_aside(plugins, launcher):
    data, dropped, _ = imported(f"{launcher} --seed 7", plugins)
    assert data["run"] == {"seed": 7}
    assert dropped == []


@pytest.mark.parametrize(
    ("text", "said"), [("echo hello", "no command with flags"), ("python 'x --seed 1", "not a shell")]
)
def test_what_is_no_command_is_refused(plugins, text, said):
    from lightrft_core.errors import UserError

    with pytest.raises(UserError, match=said):
        import_command(text, plugins)


def test_nothing_of_a_script_is_run(plugins, tmp_path):
    victim = tmp_path / "made"
    import_command(f"python t.py --seed $(touch {victim}) --run_x `touch {victim}` ; touch {victim}", plugins)
    assert not victim.exists()


# ---- init


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "dapo"])
def test_the_starter_file_loads_as_it_is(plugins, run_folder, algorithm):
    (run_folder / "start.yaml").write_text(starter_text(algorithm, plugins))
    run = load_run_file(run_folder / "start.yaml", [], plugins)
    assert run.algorithm == algorithm


@pytest.mark.parametrize("algorithm", ["grpo", "dapo"])
def test_every_commented_line_of_the_starter_can_be_uncommented(plugins, run_folder, algorithm):
    lines = starter_text(algorithm, plugins).splitlines()
    options = [index for index, line in enumerate(lines) if re.match(r"  # \w+: ", line)]
    assert len(options) > 60
    start = load_run_file(_written(run_folder, lines), [], plugins)
    text = [line.replace("  # ", "  ", 1) if index in options else line for index, line in enumerate(lines)]
    text = [line[2:] if line in ("# evaluation:",) or line.startswith("#   task:") else line for line in text]
    problems = _problems(_written(run_folder, text), plugins)
    assert all("has no effect" in problem for problem in problems), problems
    idle = {problem.split()[1].rstrip(":").rpartition(".")[2] for problem in problems}
    kept = [line for line in text if line.strip().partition(":")[0] not in idle]
    kept[next(i for i, line in enumerate(kept) if line.startswith("evaluation"))] = "evaluation:"
    again = load_run_file(_written(run_folder, kept), [], plugins)
    assert (again.loss, again.sampler, again.advantage, again.kl) == (
        start.loss,
        start.sampler,
        start.advantage,
        start.kl,
    )


def _written(folder, lines):
    (folder / "start.yaml").write_text("\n".join(lines) + "\n")
    return folder / "start.yaml"


def _problems(path, plugins):
    from lightrft_core.errors import Problems

    try:
        load_run_file(path, [], plugins)
    except Problems as problems:
        return [str(problem) for problem in problems.problems]
    return []


# ---- schema


def test_the_schema_knows_every_section_and_component(plugins):
    schema = run_file_schema(plugins)
    assert schema["additionalProperties"] is False
    assert {"run", "optim", "loss", "rewards", "plugins", "algorithm"} <= set(schema["properties"])
    loss = schema["$defs"]["loss.lightrft-algos.clip"]
    assert loss["properties"]["use"]["const"] == "clip"
    assert loss["additionalProperties"] is False
    assert "How far above 1 it counts" in loss["properties"]["clip_high"]["description"]
    assert "clip" in schema["properties"]["loss"]["anyOf"][0]["enum"]


def test_every_reference_of_the_schema_leads_somewhere(plugins):
    schema = run_file_schema(plugins)
    references = re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(schema))
    assert references and set(references) <= set(schema["$defs"])


def test_recipes_and_resolved_files_have_only_keys_of_the_schema(plugins, load_run):
    schema = run_file_schema(plugins)
    plain = load_run().to_plain()
    assert set(plain) <= set(schema["properties"])
    for section in ("loss", "sampler", "strategy", "task"):
        refs = [
            entry["$ref"].removeprefix("#/$defs/")
            for entry in schema["properties"][section]["anyOf"][1:]
            if "$ref" in entry
        ]
        chosen = next(
            schema["$defs"][ref]
            for ref in refs
            if schema["$defs"][ref]["properties"]["use"]["const"] == plain[section]["use"]
        )
        assert set(plain[section]) <= set(chosen["properties"])


# ---- the commands


def test_show_prints_a_file_that_loads_again(lightrft, run_folder):
    shown = lightrft("config", "show", "run.yaml", "--n_samples_per_prompt", "4", "--set", "optim.lr=1e-5")
    assert shown.returncode == 0, shown.stderr
    (run_folder / "again.yaml").write_text(shown.stdout)
    again = lightrft("config", "show", "again.yaml")
    assert again.stdout == shown.stdout
    assert "group_size: 4" in shown.stdout and "lr: 1.0e-05" in shown.stdout


def test_show_sources_says_where_values_come_from(lightrft, run_folder):
    shown = lightrft("config", "show", "run.yaml", "--sources", "--n_samples_per_prompt", "4")
    rows = {line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines()}
    assert rows["sampler.group_size"] == ["4", "--n_samples_per_prompt"]
    assert rows["loss.clip_high"] == ["0.2", "algorithm", "grpo"]
    assert rows["algorithm"] == ["grpo", "run.yaml:1"]
    assert rows["optim.eps"] == ["1e-08", "default"]
    assert rows["rewards[exact].weight"] == ["1.0", "default"]


def test_check_says_ok_or_everything_that_is_wrong(lightrft, run_folder):
    fine = lightrft("config", "check", "run.yaml")
    assert (fine.returncode, fine.stdout) == (
        0,
        "ok: 16 prompts x 8 = 128 samples / 128 per update = 1 update per rollout\n",
    )
    bad = lightrft("config", "check", "run.yaml", "--set", "loss.clip_hihg=1", "--sed", "3")
    assert bad.returncode == 2
    assert "--set loss.clip_hihg: no such option. Did you mean 'clip_high'?" in bad.stderr
    assert "--sed: no such flag. Did you mean --seed?" in bad.stderr
    assert bad.stderr.rstrip().endswith("2 problems, nothing started.")
    assert "Traceback" not in bad.stderr and bad.stdout == ""
    batch = lightrft("config", "check", "run.yaml", "--train_batch_size", "48", "--ranks", "2")
    assert batch.returncode == 2 and "Nearest: 32 or 64." in batch.stderr


def test_init_writes_a_new_file_and_never_overwrites(lightrft, run_folder):
    assert lightrft("config", "init", "-o", "start.yaml").returncode == 0
    assert lightrft("config", "check", "start.yaml").returncode == 0
    again = lightrft("config", "init", "-o", "start.yaml")
    assert again.returncode == 2
    assert "start.yaml: exists already. Choose another name; nothing is overwritten." in again.stderr
    unknown = lightrft("config", "init", "--algorithm", "grop")
    assert unknown.returncode == 2 and "Did you mean 'grpo'?" in unknown.stderr


def test_schema_prints_json(lightrft, run_folder):
    assert json.loads(lightrft("config", "schema").stdout)["title"] == "LightRFT run file"


def test_import_writes_yaml_to_stdout_and_the_rest_to_stderr(lightrft, run_folder):
    command = "python train.py --pretrain model --prompt_data train.jsonl --engine_type trtllm --use_kl_loss"
    done = lightrft("config", "import", command)
    assert done.returncode == 0, done.stderr
    assert parse_yaml(done.stdout, "x").plain()["model"]["path"] == str(run_folder / "model")
    assert "Left out:\n  --engine_type sets engine.use: trtllm" in done.stderr
    assert "To know:\n" in done.stderr
