"""OpenRLHF 0.11.2: defaults of `openrlhf/cli/train_ppo_ray.py`, `experience_maker.py` and `models/loss.py`.

Its default KL is k1, taken from the returns token by token, after any baseline of the group. Where such a baseline is
followed by no whitening, that has no counterpart here, and the bundles take its `--algo.kl.use_loss` instead.
"""

from typing import Any

from lightrft_core.descriptors import Algorithm

PAPER = "github.com/OpenRLHF/OpenRLHF, version 0.11.2"
CLIP: dict[str, Any] = {"use": "clip", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "token_mean"}  # Any: YAML
CLIPPED = "mean over tokens of -min(r A, clip(r, 0.8, 1.2) A)"
CLIP_REWARDS = [{"use": "clip", "limit": 10.0}]
K1_IN_REWARD = {"use": "k1", "place": "reward", "coef": 0.01}
K2_IN_LOSS = {"use": "k2", "place": "loss", "coef": 0.01}
K3_IN_LOSS = {"use": "k3", "place": "loss", "coef": 0.01}
LATER_KL = (
    "Without --algo.kl.use_loss OpenRLHF takes k1 from each token's return, after the baseline; k2 in the loss, which "
    "its help calls nearly equivalent, stands for it."
)

PPO = Algorithm(
    name="openrlhf/ppo",
    summary="PPO as OpenRLHF runs it: lambda 1, rewards clipped at 10, values at 0.5, k1 in the reward.",
    sections={
        "shapers": CLIP_REWARDS,
        "advantage": {"use": "gae", "gamma": 1.0, "lambd": 1.0, "normalize": True},
        "loss": CLIP,
        "critic": {"clip": 0.5},
        "kl": K1_IN_REWARD,
    },
    formula="R = clip(reward, -10, 10); A_t = whiten(R - 0.01 sum over s >= t of k1_s - V_t) over all tokens; "
    f"{CLIPPED}; the critic by mean over tokens of 0.5 max((V - R)^2, (V_clip - R)^2)",
    paper=PAPER,
    when="To carry an OpenRLHF run over: advantage estimator gae with its defaults (critic.lr there is 9e-6, the "
    "default here too).",
)

GRPO = Algorithm(
    name="openrlhf/grpo",
    summary="GRPO as OpenRLHF runs it: epsilon 1e-9, advantages clipped at 10, token mean, k3 in the loss.",
    sections={
        "advantage": {"use": "group_norm", "std": "group", "eps": 1e-9, "clip": 10.0},
        "loss": CLIP,
        "kl": K3_IN_LOSS,
    },
    formula=f"A_i = clip((R_i - mean_g) / (std_g + 1e-9), -10, 10), std with n-1; {CLIPPED} + 0.01 k3",
    paper=PAPER,
    when="To carry an OpenRLHF run over: advantage estimator group_norm with --algo.kl.use_loss and estimator k3. "
    "OpenRLHF bounds k3 by 10 nats a token.",
)

DR_GRPO = Algorithm(
    name="openrlhf/dr_grpo",
    summary="Dr. GRPO as OpenRLHF runs it: no spread, advantages clipped at 10, and the mean over tokens.",
    sections={
        "advantage": {"use": "group_norm", "std": "none", "clip": 10.0},
        "loss": CLIP,
        "kl": K2_IN_LOSS,
    },
    formula=f"A_i = clip(R_i - mean_g, -10, 10); {CLIPPED} + 0.01 k2",
    paper=PAPER,
    when="To carry an OpenRLHF run over: advantage estimator dr_grpo. It keeps the mean over tokens, which the paper "
    f"does not: dr_grpo is the paper's. {LATER_KL}",
)

RLOO = Algorithm(
    name="openrlhf/rloo",
    summary="RLOO as OpenRLHF runs it: leave-one-out advantages clipped at 10 in PPO's clipped loss.",
    sections={"advantage": {"use": "rloo", "clip": 10.0}, "loss": CLIP, "kl": K2_IN_LOSS},
    formula=f"A_i = clip(R_i - mean of the other siblings' R, -10, 10); {CLIPPED} + 0.01 k2",
    paper=PAPER,
    when=f"To carry an OpenRLHF run over: advantage estimator rloo. {LATER_KL}",
)

REINFORCE_PP = Algorithm(
    name="openrlhf/reinforce_pp",
    summary="REINFORCE++ as OpenRLHF runs it: rewards clipped at 10, k1 in the reward, whitening with n, token mean.",
    sections={
        "shapers": CLIP_REWARDS,
        "advantage": {"use": "reinforce_pp", "gamma": 1.0},
        "loss": CLIP,
        "kl": K1_IN_REWARD,
    },
    formula="R = clip(reward, -10, 10); A_t = (G_t - mean) / sqrt(max(var, 1e-8)) over all tokens, "
    f"G_t = R - 0.01 sum over s >= t of k1_s; {CLIPPED}",
    paper=PAPER,
    when="To carry an OpenRLHF run over: advantage estimator reinforce with its default KL, k1 with 0.01.",
)

REINFORCE_PP_BASELINE = Algorithm(
    name="openrlhf/reinforce_pp_baseline",
    summary="REINFORCE++-baseline as OpenRLHF runs it: centred by the group, whitened with n, k2 in the loss.",
    sections={"advantage": {"use": "reinforce_pp_baseline"}, "loss": CLIP, "kl": K2_IN_LOSS},
    formula=f"A_i = (R_i - mean_g) / sqrt(max(var, 1e-8)) over all tokens; {CLIPPED} + 0.01 k2",
    paper=PAPER,
    when="To carry an OpenRLHF run over: advantage estimator reinforce_baseline. OpenRLHF also clips what is left "
    f"after the baseline at 10, which rewards of rules never reach. {LATER_KL}",
)

OPENRLHF = (PPO, GRPO, DR_GRPO, RLOO, REINFORCE_PP, REINFORCE_PP_BASELINE)
