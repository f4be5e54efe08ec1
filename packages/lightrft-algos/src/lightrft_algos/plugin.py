"""What this package offers. Light: importing it loads no torch."""

from collections.abc import Iterable

from lightrft_core import hookimpl
from lightrft_core.descriptors import Algorithm, Component

from lightrft_algos.around import CORRECTIONS, FILTERS, SAMPLERS, SELECTORS, SHAPERS
from lightrft_algos.bundles import ALGORITHMS
from lightrft_algos.ppo import PPO

LIGHTRFT_API = 1


@hookimpl
def lightrft_algorithms() -> Iterable[Algorithm]:
    """Bundles."""
    return (*ALGORITHMS, PPO)


@hookimpl
def lightrft_advantages() -> Iterable[Component]:
    """Estimators of the advantage."""
    yield Component(
        name="group_norm",
        target="lightrft_algos.advantages.group_norm:group_norm",
        config="lightrft_algos.advantages.group_norm:GroupNormConfig",
        summary="Reward against the siblings' mean, in units of their spread, of the batch's, or as it is.",
        needs=frozenset({"groups"}),
        formula="A_i = (R_i - mean_g) / (s + eps), s with n-1 the deviation of the group or of the batch; std: none "
        "does not divide",
        paper="arXiv:2402.03300",
    )
    yield Component(
        name="gae",
        target="lightrft_algos.advantages.gae:gae",
        config="lightrft_algos.advantages.gae:GaeConfig",
        summary="Temporal differences of a critic's values, summed with decaying weights: PPO's.",
        needs=frozenset({"values"}),
        formula="A_t = sum over k >= 0 of (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t; "
        "the critic learns from A_t + V_t",
        paper="arXiv:1506.02438",
    )
    yield Component(
        name="rloo",
        target="lightrft_algos.advantages.rloo:rloo",
        config="lightrft_algos.advantages.rloo:RlooConfig",
        summary="Reward against the mean of the other siblings.",
        needs=frozenset({"groups"}),
        formula="A_i = R_i - mean of R_j over the other siblings j",
        paper="arXiv:2402.14740",
    )
    yield Component(
        name="reinforce",
        target="lightrft_algos.advantages.reinforce:reinforce",
        config="lightrft_algos.advantages.reinforce:ReinforceConfig",
        summary="The plain discounted return, without a baseline.",
        formula="A_t = sum over s >= t of gamma^(s-t) r_s, R added at the last token",
        paper="Williams 1992, doi:10.1007/BF00992696",
    )
    yield Component(
        name="reinforce_pp",
        target="lightrft_algos.advantages.reinforce_pp:reinforce_pp",
        config="lightrft_algos.advantages.reinforce_pp:ReinforcePPConfig",
        summary="The discounted return, whitened over the tokens of all ranks; no group.",
        formula="A_t = whiten(sum over s >= t of gamma^(s-t) r_s), R added at the last token",
        paper="arXiv:2501.03262",
    )
    yield Component(
        name="reinforce_pp_baseline",
        target="lightrft_algos.advantages.reinforce_pp_baseline:reinforce_pp_baseline",
        config="lightrft_algos.advantages.reinforce_pp_baseline:ReinforcePPBaselineConfig",
        summary="Reward against the siblings' mean, whitened over the tokens of all ranks.",
        needs=frozenset({"groups"}),
        formula="A_i = whiten(R_i - mean_g)",
        paper="arXiv:2501.03262",
    )
    yield Component(
        name="cpgd",
        target="lightrft_algos.advantages.cpgd:cpgd",
        config="lightrft_algos.advantages.cpgd:CpgdAdvantageConfig",
        summary="Reward against the siblings' mean, times a weight of the group.",
        needs=frozenset({"groups"}),
        formula="A_i = w_g (R_i - mean_g), w_g = 1 / (std_g + 1e-6), 1, or min(groups / differing groups, max_weight)",
        paper="arXiv:2505.12504",
    )


@hookimpl
def lightrft_losses() -> Iterable[Component]:
    """Losses."""
    yield Component(
        name="clip",
        target="lightrft_algos.losses.clip:clip",
        config="lightrft_algos.losses.clip:ClipConfig",
        summary="Clipped policy gradient, with separate bounds below and above and an optional dual clip.",
        provides=frozenset({"zero_without_advantage"}),
        formula="L_t = -min(r A, clip(r, 1 - low, 1 + high) A), r = exp(l - l_old)",
        paper="arXiv:1707.06347",
    )
    yield Component(
        name="gspo",
        target="lightrft_algos.losses.gspo:gspo",
        config="lightrft_algos.losses.gspo:GspoConfig",
        summary="Ratio and clip of whole sequences, or the same with each token's own advantage.",
        provides=frozenset({"zero_without_advantage"}),
        formula="L = -min(s A, clip(s, 1 - low, 1 + high) A), s = exp(mean_t (l - l_old))",
        paper="arXiv:2507.18071",
    )
    yield Component(
        name="gmpo",
        target="lightrft_algos.losses.gmpo:gmpo",
        config="lightrft_algos.losses.gmpo:GmpoConfig",
        summary="The geometric mean of token ratios, clipped token by token in log space.",
        provides=frozenset({"zero_without_advantage"}),
        formula="L = -A exp(mean_t e_t), e = sgn min(sgn d, sgn clip(d, -low, high)), d = l - l_old, sgn = sign(A)",
        paper="arXiv:2507.20673",
    )
    yield Component(
        name="cpgd",
        target="lightrft_algos.losses.cpgd:cpgd",
        config="lightrft_algos.losses.cpgd:CpgdConfig",
        summary="Policy gradient clipped in log space, with a drift term towards the old policy.",
        formula="L_t = -min(d A, clip(d, ln(1 - low), ln(1 + high)) A) + alpha (exp(d) - 1 - d), d = l - l_old",
        paper="arXiv:2505.12504",
    )
    yield Component(
        name="cispo",
        target="lightrft_algos.losses.cispo:cispo",
        config="lightrft_algos.losses.cispo:CispoConfig",
        summary="Clipped importance weights on the policy gradient: no token loses its gradient.",
        provides=frozenset({"zero_without_advantage"}),
        formula="L_t = -sg[clip(r, 1 - low, 1 + high)] A l",
        paper="arXiv:2506.13585",
    )
    yield Component(
        name="sapo",
        target="lightrft_algos.losses.sapo:sapo",
        config="lightrft_algos.losses.sapo:SapoConfig",
        summary="A sigmoid gate instead of a clip, with a temperature for either sign of the advantage.",
        provides=frozenset({"zero_without_advantage"}),
        formula="L_t = -(4 / tau) sigmoid(tau (r - 1)) A",
        paper="arXiv:2511.20347",
    )
    yield Component(
        name="reinforce",
        target="lightrft_algos.losses.reinforce:reinforce",
        config="lightrft_algos.losses.reinforce:ReinforceLossConfig",
        summary="The policy gradient itself, without a ratio.",
        provides=frozenset({"zero_without_advantage"}),
        formula="L_t = -A l",
        paper="Williams 1992, doi:10.1007/BF00992696",
    )


@hookimpl
def lightrft_kls() -> Iterable[Component]:
    """Estimators of KL(policy || reference)."""
    yield Component(
        name="k1",
        target="lightrft_algos.kls.k1:k1",
        config="lightrft_algos.kls.k1:K1Config",
        summary="Unbiased, may be negative; of use in the rewards only.",
        needs=frozenset({"ref_logprobs"}),
        provides=frozenset({"reward_only"}),
        formula="k1 = l - l_ref",
        paper="joschu.net/blog/kl-approx.html",
    )
    yield Component(
        name="k2",
        target="lightrft_algos.kls.k2:k2",
        config="lightrft_algos.kls.k2:K2Config",
        summary="Squared log-ratio: its gradient is the KL's own.",
        needs=frozenset({"ref_logprobs"}),
        formula="k2 = (l_ref - l)^2 / 2",
        paper="joschu.net/blog/kl-approx.html",
    )
    yield Component(
        name="k3",
        target="lightrft_algos.kls.k3:k3",
        config="lightrft_algos.kls.k3:K3Config",
        summary="Unbiased and never negative; GRPO's.",
        needs=frozenset({"ref_logprobs"}),
        formula="k3 = exp(d) - d - 1, d = l_ref - l",
        paper="joschu.net/blog/kl-approx.html",
    )


@hookimpl
def lightrft_samplers() -> Iterable[Component]:
    """Samplers."""
    return SAMPLERS


@hookimpl
def lightrft_filters() -> Iterable[Component]:
    """Filters."""
    return FILTERS


@hookimpl
def lightrft_shapers() -> Iterable[Component]:
    """Shapers."""
    return SHAPERS


@hookimpl
def lightrft_selectors() -> Iterable[Component]:
    """Token selectors."""
    return SELECTORS


@hookimpl
def lightrft_corrections() -> Iterable[Component]:
    """Corrections of the gap between engine and trainer."""
    return CORRECTIONS
