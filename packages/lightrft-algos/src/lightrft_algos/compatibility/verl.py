"""verl 0.9.1: `verl/trainer/config/*.yaml`, `verl/trainer/ppo/core_algos.py` and its example scripts.

Its loss is clipped on both sides and at 3 where the advantage is negative, and averaged over all tokens of the step. A
group of one keeps its raw reward there; it gets 0 here. Its whitening divides by the standard deviation with n-1.
"""

from typing import Any

from lightrft_core.descriptors import Algorithm

PAPER = "github.com/verl-project/verl, version 0.9.1"
GROUP_NORM = {"use": "group_norm", "std": "group", "eps": 1e-6}
CLIP: dict[str, Any] = {  # Any: YAML values
    "use": "clip",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": 3.0,
    "aggregation": "token_mean",
}
K1_IN_REWARD = {"use": "k1", "place": "reward", "coef": 0.001}
CLIPPED = "mean over tokens of -min(r A, clip(r, 0.8, 1.2) A), at most -3 A where A < 0"
RETURNS = "R_i = reward - 0.001 sum_t k1_t"

GRPO = Algorithm(
    name="verl/grpo",
    summary="GRPO as verl runs it: token mean, dual clip at 3, k3 in the loss.",
    sections={
        "advantage": GROUP_NORM,
        "loss": CLIP,
        "kl": {"use": "k3", "place": "loss", "coef": 0.001},
    },
    formula=f"A_i = (R_i - mean_g) / (std_g + 1e-6), std with n-1; {CLIPPED}, + 0.001 k3",
    paper=PAPER,
    when="To carry a verl run over: adv_estimator grpo with use_kl_loss, as in its GRPO examples (its default is no "
    "KL: kl: none). verl gives a group of one its raw reward; here it gets 0. verl bounds k3 by 10 nats a token.",
)

DR_GRPO = Algorithm(
    name="verl/dr_grpo",
    summary="Dr. GRPO as verl runs it: no spread, the sum over tokens over a constant, dual clip at 3.",
    sections={
        "advantage": {"use": "group_norm", "std": "none"},
        "loss": {**CLIP, "aggregation": "seq_mean_token_sum_norm"},
    },
    formula="A_i = R_i - mean_g; sum over tokens of -min(r A, clip(r, 0.8, 1.2) A), at most -3 A where A < 0, divided "
    "by the number of sequences and by the longest completion that is allowed",
    paper=PAPER,
    when="To carry a verl run over: norm_adv_by_std_in_grpo=False, loss_agg_mode=seq-mean-token-sum-norm, no KL. The "
    "divisor is verl's padded response length; where loss_scale_factor is set, give it as loss.token_budget.",
)

DAPO = Algorithm(
    name="verl/dapo",
    summary="DAPO as verl's recipe runs it: clip-higher, dual clip at 10, ten batches of dynamic sampling at most.",
    sections={
        "advantage": GROUP_NORM,
        "loss": {**CLIP, "clip_high": 0.28, "dual_clip": 10.0},
        "filters": [{"use": "spread"}],
        "shapers": [{"use": "overlong", "factor": 1.0}],
        "sampler": {"max_refill_rounds": 9},
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-6), std with n-1; mean over tokens of -min(r A, clip(r, 0.8, 1.28) A), "
    "at most -10 A where A < 0; groups whose accuracy has no spread are drawn anew; R falls by up to 1 in the last "
    "fifth before max_new_tokens",
    paper=PAPER,
    when="To carry run_dapo_qwen2.5_32b.sh over: filter_groups.metric acc, max_num_gen_batches 10, overlong_buffer of "
    "a fifth of the response length. verl fails where ten batches do not fill a step; here the step goes on with "
    "fewer groups. Its rewards are 1 and -1, those of rules here 1 and 0.",
)

GSPO = Algorithm(
    name="verl/gspo",
    summary="GSPO as verl runs it: the sequence's ratio with each token's gradient, no KL.",
    sections={
        "advantage": GROUP_NORM,
        "loss": {
            "use": "gspo",
            "level": "token",
            "clip_low": 3e-4,
            "clip_high": 4e-4,
            "aggregation": "seq_mean_token_mean",
        },
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-6), s_t = sg[exp(mean_t (l - l_old))] exp(l - sg[l]); mean over "
    "sequences of the mean over tokens of -min(s_t A, clip(s_t, 1 - 3e-4, 1 + 4e-4) A)",
    paper=PAPER,
    when="To carry a verl run over: policy_loss.loss_mode=gspo with the clip and the loss_agg_mode of its GSPO "
    "examples. The gradient is that of gspo.",
)

RLOO = Algorithm(
    name="verl/rloo",
    summary="RLOO as verl runs it: leave-one-out advantages in PPO's clipped loss, k1 in the reward.",
    sections={"advantage": {"use": "rloo"}, "loss": CLIP, "kl": K1_IN_REWARD},
    formula=f"{RETURNS}, A_i = R_i - mean of the other siblings' R; {CLIPPED}",
    paper=PAPER,
    when="To carry a verl run over: adv_estimator rloo with use_kl_in_reward and kl_coef 0.001, as in its RLOO "
    "example. verl gives a group of one its raw reward; here it gets 0.",
)

REINFORCE_PP = Algorithm(
    name="verl/reinforce_pp",
    summary="REINFORCE++ as verl runs it: whitened returns in PPO's clipped loss, k1 in the reward, dual clip at 3.",
    sections={"advantage": {"use": "reinforce_pp", "gamma": 1.0}, "loss": CLIP, "kl": K1_IN_REWARD},
    formula=f"A_t = whiten(R - 0.001 sum over s >= t of k1_s) over all tokens; {CLIPPED}",
    paper=PAPER,
    when="To carry a verl run over: adv_estimator reinforce_plus_plus with use_kl_in_reward, as in its example. verl "
    "whitens with n-1; here with n.",
)

REINFORCE_PP_BASELINE = Algorithm(
    name="verl/reinforce_pp_baseline",
    summary="REINFORCE++-baseline as verl runs it: centred by the group, whitened by the batch, k1 in the reward.",
    sections={"advantage": {"use": "reinforce_pp_baseline"}, "loss": CLIP, "kl": K1_IN_REWARD},
    formula=f"{RETURNS}, A_i = whiten(R_i - mean_g) over all tokens; {CLIPPED}",
    paper=PAPER,
    when="To carry a verl run over: adv_estimator reinforce_plus_plus_baseline with use_kl_in_reward, as in its "
    "example. verl whitens with n-1; here with n. The paper has its KL in the loss: reinforce_pp_baseline.",
)

PPO = Algorithm(
    name="verl/ppo",
    summary="PPO as verl runs it: lambda 1, dual clip at 3, values clipped at 0.5, no KL.",
    sections={
        "advantage": {"use": "gae", "gamma": 1.0, "lambd": 1.0, "normalize": True},
        "loss": CLIP,
        "critic": {"clip": 0.5},
    },
    formula=f"A_t = whiten(R - V_t) over all tokens; {CLIPPED}; "
    "the critic by mean over tokens of 0.5 max((V - R)^2, (V_clip - R)^2)",
    paper=PAPER,
    when="To carry a verl run over: adv_estimator gae with its defaults (critic.lr there is 1e-5). verl whitens with "
    "n-1; here with n.",
)

VERL = (GRPO, DR_GRPO, DAPO, GSPO, RLOO, REINFORCE_PP, REINFORCE_PP_BASELINE, PPO)
