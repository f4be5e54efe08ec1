"""LightRFT's flags: one row each. `lightrft train` accepts all of them, with underscores or dashes."""

from typing import Final

from lightrft_core import flag_effects as effects
from lightrft_core.flag_rows import Always, Flag, Refused, mapped, sets, unless_zero

_REWARD_MODEL = "a reward model: the reward `model`"
_FSDP = "the strategy fsdp2"
_DEEPSPEED = "the strategy deepspeed"
_SERVER = "an engine with a process of its own: vllm or sglang"
_LORA = "a model adapter with LoRA"
_MEDIA = "an adapter for vision or audio, from lightrft-vlm"

MODEL_AND_REWARDS: Final = (
    Flag("pretrain", "model.path", "path", "The model to train: a folder or a hub id."),
    Flag(
        "reward_pretrain", effects.reward_pretrain, "text", "Reward model, or a JSON map of them.",
        keys="rewards[model].path", needs=_REWARD_MODEL,
    ),
    Flag(
        "remote_rm_url", effects.remote_rm_url, "text", "Reward server, or a Python file with a reward function.",
        keys="rewards[remote].url or rewards[python].path",
    ),
    Flag(
        "reward_recipe", effects.reward_recipe, "text", "Label to rewards with weights: JSON or a file of it.",
        keys="rewards[...].weight, rewards[...].labels",
    ),
    Flag("critic_pretrain", "critic.path", "path", "Model that the critic starts from."),
    Flag("save_value_network", "critic.export", "switch", "Export the critic too."),
    Flag("value_head_prefix", "critic.head", "text", "Name of the critic's head."),
    Flag("value_clip", unless_zero("critic.clip"), "float", "Clip range of the critic's values.", keys="critic.clip"),
    Flag(
        "freezing_actor_steps", mapped("critic.policy_freeze_steps", {-1: 0}), "int",
        "Train the critic alone for so many steps.", keys="critic.policy_freeze_steps",
    ),
    Flag("rm_use_engine", "rewards[model].engine", "switch", "Serve the reward model by an engine.",
         needs=_REWARD_MODEL),
    Flag(
        "rm_engine_cudagraph", "rewards[model].cudagraph", "switch", "CUDA graphs in that engine.",
        needs=_REWARD_MODEL, switch="rm_use_engine",
    ),
)  # fmt: skip

DATA: Final = (
    Flag("prompt_data", effects.prompt_data, "paths", "Prompts to train on; several separated by commas.",
         keys="task.path"),
    Flag("prompt_data_probs", "task.probabilities", "floats", "Share of each of them.", switch="prompt_data"),
    Flag("prompt_split", "task.split", "text", "Split to train on."),
    Flag("input_key", "task.input_key", "text", "Column with the prompt."),
    Flag("images_key", "task.images_key", "text", "Column with images."),
    Flag("reference_key", "task.reference_key", "text", "Column with the right answer."),
    Flag("label_key", "task.label_key", "text", "Column that routes to rewards."),
    Flag("input_template", "task.input_template", "text", "Text around the prompt."),
    Flag("system_prompt", "task.system_prompt", "text", "System message."),
    Flag(
        "apply_chat_template",
        Always("prompts go through the model's chat template; model.chat_template: plain turns it off"),
        "switch", "Use the model's chat template.",
    ),
    Flag("max_samples", "task.max_prompts", "int", "Use only the first so many prompts."),
    Flag("prompt_max_len", "task.max_prompt_tokens", "int", "Longest prompt, in tokens."),
    Flag("generate_max_len", "sampler.max_new_tokens", "int", "Longest completion, in tokens."),
    Flag(
        "max_len", effects.max_len, "int", "Deprecated: prompt and completion together.",
        keys="task.max_prompt_tokens, sampler.max_new_tokens",
    ),
    Flag("eval_data", "evaluation.task.path", "paths", "Prompts to evaluate on."),
    Flag("eval_split", "evaluation.task.split", "text", "Split to evaluate on.", switch="eval_data"),
    Flag(
        "eval_steps", mapped("evaluation.every", {-1: None}), "int",
        "Evaluate every so many steps; -1 is never between.",
        keys="evaluation.every", switch="eval_data",
    ),
    Flag("max_eval_samples", "evaluation.task.max_prompts", "int", "Evaluate on the first so many.",
         switch="eval_data"),
    Flag("mixed_mm_data", "task.mixed_media", "switch", "Rows with and without media together.", needs=_MEDIA),
)  # fmt: skip

STEPS_AND_BATCHES: Final = (
    Flag("num_episodes", "run.episodes", "int", "Passes over the prompts."),
    Flag("max_epochs", "optim.epochs", "int", "Passes over each rollout."),
    Flag("train_batch_size", "optim.batch_size", "int", "Samples per optimizer step, over all ranks."),
    Flag("micro_train_batch_size", "strategy.micro_batch_size", "int", "Samples of one pass with gradient, per rank."),
    Flag("rollout_batch_size", "sampler.prompts_per_step", "int", "Prompts per rollout, over all ranks."),
    Flag(
        "micro_rollout_batch_size", "strategy.logprob_micro_batch_size", "int", "Samples of one pass without gradient."
    ),
    Flag("n_samples_per_prompt", "sampler.group_size", "int", "Completions of each prompt."),
    Flag("max_time", "run.max_time", "text", "Save, stop and exit 75 before so much time is over: 3h50m."),
    Flag("seed", "run.seed", "int", "Seed of the run."),
    Flag("local_rank", Always("launchers pass it; the rank comes from their environment"), "int", "Set by launchers."),
)

OPTIMIZER: Final = (
    Flag("actor_learning_rate", "optim.lr", "float", "Peak learning rate."),
    Flag("critic_learning_rate", "critic.lr", "float", "Peak learning rate of the critic."),
    Flag("lr_warmup_ratio", "optim.warmup_ratio", "float", "Share of the steps over which the rate rises."),
    Flag("lr_scheduler", "optim.schedule", "text", "Course of the learning rate."),
    Flag("max_norm", "optim.max_grad_norm", "float", "Clip the global gradient norm; 0 is off."),
    Flag("l2", "optim.weight_decay", "float", "Decoupled weight decay."),
    Flag("adam_betas", "optim.betas", "floats", "AdamW's two decay rates."),
    Flag("ptx_coef", "optim.ptx.coef", "float", "Weight of a supervised loss."),
    Flag("pretrain_data", "optim.ptx.path", "paths", "Data of a supervised loss."),
    Flag("freeze_prefix", "model.freeze", "texts",
         "Freeze parameters by the first parts of their names. Without any, LightRFT froze `visual`.",
         needs="a model adapter that freezes parts"),
    Flag("aux_loss_coef", unless_zero("model.aux_loss"), "float", "Balance loss of experts.", keys="model.aux_loss",
         needs="a model adapter for mixtures of experts"),
)  # fmt: skip

ALGORITHM: Final = (
    Flag(
        "advantage_estimator", effects.advantage_estimator, "text", "Advantage, or algorithm of that name.",
        keys="advantage.use or algorithm",
    ),
    Flag("eps_clip clip_range", effects.eps_clip, "float", "Clip range.", keys="loss.clip_low, loss.clip_high"),
    Flag("clip_range_higher clip_range_high eps_clip_high", "loss.clip_high", "float", "Clip range above 1."),
    Flag("clip_range_lower", "loss.clip_low", "float", "Clip range below 1."),
    Flag("use_clip_higher", effects.use_clip_higher, "switch", "Clip-higher: 0.3 above 1.", keys="loss.clip_high"),
    Flag("loss_agg_mode", effects.loss_agg_mode, "text", "How token losses become one number.",
         keys="loss.aggregation"),
    Flag("use_gspo", sets("algorithm", "gspo"), "switch", "GSPO.", keys="algorithm"),
    Flag("use_dapo", sets("algorithm", "dapo"), "switch", "DAPO.", keys="algorithm"),
    Flag("use_cpg_loss", sets("loss.use", "cpgd"), "switch", "The CPGD loss.", keys="loss.use"),
    Flag(
        "use_sequence_rewards", sets("loss.level", "sequence", "token"), "switch", "GSPO per sequence; off: per token.",
        keys="loss.level", off="no_use_sequence_rewards disable_use_sequence_rewards", needs="the loss gspo",
    ),
    Flag(
        "normalize_advantages", sets("advantage.std", "group", "none"), "switch", "Divide by the group's deviation.",
        keys="advantage.std", off="no_normalize_advantages disable_normalize_advantages",
    ),
    Flag(
        "advantages_norm", sets("advantage.normalize", True, False), "switch", "Whiten over the whole batch.",
        keys="advantage.normalize",
        needs="an advantage that may whiten: reinforce, rloo, or group_norm with std: none; reinforce_pp always does",
    ),
    Flag("advantage_clip", unless_zero("advantage.clip"), "float", "Largest absolute advantage.",
         keys="advantage.clip"),
    Flag("gamma", "advantage.gamma", "float", "Discount.",
         needs="an advantage with a discount: reinforce, reinforce_pp or gae"),
    Flag("lambd", "advantage.lambd", "float", "GAE's lambda.", needs="the advantage gae"),
    Flag("kl_estimator", "kl.use", "text", "Estimator of the KL to the reference."),
    Flag("init_kl_coef", effects.init_kl_coef, "float", "Weight of the KL; 0 is none.", keys="kl.coef"),
    Flag("kl_target", "kl.target", "float", "Steer the weight towards this KL."),
    Flag("kl_horizon", "kl.horizon", "int", "Samples over which the weight is steered.", switch="kl_target"),
    Flag(
        "use_kl_loss", sets("kl.place", "loss", "reward"), "switch", "KL in the loss; off: in the reward.",
        keys="kl.place", off="no_use_kl_loss disable_use_kl_loss",
    ),
    Flag("dynamic_sampling", sets("filters[spread]", {}), "switch", "Draw groups without spread anew.",
         keys="filters[spread]"),
    Flag("overlong_buffer", sets("shapers[overlong]", {}), "switch", "Soft penalty for long answers.",
         keys="shapers[overlong]"),
    Flag("overlong_buffer_len", "shapers[overlong].buffer", "int", "Tokens of it.", switch="overlong_buffer"),
    Flag("overlong_buffer_penalty_factor", "shapers[overlong].factor", "float", "Its height.",
         switch="overlong_buffer"),
    Flag(
        "high_entropy_token_ratio select_high_entropy_tokens", unless_zero("selectors[high_entropy].ratio"), "float",
        "Train only this share of tokens.", keys="selectors[high_entropy].ratio",
    ),
    Flag("reward_running_norm normalize_reward", sets("shapers[running_norm]", {}), "switch",
         "Running norm of rewards.",
         keys="shapers[running_norm]"),
    Flag("reward_running_norm_minus_mean", "shapers[running_norm].minus_mean", "switch", "Subtract its mean too.",
         switch="reward_running_norm"),
    Flag("reward_clip", unless_zero("shapers[clip].limit"), "float", "Largest absolute reward.",
         keys="shapers[clip].limit"),
    Flag("enable_vllm_is_correction", sets("correction.use", "tis"), "switch", "Truncated importance weights.",
         keys="correction.use"),
    Flag("vllm_is_truncated_threshold", "correction.cap", "float", "Largest weight.",
         switch="enable_vllm_is_correction", needs="a correction: --enable_vllm_is_correction"),
)  # fmt: skip

SAMPLING: Final = (
    Flag("temperature", "sampler.temperature", "float", "Sampling temperature."),
    Flag("top_p", "sampler.top_p", "float", "Nucleus sampling; 1 is off."),
    Flag("top_k", mapped("sampler.top_k", {-1: 0}), "int", "Of the k likeliest; 0 or -1 is off.", keys="sampler.top_k"),
    Flag("min_p", "sampler.min_p", "float", "Drop tokens less likely than this share of the likeliest."),
    Flag("use_fire", sets("sampler.use", "fire"), "switch", "First token at a high temperature.", keys="sampler.use"),
    Flag("first_token_temperature", "sampler.first_token_temperature", "float", "That temperature.",
         needs="the sampler fire", switch="use_fire"),
    Flag("engine_type", mapped("engine.use", {"hf": "embedded"}), "text", "What generates.", keys="engine.use"),
    Flag("engine_tp_size", "engine.tensor_parallel", "int", "GPUs per engine.", needs=_SERVER),
    Flag("engine_mem_util", "engine.memory_fraction", "float", "Share of the GPU's memory.", needs=_SERVER),
    Flag("enable_engine_sleep", "engine.sleep", "switch", "Give memory back while training.",
         off="disable_engine_sleep no_enable_engine_sleep", needs=_SERVER),
    Flag("enforce_eager", "engine.enforce_eager", "switch", "No CUDA graphs.", needs=_SERVER),
    Flag("fp8_rollout", sets("engine.quantization", "fp8"), "switch", "Generate in fp8.",
         keys="engine.quantization", needs=_SERVER),
    Flag("limit_mm_image_per_prompt", "engine.max_images", "int", "Images per prompt.", needs=_SERVER),
    Flag("limit_mm_video_per_prompt", "engine.max_videos", "int", "Videos per prompt.", needs=_SERVER),
)  # fmt: skip

STRATEGY: Final = (
    Flag("fsdp", sets("strategy.use", "fsdp2"), "switch", "Shard by FSDP2.", keys="strategy.use"),
    Flag("zero_stage", effects.zero_stage, "int", "Shard by DeepSpeed ZeRO.", keys="strategy.use, strategy.stage"),
    Flag("zpg", "strategy.zpg", "int", "ZeRO++ partition size.", needs=_DEEPSPEED),
    Flag("overlap_comm", "strategy.overlap_comm", "switch", "Overlap communication.", needs=_DEEPSPEED),
    Flag("grad_accum_dtype", "strategy.grad_accum_dtype", "text", "Type of accumulated gradients.", needs=_DEEPSPEED),
    Flag("adam_offload", "strategy.adam_offload", "switch", "Optimizer state on the CPU."),
    Flag("fsdp_cpu_offload", "strategy.cpu_offload", "switch", "Parameters on the CPU.", needs=_FSDP),
    Flag("use_mp_opt", "strategy.master_weights", "switch", "Weights and optimizer state in fp32 where bf16 computes.",
         off="no_use_mp_opt disable_use_mp_opt", needs=_FSDP),
    Flag("initial_model_shard_size", "strategy.shard_size", "int", "Ranks that share one copy.", needs=_FSDP),
    Flag("meta_init", "strategy.meta_init", "switch", "Only rank 0 reads the weights.",
         off="no_meta_init disable_meta_init", needs=_FSDP),
    Flag("sp_size", "strategy.sequence_parallel", "int", "Ranks that share one sequence."),
    Flag("bf16", sets("strategy.precision", "bf16", "fp32"), "switch", "bfloat16.",
         keys="strategy.precision", off="no_bf16 disable_bf16"),
    Flag("fp16", sets("strategy.precision", "fp16"), "switch", "float16.", keys="strategy.precision"),
    Flag("gradient_checkpointing", "strategy.checkpointing", "switch", "Less memory, more time.",
         off="no_gradient_checkpointing disable_gradient_checkpointing"),
    Flag("gradient_checkpointing_use_reentrant", "strategy.checkpointing_reentrant", "switch",
         "By torch's older checkpoints.", switch="gradient_checkpointing"),
    Flag("packing_samples", "strategy.packing", "switch", "No padding.",
         off="no_packing_samples disable_packing_samples"),
    Flag("fused_linear_logprob", Always("log-probabilities are always computed in chunks of tokens"), "switch",
         "Never hold all logits."),
    Flag("chunk_size", "strategy.logprob_chunk", "int", "Tokens whose logits exist at one time."),
    Flag("enable_ema", "strategy.ema", "switch", "Average of the weights.",
         needs="a strategy that keeps an average of the weights"),
    Flag("ema_beta", "strategy.ema_beta", "float", "Its decay.",
         needs="a strategy that keeps an average of the weights",
         switch="enable_ema"),
    Flag("flash_attn", sets("model.attention", "flash_attention_2"), "switch", "Flash attention.",
         keys="model.attention"),
    Flag("disable_fast_tokenizer", sets("model.fast_tokenizer", False), "switch", "The slow tokenizer.",
         keys="model.fast_tokenizer", needs="an adapter with slow tokenizers; transformers 5 has none"),
    Flag("lora_rank", unless_zero("model.lora.rank"), "int", "Rank of LoRA; 0 is off.",
         keys="model.lora.rank", needs=_LORA),
    Flag("lora_alpha", "model.lora.alpha", "int", "Scale of LoRA.", needs=_LORA, switch="lora_rank"),
    Flag("lora_dropout", "model.lora.dropout", "float", "Dropout of LoRA.", needs=_LORA, switch="lora_rank"),
    Flag("target_modules", "model.lora.target_modules", "texts", "Layers with LoRA.", needs=_LORA, switch="lora_rank"),
    Flag("load_in_4bit", "model.lora.load_in_4bit", "switch", "Base weights in 4 bits.", needs=_LORA),
    Flag("processor", "model.processor", "text", "Processor of media.", needs=_MEDIA),
    Flag("text_only", "model.text_only", "switch", "Leave media out.", needs=_MEDIA),
    Flag("fps", "model.fps", "float", "Frames per second of video.", needs=_MEDIA),
    Flag("max_pixels", "model.max_pixels", "int", "Largest image.", needs=_MEDIA),
)  # fmt: skip

OUTPUT: Final = (
    Flag("save_path", "run.dir", "text", "Folder that holds the runs."),
    Flag("ckpt_path", "run.dir", "text", "The same: checkpoints lie in the run's folder."),
    Flag("load_checkpoint", "run.resume", "switch", "Go on with the run where it exists, else start it."),
    Flag("save_steps", mapped("checkpoint.every", {-1: None}), "int", "Save every so many steps; -1 is at the end.",
         keys="checkpoint.every"),
    Flag("save_interval", "checkpoint.every_episodes", "int", "Save after every so many passes over the prompts."),
    Flag("max_ckpt_num", "checkpoint.keep", "int", "Newest checkpoints to keep."),
    Flag("max_ckpt_mem", "checkpoint.max_gb", "float", "GiB that all checkpoints together may take."),
    Flag("save_hf_ckpt", "checkpoint.export", "switch", "A Hugging Face folder in every checkpoint."),
    Flag("disable_ds_ckpt", sets("checkpoint.resumable", False), "switch",
         "The Hugging Face folder alone in every checkpoint.", keys="checkpoint.resumable"),
    Flag("log_dir", Refused("metrics.jsonl and log.txt are in the run's folder: --save_path"), "text",
         "Folder of logs."),
    Flag("plot_every", "plots.every", "int", "Draw curves every so many steps."),
    Flag("logging_steps", "trackers[console].every", "int", "Print every so many steps."),
    Flag("use_tensorboard", effects.use_tensorboard, "text", "TensorBoard, and its folder.",
         keys="trackers[tensorboard].dir"),
    Flag("use_wandb", effects.use_wandb, "text", "Weights & Biases, and its project.", keys="trackers[wandb].project"),
    Flag("wandb_project", "trackers[wandb].project", "text", "Project.", switch="use_wandb"),
    Flag("wandb_org", "trackers[wandb].entity", "text", "Owner of the project.", switch="use_wandb"),
    Flag("wandb_group", "trackers[wandb].group", "text", "Group of runs.", switch="use_wandb"),
    Flag("wandb_run_name", "trackers[wandb].run_name", "text", "Name of the run there.", switch="use_wandb"),
    Flag("save_trajectories", "rollouts.save", "switch", "Keep every rollout.",
         off="no_save_trajectories disable_save_trajectories"),
    Flag("num_trajectories_to_save", Refused("every rollout is saved; `lightrft rollouts RUN` searches them"), "int",
         "How many."),
    Flag("mark_high_entropy_tokens", Refused("`lightrft rollouts RUN` shows what the model wrote"), "switch",
         "Mark tokens."),
    Flag("trajectory_analysis", Refused("`lightrft rollouts RUN` and `lightrft runs show RUN` do it"), "switch",
         "Statistics."),
    Flag("print_replay_buffer_stats", Refused("every step's statistics are in metrics.jsonl"), "switch",
         "Print statistics."),
)  # fmt: skip

GROUPS: Final = {
    "Model and rewards": MODEL_AND_REWARDS,
    "Data": DATA,
    "Steps and batches": STEPS_AND_BATCHES,
    "Optimizer": OPTIMIZER,
    "Algorithm": ALGORITHM,
    "Sampling and engine": SAMPLING,
    "Strategy and model": STRATEGY,
    "Output": OUTPUT,
}
FLAGS: Final = tuple(flag for group in GROUPS.values() for flag in group)
