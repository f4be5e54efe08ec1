"""TRL 1.16.0: `GRPOTrainer` and `RLOOTrainer` with the settings of their configs and of its paper index.

Its group deviation has n-1 and an epsilon of 1e-4. With vLLM both trainers weigh by the gap between engine and trainer,
which is a `correction` here.
"""

from typing import Any

from lightrft_core.descriptors import Algorithm

PAPER = "github.com/huggingface/trl, version 1.16.0"
GROUP_NORM: dict[str, Any] = {"use": "group_norm", "std": "group", "eps": 1e-4}  # Any: YAML values
CLIP: dict[str, Any] = {"use": "clip", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "token_mean"}
ADVANTAGE = "A_i = (R_i - mean_g) / (std_g + 1e-4), std with n-1"
CORRECTED = "With vLLM TRL also corrects the gap: correction: {use: band, level: sequence, low: 0, high: 3}."

GRPO = Algorithm(
    name="trl/grpo",
    summary="GRPO as TRL runs it: token mean, epsilon 1e-4, no KL.",
    sections={"advantage": GROUP_NORM, "loss": CLIP},
    formula=f"{ADVANTAGE}; mean over tokens of -min(r A, clip(r, 0.8, 1.2) A)",
    paper=PAPER,
    when=f"To carry a GRPOTrainer run over: its defaults loss_type dapo, scale_rewards group, beta 0. {CORRECTED}",
)

DR_GRPO = Algorithm(
    name="trl/dr_grpo",
    summary="Dr. GRPO as TRL runs it: no spread, the sum over tokens over the longest completion, no KL.",
    sections={
        "advantage": {"use": "group_norm", "std": "none"},
        "loss": {**CLIP, "aggregation": "seq_mean_token_sum_norm"},
    },
    formula="A_i = R_i - mean_g; sum over tokens of -min(r A, clip(r, 0.8, 1.2) A), divided by the number of "
    "sequences and by max_completion_length",
    paper=PAPER,
    when=f"To carry a GRPOTrainer run over: loss_type dr_grpo, scale_rewards none, beta 0. {CORRECTED}",
)

DAPO = Algorithm(
    name="trl/dapo",
    summary="DAPO as far as TRL has it: clip-higher, token mean, cut-off completions masked; no dynamic sampling.",
    sections={"advantage": GROUP_NORM, "loss": {**CLIP, "clip_high": 0.28}, "selectors": [{"use": "truncated"}]},
    formula=f"{ADVANTAGE}; mean over the tokens of completions that ended of -min(r A, clip(r, 0.8, 1.28) A)",
    paper=PAPER,
    when="To carry a GRPOTrainer run over: loss_type dapo, epsilon_high 0.28, mask_truncated_completions. Its reward "
    f"function get_soft_overlong_punishment is the shaper overlong. TRL does not draw groups anew. {CORRECTED}",
)

GSPO = Algorithm(
    name="trl/gspo",
    summary="GSPO as TRL runs it: ratio and clip of whole sequences, epsilon 1e-4, no KL.",
    sections={"advantage": GROUP_NORM, "loss": {"use": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}},
    formula=f"{ADVANTAGE}, s = exp(mean_t (l - l_old)); mean over sequences of "
    "-min(s A, clip(s, 1 - 3e-4, 1 + 4e-4) A)",
    paper=PAPER,
    when="To carry a GRPOTrainer run over: importance_sampling_level sequence, loss_type grpo, epsilon 3e-4, "
    f"epsilon_high 4e-4, beta 0. {CORRECTED}",
)

CISPO = Algorithm(
    name="trl/cispo",
    summary="CISPO as TRL runs it: weights of at most 5, epsilon 1e-4, token mean.",
    sections={
        "advantage": GROUP_NORM,
        "loss": {"use": "cispo", "clip_low": 1.0, "clip_high": 4.0, "aggregation": "token_mean"},
    },
    formula=f"{ADVANTAGE}; mean over tokens of -sg[min(r, 5)] A l",
    paper=PAPER,
    when=f"To carry a GRPOTrainer run over: loss_type cispo, epsilon_high 5.0, beta 0. {CORRECTED}",
)

SAPO = Algorithm(
    name="trl/sapo",
    summary="SAPO as TRL runs it: a sigmoid gate, epsilon 1e-4, no KL.",
    sections={
        "advantage": GROUP_NORM,
        "loss": {"use": "sapo", "tau_positive": 1.0, "tau_negative": 1.05, "aggregation": "seq_mean_token_mean"},
    },
    formula=f"{ADVANTAGE}; mean over sequences of the mean over tokens of -(4 / tau) sigmoid(tau (r - 1)) A, tau 1 "
    "where A > 0, else 1.05",
    paper=PAPER,
    when=f"To carry a GRPOTrainer run over: loss_type sapo and its default temperatures, beta 0. {CORRECTED}",
)

RLOO = Algorithm(
    name="trl/rloo",
    summary="RLOO as TRL runs it: leave-one-out advantages, whole completions as actions, k1 of 0.05 in the reward.",
    sections={
        "advantage": {"use": "rloo"},
        "loss": {"use": "reinforce", "aggregation": "seq_mean_token_sum"},
        "kl": {"use": "k1", "place": "reward", "coef": 0.05},
    },
    formula="R_i = reward - 0.05 sum_t k1_t, A_i = R_i - mean of the other siblings' R; mean over sequences of "
    "-A sum_t l_t",
    paper=PAPER,
    when="To carry an RLOOTrainer run over, with one optimizer step per rollout, which is its default: the gradient is "
    "the same. With several, TRL clips the ratio of whole completions at 0.2; nothing is clipped here.",
)

TRL = (GRPO, DR_GRPO, DAPO, GSPO, CISPO, SAPO, RLOO)
