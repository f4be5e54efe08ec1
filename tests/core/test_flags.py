"""Every flag of LightRFT through the real parser, by its effect on the resolved run file or by its error."""

import json
import re
import runpy
from pathlib import Path

import pytest
from lightrft_core.flags import FLAGS, keys_by_flag, parse_flags, read_command_line

BASE = """\
model: {path: ./model}
task: {path: ./train.jsonl}
rewards: [exact]
"""
EVAL = "evaluation: {task: {path: ./test.jsonl}}\n"
ALL_NAMES = [name for flag in FLAGS for name in flag.names.split()]
CRITIC = "has no effect: nothing in this run needs a critic's values."
SERVER = "It waits for an engine with a process of its own: vllm or sglang."
NO_MODEL = "sets rewards[model].use: model, which no installed plugin offers yet."
MEDIA = "It waits for an adapter for vision or audio, from lightrft-vlm."
FSDP = "It waits for the strategy fsdp2."
DEEPSPEED = "It waits for the strategy deepspeed."

# flag: (words after it, keys and values of the resolved run file) or (words, part of the error)
EFFECTS = {
    "max_time": ("3h50m", {"run.max_time": "3h50m"}),
    "pretrain": ("org/name", {"model.path": "org/name"}),
    "freeze_prefix": ("model.norm model.layers.0", {"model.freeze": ["model.norm", "model.layers.0"]}),
    "prompt_data": ("more.jsonl", {"task.path": ["{here}/more.jsonl"]}),
    "prompt_data_probs": ("0.3,0.7 --prompt_data train.jsonl,more.jsonl", {"task.probabilities": [0.3, 0.7]}),
    "prompt_split": ("test", {"task.split": "test"}),
    "input_key": ("question", {"task.input_key": "question"}),
    "images_key": ("pics", {"task.images_key": "pics"}),
    "reference_key": ("gold", {"task.reference_key": "gold"}),
    "label_key": ("kind", {"task.label_key": "kind"}),
    "input_template": ("Q:{}", {"task.input_template": "Q:{}"}),
    "system_prompt": ("Think", {"task.system_prompt": "Think"}),
    "max_samples": ("9", {"task.max_prompts": 9}),
    "prompt_max_len": ("99", {"task.max_prompt_tokens": 99}),
    "generate_max_len": ("77", {"sampler.max_new_tokens": 77}),
    "max_len": ("3000 --prompt_max_len 1000", {"sampler.max_new_tokens": 2000, "task.max_prompt_tokens": 1000}),
    "eval_data": ("test.jsonl", {"evaluation.task.path": ["{here}/test.jsonl"], "evaluation.task.use": "jsonl"}),
    "eval_split": ("test --eval_data test.jsonl", {"evaluation.task.split": "test"}),
    "eval_steps": ("5 --eval_data test.jsonl", {"evaluation.every": 5}),
    "max_eval_samples": ("8 --eval_data test.jsonl", {"evaluation.task.max_prompts": 8}),
    "num_episodes": ("3", {"run.episodes": 3.0}),
    "max_epochs": ("2", {"optim.epochs": 2}),
    "train_batch_size": ("64", {"optim.batch_size": 64}),
    "micro_train_batch_size": ("2", {"strategy.micro_batch_size": 2}),
    "rollout_batch_size": ("32", {"sampler.prompts_per_step": 32}),
    "micro_rollout_batch_size": ("3", {"strategy.logprob_micro_batch_size": 3}),
    "n_samples_per_prompt": ("6", {"sampler.group_size": 6}),
    "seed": ("7", {"run.seed": 7}),
    "pretrain_data": ("more.jsonl", {"optim.ptx.path": ["{here}/more.jsonl"]}),
    "ptx_coef": ("0.1 --pretrain_data more.jsonl", {"optim.ptx.coef": 0.1}),
    "actor_learning_rate": ("5e-7", {"optim.lr": 5e-7}),
    "lr_warmup_ratio": ("0.03", {"optim.warmup_ratio": 0.03}),
    "lr_scheduler": ("cosine_with_min_lr", {"optim.schedule": "cosine_with_min_lr"}),
    "max_norm": ("0.5", {"optim.max_grad_norm": 0.5}),
    "l2": ("0.01", {"optim.weight_decay": 0.01}),
    "adam_betas": ("0.9 0.99", {"optim.betas": [0.9, 0.99]}),
    "advantage_estimator": ("dapo", {"algorithm": "dapo", "loss.clip_high": 0.28}),
    "eps_clip": ("0.1", {"loss.clip_low": 0.1, "loss.clip_high": 0.1}),
    "clip_range": ("0.1", {"loss.clip_low": 0.1, "loss.clip_high": 0.1}),
    "clip_range_higher": ("0.28", {"loss.clip_low": 0.2, "loss.clip_high": 0.28}),
    "clip_range_high": ("0.28", {"loss.clip_high": 0.28}),
    "eps_clip_high": ("0.28 --eps_clip 0.1", {"loss.clip_low": 0.1, "loss.clip_high": 0.28}),
    "clip_range_lower": ("0.15 --clip_range 0.1", {"loss.clip_low": 0.15, "loss.clip_high": 0.1}),
    "use_clip_higher": ("", {"loss.clip_low": 0.2, "loss.clip_high": 0.3}),
    "loss_agg_mode": ("token-mean", {"loss.aggregation": "token_mean"}),
    "use_gspo": ("", {"algorithm": "gspo", "loss.use": "gspo", "loss.clip_low": 3e-4, "loss.clip_high": 4e-4}),
    "use_sequence_rewards": ("--use_gspo", {"loss.use": "gspo", "loss.level": "sequence"}),
    "use_cpg_loss": ("", {"loss.use": "cpgd", "loss.drift_coef": 0.01}),
    "advantages_norm": ("--advantage_estimator rloo", {"advantage.use": "rloo", "advantage.normalize": True}),
    "use_dapo": ("", {"algorithm": "dapo", "loss.aggregation": "token_mean"}),
    "normalize_advantages": ("", {"advantage.std": "group"}),
    "advantage_clip": ("5", {"advantage.clip": 5.0}),
    "kl_estimator": ("k2", {"kl.use": "k2"}),
    "init_kl_coef": ("0.01", {"kl.use": "k3", "kl.coef": 0.01}),
    "kl_target": ("0.1", {"kl.target": 0.1}),
    "kl_horizon": ("500 --kl_target 0.1", {"kl.horizon": 500}),
    "use_kl_loss": ("", {"kl.place": "loss"}),
    "dynamic_sampling": ("", {"filters[spread].use": "spread"}),
    "overlong_buffer": ("", {"shapers[overlong].use": "overlong"}),
    "overlong_buffer_len": ("64 --overlong_buffer", {"shapers[overlong].buffer": 64}),
    "overlong_buffer_penalty_factor": ("2 --overlong_buffer", {"shapers[overlong].factor": 2.0}),
    "high_entropy_token_ratio": ("0.2", {"selectors[high_entropy].ratio": 0.2}),
    "select_high_entropy_tokens": ("0.2", {"selectors[high_entropy].ratio": 0.2}),
    "reward_running_norm": ("--advantage_estimator reinforce", {"shapers[running_norm].minus_mean": False}),
    "normalize_reward": ("--advantage_estimator rloo", {"shapers[running_norm].use": "running_norm"}),
    "reward_running_norm_minus_mean": (
        "--reward_running_norm --advantage_estimator reinforce",
        {"shapers[running_norm].minus_mean": True},
    ),
    "use_fire": ("", {"sampler.use": "fire", "sampler.first_token_temperature": 10.0}),
    "first_token_temperature": ("7 --use_fire", {"sampler.first_token_temperature": 7.0}),
    "reward_clip": ("4", {"shapers[clip].limit": 4.0}),
    "enable_vllm_is_correction": ("", {"correction.use": "tis", "correction.cap": 2.0}),
    "vllm_is_truncated_threshold": ("3 --enable_vllm_is_correction", {"correction.cap": 3.0}),
    "temperature": ("0.7", {"sampler.temperature": 0.7}),
    "top_p": ("0.9", {"sampler.top_p": 0.9}),
    "top_k": ("-1", {"sampler.top_k": 0}),
    "min_p": ("0.05", {"sampler.min_p": 0.05}),
    "engine_type": ("hf", {"engine.use": "embedded"}),
    "bf16": ("", {"strategy.precision": "bf16"}),
    "fp16": ("", {"strategy.precision": "fp16"}),
    "fsdp": ("", {"strategy.use": "fsdp2"}),
    "fsdp_cpu_offload": ("--fsdp", {"strategy.cpu_offload": True}),
    "use_mp_opt": ("--fsdp", {"strategy.master_weights": True}),
    "initial_model_shard_size": ("2 --fsdp", {"strategy.shard_size": 2}),
    "meta_init": ("--fsdp", {"strategy.meta_init": True}),
    "sp_size": ("2", {"strategy.sequence_parallel": 2}),
    "gradient_checkpointing": ("", {"strategy.checkpointing": True}),
    "packing_samples": ("", {"strategy.packing": True}),
    "enable_ema": ("--ema_beta 0.99", {"strategy.ema": True, "strategy.ema_beta": 0.99}),
    "zero_stage": ("3", {"strategy.use": "deepspeed", "strategy.stage": 3}),
    "zpg": ("8 --zero_stage 3", {"strategy.zpg": 8}),
    "overlap_comm": ("--zero_stage 2", {"strategy.overlap_comm": True}),
    "grad_accum_dtype": ("bf16 --zero_stage 2", {"strategy.grad_accum_dtype": "bf16"}),
    "adam_offload": ("", {"strategy.adam_offload": True}),
    "lora_rank": ("8", {"model.lora.rank": 8, "model.lora.alpha": 16.0}),
    "lora_alpha": ("8 --lora_rank 4", {"model.lora.alpha": 8.0}),
    "lora_dropout": ("0.1 --lora_rank 4", {"model.lora.dropout": 0.1}),
    "target_modules": ("q_proj v_proj --lora_rank 4", {"model.lora.target_modules": ["q_proj", "v_proj"]}),
    "load_in_4bit": ("--lora_rank 4", {"model.lora.load_in_4bit": True}),
    "chunk_size": ("512", {"strategy.logprob_chunk": 512}),
    "flash_attn": ("", {"model.attention": "flash_attention_2"}),
    "save_path": ("./out", {"run.dir": "{here}/out"}),
    "ckpt_path": ("out", {"run.dir": "out"}),
    "load_checkpoint": ("", {"run.resume": True}),
    "save_steps": ("20", {"checkpoint.every": 20}),
    "save_interval": ("2", {"checkpoint.every_episodes": 2}),
    "max_ckpt_num": ("5", {"checkpoint.keep": 5}),
    "max_ckpt_mem": ("1000", {"checkpoint.max_gb": 1000.0}),
    "save_hf_ckpt": ("", {"checkpoint.export": True}),
    "disable_ds_ckpt": ("--save_hf_ckpt", {"checkpoint.resumable": False, "checkpoint.export": True}),
    "plot_every": ("10", {"plots.every": 10}),
    "logging_steps": ("4", {"trackers[console].every": 4, "trackers[jsonl].use": "jsonl"}),
    "save_trajectories": ("", {"rollouts.save": True}),
    "apply_chat_template": ("", {"model.chat_template": None}),
    "fused_linear_logprob": ("", {"strategy.logprob_chunk": None}),
    "local_rank": ("0", {"run.seed": 42}),
    "remote_rm_url": ("./my_reward.py:reward", {"rewards[python].path": "{here}/my_reward.py:reward"}),
    "reward_recipe": (
        '{"a":[["numeric",0.9],["format",0.1]]}',
        {"rewards[numeric].weight": 0.9, "rewards[numeric].labels": ["a"], "rewards[format].weight": 0.1},
    ),
}  # fmt: skip
ERRORS = {
    "reward_pretrain": ("org/rm", NO_MODEL),
    "critic_pretrain": ("org/rm", CRITIC),
    "save_value_network": ("", CRITIC),
    "value_head_prefix": ("score", CRITIC),
    "critic_learning_rate": ("9e-6", CRITIC),
    "value_clip": ("0.2", CRITIC),
    "freezing_actor_steps": ("5", CRITIC),
    "rm_use_engine": ("", NO_MODEL),
    "rm_engine_cudagraph": ("", NO_MODEL),
    "mixed_mm_data": ("", MEDIA),
    "aux_loss_coef": ("0.01", "It waits for a model adapter for mixtures of experts."),
    "gamma": ("0.9", "It waits for an advantage with a discount: reinforce, reinforce_pp or gae."),
    "lambd": ("0.9", "It waits for the advantage gae."),
    "engine_tp_size": ("2", SERVER),
    "engine_mem_util": ("0.5", SERVER),
    "enable_engine_sleep": ("", SERVER),
    "enforce_eager": ("", SERVER),
    "fp8_rollout": ("", SERVER),
    "limit_mm_image_per_prompt": ("2", SERVER),
    "limit_mm_video_per_prompt": ("2", SERVER),
    "gradient_checkpointing_use_reentrant": ("", "has no effect: strategy.checkpointing is off, so nothing is"),
    "ema_beta": ("0.99", "has no effect: strategy.ema is off, so no average is kept."),
    "disable_fast_tokenizer": ("", "It waits for an adapter with slow tokenizers; transformers 5 has none."),
    "processor": ("x", MEDIA),
    "text_only": ("", MEDIA),
    "fps": ("2", MEDIA),
    "max_pixels": ("1000", MEDIA),
    "log_dir": ("logs", "has no effect: metrics.jsonl and log.txt are in the run's folder: --save_path."),
    "num_trajectories_to_save": ("10", "has no effect: every rollout is saved"),
    "mark_high_entropy_tokens": ("", "has no effect: `lightrft rollouts RUN` shows what the model wrote."),
    "trajectory_analysis": ("", "has no effect: `lightrft rollouts RUN`"),
    "print_replay_buffer_stats": ("", "has no effect: every step's statistics are in metrics.jsonl."),
}  # fmt: skip
TRACKERS = {  # these packages may be installed or not
    "use_wandb": ("my-project", "trackers[wandb].project", "my-project"),
    "wandb_project": ("p --use_wandb True", "trackers[wandb].project", "p"),
    "wandb_org": ("o --use_wandb True", "trackers[wandb].entity", "o"),
    "wandb_group": ("g --use_wandb True", "trackers[wandb].group", "g"),
    "wandb_run_name": ("n --use_wandb True", "trackers[wandb].run_name", "n"),
    "use_tensorboard": ("./tb", "trackers[tensorboard].dir", "./tb"),
}


def look_up(plain, key):
    for part in re.findall(r"\[[^\]]+\]|[^.\[\]]+", key):
        if part.startswith("["):
            plain = next(item for item in plain if part[1:-1] in (item.get("name"), item["use"]))
        else:
            plain = plain[part]
    return plain


def words_of(name, rest):
    return (f"--{name}", *rest.split())


def test_every_name_of_the_table_is_tested():
    assert set(ALL_NAMES) == {*EFFECTS, *ERRORS, *TRACKERS}


def test_no_name_is_there_twice():
    names = [*ALL_NAMES, *(name for flag in FLAGS for name in flag.off.split())]
    assert len(names) == len(set(names))
    assert len(FLAGS) >= 120


@pytest.mark.parametrize("name", EFFECTS)
def test_a_flag_has_its_effect_on_the_run(load_run, run_folder, name):
    (run_folder / "my_reward.py").write_text("def reward(responses, labels, references):\n    return [1.0]\n")
    rest, expected = EFFECTS[name]
    plain = json.loads(json.dumps(load_run(BASE, flags=words_of(name, rest)).to_plain()))
    here = str(run_folder)
    for key, value in expected.items():
        wanted = json.loads(json.dumps(value).replace("{here}", here))
        assert look_up(plain, key) == wanted, key


@pytest.mark.parametrize("name", ERRORS)
def test_a_flag_without_its_component_says_what_it_waits_for(run_problems, name):
    rest, said = ERRORS[name]
    texts = run_problems(BASE, flags=words_of(name, rest))
    assert any(said in text for text in texts), texts
    assert all(f"--{name}" in text for text in texts)


@pytest.mark.parametrize("name", TRACKERS)
def test_tracker_flags_set_the_tracker(name):
    rest, key, value = TRACKERS[name]
    overrides, errors = parse_flags(words_of(name, rest))
    assert errors == []
    assert value in [override.value for override in overrides if override.key == key]


@pytest.mark.parametrize("name", ["n_samples_per_prompt", "train_batch_size", "prompt_max_len", "clip_range_high"])
def test_hyphens_and_equals_signs_work_too(name):
    spelt = name.replace("_", "-")
    plain = [(item.key, item.value) for item in parse_flags([f"--{name}", "8"])[0]]
    assert plain == [(item.key, item.value) for item in parse_flags([f"--{spelt}=8"])[0]] != []


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("--no_use_kl_loss", "kl.place", "reward"),
        ("--disable_use_kl_loss", "kl.place", "reward"),
        ("--use_kl_loss=false", "kl.place", "reward"),
        ("--disable_engine_sleep", "engine.sleep", False),
        ("--no_gradient_checkpointing", "strategy.checkpointing", False),
        ("--no-packing-samples", "strategy.packing", False),
        ("--no_bf16", "strategy.precision", "fp32"),
        ("--no_save_trajectories", "rollouts.save", False),
        ("--no_normalize_advantages", "advantage.std", "none"),
        ("--no_use_sequence_rewards", "loss.level", "token"),
    ],
)
def test_switches_turn_off(word, key, value):
    overrides, errors = parse_flags([word])
    assert errors == [] and [(item.key, item.value) for item in overrides] == [(key, value)]


def test_a_switch_may_be_followed_by_true_or_false():
    assert parse_flags(["--gradient_checkpointing", "False"])[0][0].value is False
    assert parse_flags(["--gradient_checkpointing", "true", "--seed", "1"])[0][0].value in (1, True)


@pytest.mark.parametrize(
    ("estimator", "key", "value"),
    [
        ("group_norm", "advantage.use", "group_norm"),
        ("reinforce", "advantage.use", "reinforce"),
        ("reinforce++", "advantage.use", "reinforce_pp"),
        ("reinforce_baseline", "advantage.use", "reinforce_pp_baseline"),
        ("rloo", "advantage.use", "rloo"),
        ("gae", "advantage.use", "gae"),
        ("grpo", "algorithm", "grpo"),
        ("dr_grpo", "algorithm", "dr_grpo"),
        ("dapo", "algorithm", "dapo"),
        ("cpgd", "algorithm", "cpgd"),
        ("gspo", "algorithm", "gspo"),
        ("gmpo", "algorithm", "gmpo"),
    ],
)
def test_every_advantage_estimator_is_an_advantage_or_an_algorithm(estimator, key, value):
    (override,), errors = parse_flags(["--advantage_estimator", estimator])
    assert (override.key, override.value, errors) == (key, value, [])


ESTIMATED = {
    "group_norm": {"advantage.use": "group_norm", "loss.use": "clip"},
    "reinforce": {"advantage.use": "reinforce", "loss.use": "clip"},
    "reinforce++": {"advantage.use": "reinforce_pp", "loss.use": "clip"},
    "reinforce_baseline": {"advantage.use": "reinforce_pp_baseline", "loss.use": "clip"},
    "rloo": {"advantage.use": "rloo", "loss.use": "clip"},
    "grpo": {"algorithm": "grpo", "kl.use": "k3"},
    "dr_grpo": {"algorithm": "dr_grpo", "advantage.std": "none"},
    "dapo": {"algorithm": "dapo", "filters[spread].use": "spread"},
    "cpgd": {"algorithm": "cpgd", "advantage.use": "cpgd", "loss.use": "cpgd", "loss.drift_cap": 0.2},
    "gspo": {"algorithm": "gspo", "loss.use": "gspo", "loss.clip_high": 4e-4},
    "gmpo": {"algorithm": "gmpo", "loss.use": "gmpo", "loss.clip_high": 0.4},
}


@pytest.mark.parametrize("estimator", ESTIMATED)
def test_an_advantage_estimator_has_its_effect_on_the_run(load_run, estimator):
    plain = load_run(BASE, flags=("--advantage_estimator", estimator)).to_plain()
    assert {key: look_up(plain, key) for key in ESTIMATED[estimator]} == ESTIMATED[estimator]


def test_normalising_twice_is_refused_with_a_reason(run_problems):
    (text,) = run_problems(BASE, flags=("--advantages_norm",))
    assert text.startswith(
        "--advantages_norm (advantage): normalize would be a second normalisation: std: group is one"
    )


def test_flags_for_the_clip_reach_the_loss_that_an_algorithm_brings(load_run):
    run = load_run(BASE, flags=("--use_gspo", "--clip_range_higher", "0.001"))
    assert (run.loss.name, run.loss.config.clip_low, run.loss.config.clip_high) == ("gspo", 3e-4, 1e-3)


def test_re_entrant_checkpoints_are_checkpoints(load_run):
    run = load_run(BASE, flags=("--gradient_checkpointing", "--gradient_checkpointing_use_reentrant"))
    config = run.strategy.config
    assert (config.checkpointing, config.checkpointing_reentrant) == (True, True)
    assert "checkpointing_reentrant" not in load_run(BASE).to_yaml()


def test_a_flag_works_once_its_component_is_chosen(load_run):
    run = load_run(BASE, flags=("--advantage_estimator", "reinforce", "--gamma", "0.99"))
    assert (run.advantage.name, run.advantage.config.gamma) == ("reinforce", 0.99)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--fsdp_cpu_offload", FSDP),
        ("--use_mp_opt", FSDP),
        ("--initial_model_shard_size 2", FSDP),
        ("--meta_init", FSDP),
        ("--zpg 1", DEEPSPEED),
        ("--overlap_comm", DEEPSPEED),
        ("--grad_accum_dtype fp32", DEEPSPEED),
    ],
)
def test_flags_of_another_strategy_wait_for_it(run_problems, flag, message):
    (text,) = run_problems(BASE, flags=flag.split())
    assert message in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--zero_stage 0", "--zero_stage (strategy.stage): 0 is not one of 1, 2, 3"),
        ("--zero_stage 2 --zpg 4", "has no effect: strategy.stage is 2, where every rank has all weights."),
        ("--zero_stage 2 --fp16", "'fp16' is not one of auto, fp32, bf16"),
        ("--zero_stage 2 --grad_accum_dtype fp16", "'fp16' is not one of fp32, bf16"),
    ],
)
def test_what_zero_cannot_do_is_said(run_problems, flags, message):
    (text,) = run_problems(BASE, flags=flags.split())
    assert message in text


def test_a_flag_without_a_run_file_is_enough(run_folder, plugins):
    from lightrft_core.command_line import resolve_command_line

    words = ["--pretrain", "model", "--prompt_data", "train.jsonl", "--reward_recipe", '{"x": [["exact", 1.0]]}']
    run, _ = resolve_command_line(None, [], words)
    assert run.model.config.path == str(run_folder / "model")


MISTAKES = {
    "--n_sample_per_prompt 8": "--n_sample_per_prompt: no such flag. Did you mean --n_samples_per_prompt?",
    "--pretain x": "--pretain: no such flag. Did you mean --pretrain?",
    "--train-batchsize 8": "--train-batchsize: no such flag. Did you mean --train_batch_size?",
    "--actor_lr 1e-6": "--actor_lr: no such flag.",
    "--group_size 8": "--group_size: no such flag. Did you mean --set sampler.group_size=VALUE?",
    "--gruop-size 8": "--gruop-size: no such flag. Did you mean --set sampler.group_size=VALUE?",
    "--learning_rate 1": "--learning_rate: no such flag. Did you mean --actor_learning_rate?",
    "--lr 1e-6": "--lr: no such flag. Did you mean --set optim.lr=VALUE?",
    "--resum x": "--resum: no such flag. Did you mean --resume?",
    "--loss.clip_high 0.3": "--loss.clip_high: no such flag. Keys of the run file go by --set loss.clip_high=VALUE.",
    "--zzzzzzzzzzzz 3": "--zzzzzzzzzzzz: no such flag. docs/run-file.md lists all flags; keys of the run file go by",
    "--seed": "--seed: needs a value.",
    "--seed --bf16": "--seed: needs a value.",
    "--seed=": "--seed: needs a value.",
    "--seed fast": "--seed: 'fast' is not a whole number.",
    "--seed 1.5": "--seed: '1.5' is not a whole number.",
    "--temperature hot": "--temperature: 'hot' is not a number.",
    "--adam_betas 0.9,x": "--adam_betas: 'x' is not a number.",
    "--bf16=maybe": "--bf16: 'maybe' is not true or false.",
    "--bf16 --fp16": "--fp16: sets strategy.precision to 'fp16', and --bf16 sets it to 'bf16'. Give one of them.",
    "--save_path a --ckpt_path b": "--ckpt_path: sets run.dir to 'b', and --save_path sets it to 'a'.",
    "--eps_clip 0.2 --clip_range_higher 0.3 --clip_range_lower 0.1": "--eps_clip: has no effect beside flags for both",
    "--no_use_clip_higher": "--no_use_clip_higher: no such flag.",
    "--use_clip_higher=false": "--use_clip_higher: has no effect: this is off unless it is asked for. Leave it out.",
    "--use_fire=false": "--use_fire: has no effect: this is off unless it is asked for. Leave it out.",
    "--apply_chat_template=false": "--apply_chat_template: cannot be turned off: prompts go through the model's chat",
    "--init_kl_coef 0 --kl_estimator k3": "--init_kl_coef: 0 turns the KL off, so --kl_estimator would have no effect.",
    "--fsdp --zero_stage 3": "--zero_stage: has no effect beside --fsdp, which is another strategy.",
    "--max_len 100 --prompt_max_len 50 --generate_max_len 50": "--max_len: has no effect beside --prompt_max_len and",
    "--max_len 100": "--max_len: 100 leaves -1948 tokens for sampler.max_new_tokens.",
    "--prompt_data_probs 0.5,0.5 --prompt_data a.jsonl": "--prompt_data_probs: gives 2 probabilities for 1 data",
    "--lora_rank 0": "--lora_rank: has no effect: 0 means off, as without it. Leave it out.",
    "--advantage_estimator grop": "--advantage_estimator: 'grop' is not one of group_norm, reinforce,",
    "--remote_rm_url ftp://x": "--remote_rm_url: 'ftp://x' is neither a URL nor a .py file. For example http://",
    "--remote_rm_url none.py": "--remote_rm_url: none.py does not exist.",
    "--reward_recipe {": "--reward_recipe: not valid JSON: ",
    '--reward_recipe {"a":[[1]]}': "--reward_recipe: 'a': [1] is not [source, weight].",
    "--reward_recipe none.json": "none.json: cannot be read: No such file or directory.",
    '--reward_pretrain {"a":1}': "--reward_pretrain: takes a folder or a JSON map of names to folders.",
    f"--use_wandb {'0123456789' * 4}": "--use_wandb: looks like an API key. Put it into the environment variable",
    "stray": "command line: 'stray' is neither a flag nor key=value.",
}  # fmt: skip


@pytest.mark.parametrize("line", [line for line, said in MISTAKES.items() if said])
def test_a_mistake_with_a_flag_is_one_sentence(run_folder, line):
    errors = [str(error) for error in parse_flags(line.split())[1]]
    assert any(error.startswith(MISTAKES[line]) for error in errors), errors
    assert all("\n" not in error for error in errors)


def test_an_api_key_is_never_repeated():
    key = "0123456789" * 4
    assert key not in str(parse_flags(["--use_wandb", key])[1][0])


def test_an_unknown_flag_takes_its_value_with_it():
    overrides, errors = parse_flags(["--pretain", "x", "--seed", "3"])
    assert len(errors) == 1 and [item.key for item in overrides] == ["run.seed"]


def test_the_last_of_a_repeated_flag_wins():
    assert [item.value for item in parse_flags(["--seed", "1", "--seed", "2"])[0]] == [2]


def test_negative_numbers_are_values():
    assert parse_flags(["--save_steps", "-1"])[0][0].value is None
    assert parse_flags(["--top_k", "-1"])[0][0].value == 0


def test_a_kl_weight_of_zero_takes_the_kl_out(load_run):
    assert load_run("algorithm: grpo\n" + BASE).kl is not None
    assert load_run("algorithm: grpo\n" + BASE, flags=("--init_kl_coef", "0")).kl is None


def test_defaults_of_lightrft_are_not_applied_unless_given(load_run):
    assert load_run(BASE, flags=("--seed", "1")).kl is None
    assert load_run(BASE, flags=("--seed", "1")).sampler.config.top_p == 1.0


def test_key_value_words_are_sets_and_come_last():
    parsed = read_command_line(["sampler.group_size=2", "--n_samples_per_prompt", "4", "algorithm=grpo"])
    assert [(item.key, item.value) for item in parsed.overrides] == [
        ("sampler.group_size", 4),
        ("sampler.group_size", 2),
        ("algorithm", "grpo"),
    ]
    assert read_command_line(["filters[spread].metric=x"]).overrides[0].key == "filters[spread].metric"
    assert read_command_line(["--set", "run.seed=1", "--set=run.seed=2"]).overrides[1].value == 2


def test_data_flags_reach_the_evaluation_that_has_no_task_of_its_own(load_run):
    words = ("--input_key", "q", "--system_prompt", "Think")
    assert load_run(BASE, flags=(*words, "--eval_data", "test.jsonl")).evaluation_task.config.input_key == "q"
    assert load_run(BASE + EVAL, flags=words).evaluation_task.config.system_prompt == "Think"
    own = EVAL.replace("{path", "{use: jsonl, path")
    assert load_run(BASE + own, flags=words).evaluation_task.config.input_key == "prompt"


def test_eval_steps_without_an_evaluation_is_refused(run_problems):
    (text,) = run_problems(BASE, flags=("--eval_steps", "5"))
    assert text.startswith("--eval_steps (evaluation.every): has no effect: there is no evaluation.task.")


def test_reward_recipes_merge_labels_and_read_lightrfts_triples():
    recipe = {
        "gsm8k_rule": [["rule", None, 1.0]],
        "b": [["format", 0.1]],
        "c": [["format", 0.1]],
        "d": [["format", 0.5]],
    }
    overrides, errors = parse_flags(["--reward_recipe", json.dumps(recipe)])
    assert errors == []
    assert [(item.key, item.value["use"], item.value["weight"], item.value["labels"]) for item in overrides] == [
        ("rewards[gsm8k_rule]", "gsm8k_rule", 1.0, ["gsm8k_rule"]),
        ("rewards[format_b_c]", "format", 0.1, ["b", "c"]),
        ("rewards[format_d]", "format", 0.5, ["d"]),
    ]


def test_a_reward_recipe_may_be_a_file(run_folder):
    Path("recipe.json").write_text('{"a": [["exact", 1]]}')
    (override,), errors = parse_flags(["--reward_recipe", "recipe.json"])
    assert errors == [] and override.value["use"] == "exact"


def test_several_reward_models_have_names():
    overrides, _ = parse_flags(["--reward_pretrain", '{"safety": "a", "value": "b"}'])
    assert [(item.key, item.value["use"]) for item in overrides] == [
        ("rewards[safety]", "model"),
        ("rewards[value]", "model"),
    ]


def test_an_http_reward_goes_to_the_remote_reward():
    (override,), errors = parse_flags(["--remote_rm_url", "http://127.0.0.1:5000/score"])
    assert (override.key, errors) == ("rewards[remote].url", [])


def test_flags_know_their_keys():
    assert keys_by_flag()["n_samples_per_prompt"] == "sampler.group_size"
    assert keys_by_flag()["clip_range_high"] == "loss.clip_high"


@pytest.mark.parametrize("flag", ["--lora_alpha 8", "--load_in_4bit", "--target_modules q_proj"])
def test_options_of_lora_need_its_rank(run_problems, flag):
    (text,) = run_problems(BASE, flags=flag.split())
    assert "model.lora.rank" in text


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup"])
def test_schedules_have_the_names_of_transformers(load_run, name):
    assert load_run(BASE, flags=("--lr_scheduler", name)).optim.schedule == name


def test_the_page_in_the_docs_is_what_the_code_says():
    root = Path(__file__).parents[2]
    page = (root / "docs/run-file.md").read_text()
    filled = runpy.run_path(str(root / "scripts/write_run_file_docs.py"))["filled"](page)
    assert filled == page, "run python scripts/write_run_file_docs.py"
    assert [flag.name for flag in FLAGS if f"`--{flag.name}`" not in page] == []


def test_the_whole_run_in_the_docs_loads(load_run):
    page = (Path(__file__).parents[2] / "docs/run-file.md").read_text()
    run = load_run(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    assert [item.name for item in run.rewards] == ["exact", "format"]
