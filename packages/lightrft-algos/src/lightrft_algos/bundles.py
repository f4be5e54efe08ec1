"""Named algorithms: bundles of run-file sections, as data. The user's own keys override them."""

from lightrft_core.descriptors import Algorithm

from lightrft_algos.compatibility import COMPATIBILITY

GROUP_NORM = {"use": "group_norm", "std": "group"}

GRPO = Algorithm(
    name="grpo",
    summary="Group-relative policy optimisation: advantages from siblings, a clipped ratio, a KL penalty in the loss.",
    sections={
        "advantage": GROUP_NORM,
        "loss": {"use": "clip", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "seq_mean_token_mean"},
        "kl": {"use": "k3", "place": "loss", "coef": 0.001},
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-6); mean over sequences of the mean over tokens of "
    "-min(r A, clip(r, 0.8, 1.2) A) + 0.001 k3",
    paper="arXiv:2402.03300",
    when="The default choice for verifiable rewards. The paper's KL weight is 0.04; today's runs use 0.001 or none.",
)

DR_GRPO = Algorithm(
    name="dr_grpo",
    summary="GRPO done right: no division by the group's spread, none by the completion's length, no KL.",
    sections={
        "advantage": {"use": "group_norm", "std": "none"},
        "loss": {"use": "clip", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "seq_mean_token_sum_norm"},
    },
    formula="A_i = R_i - mean_g; sum over tokens of -min(r A, clip(r, 0.8, 1.2) A), divided by the number of sequences "
    "and by the generation budget, a constant",
    paper="arXiv:2503.20783",
    when="Where completions grow longer without growing better, or where easy and hard prompts should not weigh more "
    "than those in between.",
)

DAPO = Algorithm(
    name="dapo",
    summary="GRPO with a higher upper clip, token-level loss, dynamic sampling and a soft overlong penalty; no KL.",
    sections={
        "advantage": GROUP_NORM,
        "loss": {"use": "clip", "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token_mean"},
        "filters": [{"use": "spread"}],
        "shapers": [{"use": "overlong"}],
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-6); mean over all tokens of -min(r A, clip(r, 0.8, 1.28) A); groups "
    "whose metric has no spread are drawn anew; R falls by up to 1 in the last fifth before max_new_tokens",
    paper="arXiv:2503.14476",
    when="Long reasoning, where entropy collapses under GRPO and many prompts are always or never solved.",
)

GSPO = Algorithm(
    name="gspo",
    summary="Group sequence policy optimisation: ratio and clip of whole sequences; no KL.",
    sections={
        "advantage": GROUP_NORM,
        "loss": {"use": "gspo", "clip_low": 3e-4, "clip_high": 4e-4},
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-6), s = exp(mean_t (l - l_old)); mean over sequences of "
    "-min(s A, clip(s, 1 - 3e-4, 1 + 4e-4) A)",
    paper="arXiv:2507.18071",
    when="Mixture-of-experts models and long completions, where single tokens' ratios are noise. Needs several "
    "optimizer steps per rollout to differ from GRPO. The bounds are tight: that many sequences are clipped is meant.",
)

GMPO = Algorithm(
    name="gmpo",
    summary="Geometric-mean policy optimisation: the geometric mean of token ratios, clipped in log space; no KL.",
    sections={
        "advantage": GROUP_NORM,
        "loss": {"use": "gmpo", "clip_low": 0.4, "clip_high": 0.4},
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-6); mean over sequences of -A exp(mean_t e_t), e_t the log-ratio held "
    "within (-0.4, 0.4) on the side that the sign of A rewards",
    paper="arXiv:2507.20673",
    when="Where a few outlying tokens disturb GRPO and GSPO clips too much.",
)

CPGD = Algorithm(
    name="cpgd",
    summary="Clipped policy gradient with policy drift: no ratio in the gradient, a pull back to the old policy.",
    sections={
        "advantage": {"use": "cpgd", "weight": "std"},
        "loss": {
            "use": "cpgd",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "drift_coef": 0.01,
            "drift_cap": 0.2,
            "aggregation": "token_mean",
        },
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-6), d = l - l_old; mean over tokens of "
    "-min(d A, clip(d, ln 0.8, ln 1.2) A) + 0.01 drift, drift = exp(d) - 1 - d with its gradient capped at 0.2",
    paper="arXiv:2505.12504",
    when="Where training on ratios collapses. Needs several optimizer steps per rollout for clip and drift to act.",
)

CISPO = Algorithm(
    name="cispo",
    summary="Clipped importance weights on a policy gradient that no token loses; token mean, no KL.",
    sections={
        "advantage": GROUP_NORM,
        "loss": {"use": "cispo", "clip_low": 1.0, "clip_high": 4.0, "aggregation": "token_mean"},
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-6); mean over tokens of -sg[clip(r, 0, 5)] A l",
    paper="arXiv:2506.13585",
    when="Where rare tokens that turn the reasoning ('wait', 'however') are what a clip would silence. The paper tunes "
    "the upper bound; 5 is ScaleRL's (arXiv:2510.13786).",
)

SAPO = Algorithm(
    name="sapo",
    summary="Soft adaptive policy optimisation: a sigmoid gate instead of a clip, steeper for negative advantages.",
    sections={
        "advantage": GROUP_NORM,
        "loss": {"use": "sapo", "tau_positive": 1.0, "tau_negative": 1.05, "aggregation": "seq_mean_token_mean"},
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-6); mean over sequences of the mean over tokens of "
    "-(4 / tau) sigmoid(tau (r - 1)) A, tau 1 where A > 0, else 1.05",
    paper="arXiv:2511.20347",
    when="Where hard clipping wastes or destabilises: mixture-of-experts and vision-language models.",
)

REINFORCE = Algorithm(
    name="reinforce",
    summary="The plain policy gradient: the reward times the log-probability, nothing else.",
    sections={
        "advantage": {"use": "reinforce"},
        "loss": {"use": "reinforce", "aggregation": "token_mean"},
    },
    formula="A_t = sum over s >= t of r_s; mean over tokens of -A l",
    paper="Williams 1992, doi:10.1007/BF00992696",
    when="As the baseline that others must beat, with one optimizer step per rollout, and rewards around 0.",
)

REINFORCE_PP = Algorithm(
    name="reinforce_pp",
    summary="REINFORCE++: plain returns with the KL in the reward, whitened over the global batch, and PPO's clip.",
    sections={
        "advantage": {"use": "reinforce_pp", "gamma": 1.0},
        "loss": {"use": "clip", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "token_mean"},
        "kl": {"use": "k1", "place": "reward", "coef": 0.01},
    },
    formula="A_t = whiten(R - 0.01 sum over s >= t of k1_s) over all tokens of all ranks; mean over tokens of "
    "-min(r A, clip(r, 0.8, 1.2) A)",
    paper="arXiv:2501.03262",
    when="Many prompts with one or few completions each, general rewards, no critic.",
)

REINFORCE_PP_BASELINE = Algorithm(
    name="reinforce_pp_baseline",
    summary="REINFORCE++ with the siblings' mean as baseline and a k2 penalty in the loss.",
    sections={
        "advantage": {"use": "reinforce_pp_baseline"},
        "loss": {"use": "clip", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "token_mean"},
        "kl": {"use": "k2", "place": "loss", "coef": 0.001},
    },
    formula="A_i = whiten(R_i - mean_g) over all tokens of all ranks; mean over tokens of "
    "-min(r A, clip(r, 0.8, 1.2) A) + 0.001 k2",
    paper="arXiv:2501.03262",
    when="Verifiable rewards with groups, where dividing by each group's own spread overweights easy and hard prompts.",
)

RLOO = Algorithm(
    name="rloo",
    summary="REINFORCE leave-one-out: the other siblings' mean as baseline, whole completions as actions.",
    sections={
        "advantage": {"use": "rloo"},
        "loss": {"use": "reinforce", "aggregation": "seq_mean_token_sum"},
        "kl": {"use": "k1", "place": "reward", "coef": 0.03},
    },
    formula="R_i = reward - 0.03 sum_t k1_t, A_i = R_i - mean of the other siblings' R; mean over sequences of "
    "-A sum_t l_t",
    paper="arXiv:2402.14740",
    when="Few siblings and one optimizer step per rollout: an unbiased baseline with nothing to tune.",
)

RAFT = Algorithm(
    name="raft",
    summary="Best of n: fine-tune on the best completion of each group.",
    sections={
        "advantage": {"use": "reinforce"},
        "loss": {"use": "reinforce", "aggregation": "token_mean"},
        "selectors": [{"use": "best_of", "keep": 1}],
    },
    formula="of each group the row of highest reward trains by mean over tokens of -R l",
    paper="arXiv:2304.06767",
    when="A simple, stable start, with rewards of 0 and 1: what is right is imitated, what is wrong is ignored.",
)

ALGORITHMS = (
    GRPO,
    DR_GRPO,
    DAPO,
    GSPO,
    GMPO,
    CPGD,
    CISPO,
    SAPO,
    REINFORCE,
    REINFORCE_PP,
    REINFORCE_PP_BASELINE,
    RLOO,
    RAFT,
    *COMPATIBILITY,
)
