"""LightRFT's flags about algorithms change what is trained: a run with the flag ends with other weights."""

import hashlib
import math
from pathlib import Path

import pytest
from lightrft_core.flags import GROUPS, read_command_line
from lightrft_core.metrics_file import read_metrics
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import open_run_file
from lightrft_core.session import Session
from lightrft_core.store import RolloutStore

RUN = """
model: {path: MODEL}
task: {use: word_problems, split: train, num: 64}
sampler: {group_size: 4, prompts_per_step: 8, max_new_tokens: 24}
rewards: [gsm8k]
optim: {lr: 1.0e-3, batch_size: 8}
selftest: {enabled: false}
run: {steps: 1, seed: 7}
trackers: [jsonl]
"""
PLAIN = ""
RLOO, REINFORCE = "--advantage_estimator rloo", "--advantage_estimator reinforce"
KL, SHORT = "--init_kl_coef 0.5", "--generate_max_len 12"
GAE, FAST, TWICE = "--advantage_estimator gae", "--actor_learning_rate 0.003", "run.steps=2"
EXAMPLES = "--pretrain_data EXAMPLES"
# flag with its value: what else both runs are given
FLAGS = {
    "--advantage_estimator group_norm": "algorithm=reinforce",
    "--advantage_estimator gae": PLAIN,
    "--advantage_estimator reinforce": PLAIN,
    "--advantage_estimator reinforce++": PLAIN,
    "--advantage_estimator reinforce_baseline": PLAIN,
    "--advantage_estimator rloo": PLAIN,
    "--advantage_estimator grpo": PLAIN,
    "--advantage_estimator dr_grpo": PLAIN,
    "--advantage_estimator dapo": PLAIN,
    "--advantage_estimator cpgd": PLAIN,
    "--advantage_estimator gspo": PLAIN,
    "--advantage_estimator gmpo": PLAIN,
    "--use_gspo": PLAIN,
    "--no_use_sequence_rewards": "--use_gspo",
    "--use_cpg_loss": PLAIN,
    "--use_dapo": PLAIN,
    "--use_fire": PLAIN,
    "--first_token_temperature 3": "--use_fire",
    "--high_entropy_token_ratio 0.2": PLAIN,
    "--eps_clip 0.001": PLAIN,
    "--clip_range_higher 0.001": PLAIN,
    "--clip_range_lower 0.001": PLAIN,
    "--use_clip_higher": FAST,
    "--loss_agg_mode token-mean": PLAIN,
    "--loss_agg_mode seq-mean-token-sum": PLAIN,
    "--loss_agg_mode seq-mean-token-sum-norm": PLAIN,
    "--loss_agg_mode seq-mean-token-mean": "--use_dapo",
    "--no_normalize_advantages": PLAIN,
    "--advantages_norm": RLOO,
    "--advantage_clip 0.1": PLAIN,
    "--gamma 0.5": REINFORCE,
    "--lambd 0.5": GAE,
    "--value_clip 0.001": f"{GAE} --critic_learning_rate 0.001",
    "--critic_learning_rate 0.01": GAE,
    "--freezing_actor_steps 1": f"{GAE} {TWICE}",
    "--normalize_reward": REINFORCE,
    "--reward_running_norm_minus_mean": f"{REINFORCE} --reward_running_norm",
    "--reward_clip 0.3": REINFORCE,
    "--init_kl_coef 0.5": PLAIN,
    "--kl_estimator k2": KL,
    "--kl_estimator k1": f"{KL} --no_use_kl_loss {TWICE}",
    "--no_use_kl_loss": KL,
    "--kl_target 0.0001": f"{KL} {TWICE}",
    "--kl_horizon 32": f"{KL} {TWICE} --kl_target 0.0001",
    "--dynamic_sampling": PLAIN,
    "--overlong_buffer": SHORT,
    "--overlong_buffer_len 9": f"{SHORT} --overlong_buffer",
    "--overlong_buffer_penalty_factor 9": f"{REINFORCE} {SHORT} --overlong_buffer",
    "--enable_vllm_is_correction": "--top_p 0.8",
    "--vllm_is_truncated_threshold 0.5": "--top_p 0.8 --enable_vllm_is_correction",
    "--top_p 0.8": PLAIN,
    "--top_k 2": PLAIN,
    "--min_p 0.2": PLAIN,
    "--temperature 1.5": PLAIN,
    "--pretrain_data EXAMPLES": PLAIN,
    "--ptx_coef 0.5": EXAMPLES,
    "--enable_ema": PLAIN,
    "--ema_beta 0.5": "--enable_ema",
    "--n_samples_per_prompt 2": PLAIN,
    "--rollout_batch_size 4": PLAIN,
    "--train_batch_size 16": PLAIN,
    "--max_epochs 2": PLAIN,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quickstart_model, plugins):
    """Runs one step with these flags, once; the folder of the run."""
    source = tmp_path_factory.mktemp("flags") / "run.yaml"
    source.write_text(RUN.replace("MODEL", str(quickstart_model)))
    examples = source.parent / "examples.jsonl"
    examples.write_text('{"prompt": "What is 1+1?", "response": "#### 2"}\n' * 8)
    done: dict[str, Path] = {}

    def train(flags):
        if flags not in done:
            parsed = read_command_line(flags.replace("EXAMPLES", str(examples)).split())
            assert parsed.errors == []
            run_file, _ = open_run_file(source, parsed.overrides, plugins)
            run_dir = RunDir.create(source.parent, f"run{len(done)}")
            Session(run_file, plugins, run_dir, lambda line: None).train(resume=False)
            done[flags] = run_dir.path
        return done[flags]

    return train


def metric(run, name):
    """The last value of a metric."""
    return read_metrics(RunDir(run).metrics)[name][-1][1]


def weights(run):
    """A hash of every file of tensors in the newest checkpoint: policy, moments, critic, average, reference."""
    newest = max((run / "checkpoints").glob("step_*"))
    files = sorted(newest.rglob("*.safetensors"))
    return {str(path.relative_to(newest)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rollouts(run):
    store = RolloutStore(run / "rollouts.sqlite", readonly=True)
    found = store.search(limit=-1)
    store.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS)
def test_the_flag_changes_what_is_trained(trained, flag):
    others = FLAGS[flag]
    assert weights(trained(f"{others} {flag}".strip())) != weights(trained(others))


@pytest.mark.slow
def test_the_same_flags_train_the_same_weights(trained):
    assert weights(trained("--seed 7")) == weights(trained(PLAIN))


@pytest.mark.slow
def test_fire_draws_first_tokens_almost_evenly(trained):
    hot = [row.logprobs[0] for row in rollouts(trained("--use_fire --first_token_temperature 1000"))]
    size = round(math.exp(-sum(hot) / len(hot)))
    assert size > 20
    assert hot == pytest.approx([-math.log(size)] * len(hot), abs=0.2)
    later = [value for row in rollouts(trained("--use_fire")) for value in row.logprobs[1:]]
    assert sum(later) / len(later) > -1.5


@pytest.mark.slow
def test_high_entropy_tokens_alone_are_trained(trained):
    few, all_tokens = (trained(f"--high_entropy_token_ratio {ratio}") for ratio in ("0.2", "1.0"))
    assert metric(few, "train/entropy") > 3 * metric(all_tokens, "train/entropy")


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--top_k 1", "--min_p 1"])
def test_cutting_down_to_the_likeliest_token_is_greedy(trained, flag):
    found = rollouts(trained(flag))
    assert {value for row in found for value in row.logprobs} == {0.0}
    assert len({row.token_ids for row in found}) <= 8 < len({row.token_ids for row in rollouts(trained(PLAIN))})


@pytest.mark.slow
def test_top_k_draws_from_the_k_likeliest_renormalised(trained):
    """Wherever siblings part, two tokens were drawn whose chances add up to 1."""
    chances = {}
    for row in rollouts(trained("--top_k 2")):
        for place, (token, value) in enumerate(zip(row.token_ids, row.logprobs, strict=True)):
            chances.setdefault((row.prompt_id, row.token_ids[:place]), {})[token] = math.exp(value)
    parted = [found for found in chances.values() if len(found) > 1]
    assert len(parted) > 5
    assert [sum(found.values()) for found in parted] == pytest.approx([1.0] * len(parted), abs=1e-4)


@pytest.mark.slow
def test_the_reward_clip_is_told(trained):
    assert metric(trained(f"{REINFORCE} --reward_clip 0.3"), "reward/clipped_fraction") > 0.2


@pytest.mark.slow
def test_the_clip_range_is_where_the_clip_begins(trained):
    clipped = [metric(trained(flags), "train/clip_fraction") for flags in (PLAIN, "--eps_clip 0.001")]
    assert clipped[0] < 0.1 < clipped[1]
    sides = [metric(trained(f"--clip_range_{side} 0.001"), "train/clip_fraction") for side in ("lower", "higher")]
    assert all(clipped[0] < side < clipped[1] for side in sides)


@pytest.mark.slow
def test_the_kl_is_steered_towards_its_target(trained):
    """The measured KL is far above 0.0001, so each step raises the weight by 20% x 32 samples / horizon."""
    steered = [
        metric(trained(f"{KL} {TWICE} --kl_target 0.0001{rest}"), "train/kl_coef") for rest in ("", " --kl_horizon 32")
    ]
    assert steered[0] == pytest.approx(0.5 * (1 + 0.2 * 32 / 10000) ** 2)
    assert steered[1] == pytest.approx(0.5 * 1.2**2)
    assert metric(trained(f"{KL} {TWICE}"), "train/kl_coef") == 0.5


@pytest.mark.slow
def test_the_value_clip_decides_the_critics_loss(trained):
    rate = f"{GAE} --critic_learning_rate 0.001"
    tight, usual = (metric(trained(rate + clip), "train/value_clip_fraction") for clip in (" --value_clip 0.001", ""))
    assert tight > 0.1 > usual


@pytest.mark.slow
def test_the_frozen_policy_has_no_rate(trained):
    run = trained(f"{GAE} {TWICE} --freezing_actor_steps 1")
    rates = [rate for _, rate in read_metrics(RunDir(run).metrics)["train/lr"]]
    assert rates[0] == 0.0 < rates[1]


@pytest.mark.slow
def test_supervised_examples_are_learnt(trained):
    assert metric(trained(EXAMPLES), "train/ptx_loss") > 0
    assert "train/ptx_loss" not in read_metrics(RunDir(trained(PLAIN)).metrics)


@pytest.mark.slow
def test_the_average_is_in_the_checkpoint_and_the_policy_is_as_without(trained):
    with_average, plain = weights(trained("--enable_ema")), weights(trained(PLAIN))
    assert plain.items() < with_average.items()
    changed = weights(trained("--enable_ema --ema_beta 0.5")).items() - with_average.items()
    assert [name for name, _ in changed] == list(set(with_average) - set(plain))


@pytest.mark.slow
def test_dynamic_sampling_leaves_no_group_without_spread(trained):
    run = trained("--dynamic_sampling")
    assert metric(run, "group/zero_spread_fraction") == 0.0 < metric(trained(PLAIN), "group/zero_spread_fraction")
    assert metric(run, "filter/filled_fraction") == 1.0 > metric(run, "filter/kept_fraction")


@pytest.mark.slow
def test_the_running_norm_is_in_the_metrics_and_in_the_checkpoint(trained):
    run = trained(f"{REINFORCE} --normalize_reward")
    assert "reward/running_std" in read_metrics(RunDir(run).metrics)
    newest = max((run / "checkpoints").glob("step_*"))
    assert any('"squares"' in path.read_text() for path in newest.rglob("*.json"))


@pytest.mark.slow
def test_the_importance_weights_are_capped(trained):
    flags = "--top_p 0.8 --enable_vllm_is_correction --vllm_is_truncated_threshold 0.5"
    assert metric(trained(flags), "correction/capped_fraction") == 1.0
    assert metric(trained(flags), "correction/weight_mean") == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--n_samples_per_prompt 2", "--rollout_batch_size 4"])
def test_rollouts_are_as_many_as_asked_for(trained, flag):
    assert len(rollouts(trained(flag))) == 16


def test_every_flag_of_algorithms_and_sampling_is_in_this_file():
    """By one of its names; --use_kl_loss and the like are tested by their opposite."""
    text = Path(__file__).read_text()
    flags = [flag for group in ("Algorithm", "Sampling and engine") for flag in GROUPS[group]]
    ours = [flag for flag in flags if not flag.shown_keys.startswith("engine.")]
    assert [flag.name for flag in ours if not any(name in text for name in flag.names.split())] == []
