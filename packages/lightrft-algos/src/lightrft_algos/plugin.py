"""What this package offers. Light: importing it loads no torch."""

from collections.abc import Iterable

from lightrft_core import hookimpl
from lightrft_core.descriptors import Algorithm, Component

from lightrft_algos.bundles import ALGORITHMS

LIGHTRFT_API = 1


@hookimpl
def lightrft_algorithms() -> Iterable[Algorithm]:
    """Bundles."""
    return ALGORITHMS


@hookimpl
def lightrft_advantages() -> Iterable[Component]:
    """Estimators of the advantage."""
    yield Component(
        name="group_norm",
        target="lightrft_algos.advantages.group_norm:group_norm",
        config="lightrft_algos.advantages.group_norm:GroupNormConfig",
        summary="Reward against the siblings' mean, in units of their spread.",
        needs=frozenset({"groups"}),
        formula="A_i = (R_i - mean_g) / (std_g + 1e-6), std with n-1",
        paper="arXiv:2402.03300",
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
    yield Component(
        name="plain",
        target="lightrft_algos.samplers.plain:PlainSampler",
        config="lightrft_algos.samplers.plain:PlainConfig",
        summary="Every prompt continued group_size times, each sibling from its own seed.",
    )


@hookimpl
def lightrft_filters() -> Iterable[Component]:
    """Filters."""
    yield Component(
        name="spread",
        target="lightrft_algos.filters.spread:spread",
        config="lightrft_algos.filters.spread:SpreadConfig",
        summary="Dynamic sampling: groups whose siblings do not differ in the task's metric are drawn anew.",
        needs=frozenset({"groups"}),
        formula="keep if max_g - min_g >= min_spread",
        paper="arXiv:2503.14476",
    )


@hookimpl
def lightrft_shapers() -> Iterable[Component]:
    """Shapers."""
    yield Component(
        name="overlong",
        target="lightrft_algos.shapers.overlong:OverlongShaper",
        config="lightrft_algos.shapers.overlong:OverlongConfig",
        summary="A penalty that grows over the last tokens before the length limit.",
        formula="R += min(0, (max - buffer - length) / buffer) * factor",
        paper="arXiv:2503.14476",
    )
    yield Component(
        name="clip",
        target="lightrft_algos.shapers.clip:ClipShaper",
        config="lightrft_algos.shapers.clip:ClipRewardConfig",
        summary="Rewards held within a band.",
        formula="R = min(max(R, -limit), limit)",
    )


@hookimpl
def lightrft_selectors() -> Iterable[Component]:
    """Token selectors."""
    yield Component(
        name="high_entropy",
        target="lightrft_algos.selectors.high_entropy:high_entropy",
        config="lightrft_algos.selectors.high_entropy:HighEntropyConfig",
        summary="Train only the tokens at which the policy was least sure.",
        needs=frozenset({"entropy"}),
        formula="keep tokens with H_t >= the (1 - ratio) quantile of the whole batch",
        paper="arXiv:2506.01939",
    )


@hookimpl
def lightrft_corrections() -> Iterable[Component]:
    """Corrections of the gap between engine and trainer."""
    yield Component(
        name="tis",
        target="lightrft_algos.corrections.tis:tis",
        config="lightrft_algos.corrections.tis:TisConfig",
        summary="Truncated importance weights, per token or per sequence, with the gap as metrics.",
        needs=frozenset({"old_logprobs"}),
        formula="w = min(exp(l_old - l_engine), cap)",
        paper="fengyao.notion.site/off-policy-rl",
    )
