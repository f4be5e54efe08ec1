"""PPO as a bundle: the one algorithm here that trains a critic."""

from lightrft_core.descriptors import Algorithm

PPO = Algorithm(
    name="ppo",
    summary="Proximal policy optimisation: a critic's values, generalised advantages, a clipped ratio; no KL.",
    sections={
        "advantage": {"use": "gae", "gamma": 1.0, "lambd": 0.95, "normalize": True},
        "loss": {"use": "clip", "clip_low": 0.2, "clip_high": 0.2, "aggregation": "token_mean"},
        "critic": {"clip": 0.2},
    },
    formula="A_t = whiten(sum over k >= 0 of 0.95^k delta_{t+k}), delta_t = r_t + V_{t+1} - V_t; mean over tokens of "
    "-min(r A, clip(r, 0.8, 1.2) A); the critic by mean over tokens of 0.5 max((V - R)^2, (V_clip - R)^2)",
    paper="arXiv:1707.06347",
    when="Long completions whose tokens deserve different credit, rewards per token, or one completion a prompt. It "
    "takes a second model's memory and time. Against a reward model add `kl: {use: k1, place: reward, coef: 0.01}`.",
)
