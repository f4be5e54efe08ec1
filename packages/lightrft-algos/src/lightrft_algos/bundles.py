"""Named algorithms: bundles of run-file sections, as data. The user's own keys override them."""

from lightrft_core.descriptors import Algorithm

GRPO = Algorithm(
    name="grpo",
    summary="Group-relative policy optimisation: advantages from siblings, a clipped ratio, a KL penalty in the loss.",
    sections={
        "advantage": {"use": "group_norm", "std": "group"},
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
        "advantage": {"use": "group_norm", "std": "group"},
        "loss": {"use": "clip", "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token_mean"},
        "filters": [{"use": "spread"}],
        "shapers": [{"use": "overlong"}],
    },
    formula="A_i = (R_i - mean_g) / (std_g + 1e-6); mean over all tokens of -min(r A, clip(r, 0.8, 1.28) A); groups "
    "whose metric has no spread are drawn anew; R falls by up to 1 in the last fifth before max_new_tokens",
    paper="arXiv:2503.14476",
    when="Long reasoning, where entropy collapses under GRPO and many prompts are always or never solved.",
)

ALGORITHMS = (GRPO, DR_GRPO, DAPO)
