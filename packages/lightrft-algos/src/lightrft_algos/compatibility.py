"""Bundles that make the choices of other libraries, where these differ from the papers: what a run of theirs computes.

Read from their public sources of 2026 (TRL 1.16); what cannot be said in a run file is told in `when`.
"""

from lightrft_core.descriptors import Algorithm

VERL_GRPO = Algorithm(
    name="verl/grpo",
    summary="GRPO as verl runs it: token mean, dual clip at 3, k3 in the loss.",
    sections={
        "advantage": {"use": "group_norm", "std": "group", "eps": 1e-6},
        "loss": {"use": "clip", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0, "aggregation": "token_mean"},
        "kl": {"use": "k3", "place": "loss", "coef": 0.001},
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-6), std with n-1; mean over tokens of -min(r A, clip(r, 0.8, 1.2) A), "
    "at most -3 A where A < 0, + 0.001 k3",
    paper="github.com/verl-project/verl",
    when="To carry a verl run over: adv_estimator grpo with use_kl_loss, as in its GRPO examples (its default is no "
    "KL: kl: none). verl gives a group of one its raw reward; here it gets 0.",
)

TRL_GRPO = Algorithm(
    name="trl/grpo",
    summary="GRPO as TRL runs it: token mean, epsilon 1e-4, no KL.",
    sections={
        "advantage": {"use": "group_norm", "std": "group", "eps": 1e-4},
        "loss": {"use": "clip", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "token_mean"},
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-4), std with n-1; mean over tokens of -min(r A, clip(r, 0.8, 1.2) A)",
    paper="github.com/huggingface/trl",
    when="To carry a GRPOTrainer run over: its defaults loss_type dapo, scale_rewards group, beta 0. With vLLM TRL "
    "also corrects the gap: correction: {use: band, level: sequence, low: 0, high: 3}.",
)

OPENRLHF_REINFORCE_PP = Algorithm(
    name="openrlhf/reinforce_pp",
    summary="REINFORCE++ as OpenRLHF runs it: rewards clipped at 10, k1 in the reward, whitening with n, token mean.",
    sections={
        "shapers": [{"use": "clip", "limit": 10.0}],
        "advantage": {"use": "reinforce_pp", "gamma": 1.0},
        "loss": {"use": "clip", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "token_mean"},
        "kl": {"use": "k1", "place": "reward", "coef": 0.01},
    },
    formula="R = clip(reward, -10, 10); A_t = (G_t - mean) / sqrt(max(var, 1e-8)) over all tokens, "
    "G_t = R - 0.01 sum over s >= t of k1_s; mean over tokens of -min(r A, clip(r, 0.8, 1.2) A)",
    paper="github.com/OpenRLHF/OpenRLHF",
    when="To carry an OpenRLHF run over: advantage_estimator reinforce with init_kl_coef 0.01 and kl_estimator k1.",
)

COMPATIBILITY = (VERL_GRPO, TRL_GRPO, OPENRLHF_REINFORCE_PP)
