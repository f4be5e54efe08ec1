"""LightRFT's flags about algorithms change what is trained: a run with the flag ends with other weights."""

import hashlib
import math
from pathlib import Path

import pytest
from lightrft_core.flags import read_command_line
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
# flag with its value: what else both runs are given
FLAGS = {
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
    "--loss_agg_mode token-mean": PLAIN,
    "--no_normalize_advantages": PLAIN,
    "--advantages_norm": RLOO,
    "--advantage_clip 0.1": PLAIN,
    "--gamma 0.5": REINFORCE,
    "--normalize_reward": REINFORCE,
    "--reward_running_norm_minus_mean": f"{REINFORCE} --reward_running_norm",
    "--reward_clip 0.3": REINFORCE,
    "--init_kl_coef 0.5": PLAIN,
    "--kl_estimator k2": KL,
    "--no_use_kl_loss": KL,
    "--dynamic_sampling": PLAIN,
    "--overlong_buffer": SHORT,
    "--overlong_buffer_len 9": f"{SHORT} --overlong_buffer",
    "--overlong_buffer_penalty_factor 9": f"{REINFORCE} {SHORT} --overlong_buffer",
    "--enable_vllm_is_correction": "--top_p 0.8",
    "--vllm_is_truncated_threshold 0.5": "--top_p 0.8 --enable_vllm_is_correction",
    "--top_p 0.8": PLAIN,
    "--temperature 1.5": PLAIN,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quickstart_model, plugins):
    """Runs one step with these flags, once; the folder of the run."""
    source = tmp_path_factory.mktemp("flags") / "run.yaml"
    source.write_text(RUN.replace("MODEL", str(quickstart_model)))
    done: dict[str, Path] = {}

    def train(flags):
        if flags not in done:
            parsed = read_command_line(flags.split())
            assert parsed.errors == []
            run_file, _ = open_run_file(source, parsed.overrides, plugins)
            run_dir = RunDir.create(source.parent, f"run{len(done)}")
            Session(run_file, plugins, run_dir, lambda line: None).train(resume=False)
            done[flags] = run_dir.path
        return done[flags]

    return train


def weights(run):
    newest = max((run / "checkpoints").glob("step_*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in newest.glob("*.safetensors")}


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
    def entropy(flags):
        (value,) = dict(read_metrics(RunDir(trained(flags)).metrics)["train/entropy"]).values()
        return value

    assert entropy("--high_entropy_token_ratio 0.2") > 3 * entropy("--high_entropy_token_ratio 1.0")


@pytest.mark.slow
def test_the_running_norm_is_in_the_metrics_and_in_the_checkpoint(trained):
    run = trained(f"{REINFORCE} --normalize_reward")
    assert "reward/running_std" in read_metrics(RunDir(run).metrics)
    newest = max((run / "checkpoints").glob("step_*"))
    assert any('"squares"' in path.read_text() for path in newest.glob("*.json"))
