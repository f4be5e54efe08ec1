"""What stands around advantage, KL and loss: descriptors of samplers, filters, shapers, selectors and corrections."""

from lightrft_core.descriptors import Component

SAMPLERS = (
    Component(
        name="plain",
        target="lightrft_algos.samplers.plain:PlainSampler",
        config="lightrft_algos.samplers.plain:PlainConfig",
        summary="Every prompt continued group_size times, each sibling from its own seed.",
    ),
    Component(
        name="fire",
        target="lightrft_algos.samplers.fire:FireSampler",
        config="lightrft_algos.samplers.fire:FireConfig",
        summary="The first token at a high temperature, the rest as usual; two calls of the engine.",
        formula="y_1 ~ softmax(logits / 10), then y_t ~ softmax(logits / temperature)",
        paper="arXiv:2410.21236",
    ),
)

FILTERS = (
    Component(
        name="spread",
        target="lightrft_algos.filters.spread:spread",
        config="lightrft_algos.filters.spread:SpreadConfig",
        summary="Dynamic sampling: groups whose siblings do not differ in the task's metric are drawn anew.",
        needs=frozenset({"groups"}),
        formula="keep if max_g - min_g >= min_spread",
        paper="arXiv:2503.14476",
    ),
    Component(
        name="threshold",
        target="lightrft_algos.filters.threshold:threshold",
        config="lightrft_algos.filters.threshold:ThresholdConfig",
        summary="Groups whose mean metric is outside a band, too hard or too easy, are drawn anew.",
        formula="keep if low <= mean_g <= high",
        paper="arXiv:2502.01456",
    ),
    Component(
        name="truncated",
        target="lightrft_algos.filters.truncated:truncated",
        config="lightrft_algos.filters.truncated:TruncatedConfig",
        summary="Groups with too many completions that were cut off are drawn anew.",
        formula="keep if cut-off completions / completions <= max_fraction",
    ),
    Component(
        name="duplicate",
        target="lightrft_algos.filters.duplicate:duplicate",
        config="lightrft_algos.filters.duplicate:DuplicateConfig",
        summary="Groups that repeat one completion are drawn anew.",
        needs=frozenset({"groups"}),
        formula="keep if different texts >= min_distinct",
    ),
)

SHAPERS = (
    Component(
        name="overlong",
        target="lightrft_algos.shapers.overlong:OverlongShaper",
        config="lightrft_algos.shapers.overlong:OverlongConfig",
        summary="A penalty that grows over the last tokens before the length limit.",
        formula="R += min(0, (max - buffer - length) / buffer) * factor",
        paper="arXiv:2503.14476",
    ),
    Component(
        name="clip",
        target="lightrft_algos.shapers.clip:ClipShaper",
        config="lightrft_algos.shapers.clip:ClipRewardConfig",
        summary="Rewards held within a band.",
        formula="R = min(max(R, -limit), limit)",
    ),
    Component(
        name="running_norm",
        target="lightrft_algos.shapers.running_norm:RunningNorm",
        config="lightrft_algos.shapers.running_norm:RunningNormConfig",
        summary="Rewards in units of their running deviation over all ranks; kept in checkpoints.",
        formula="R = (R [- mean]) / (std + eps), over everything scored so far",
    ),
    Component(
        name="length_penalty",
        target="lightrft_algos.shapers.length_penalty:LengthPenalty",
        config="lightrft_algos.shapers.length_penalty:LengthPenaltyConfig",
        summary="Shorter answers are worth more, against their siblings or in proportion.",
        formula="R += factor (lambda if right else min(0, lambda)), lambda = 0.5 - (length - min_g) / (max_g - min_g)",
        paper="arXiv:2501.12599",
    ),
)

SELECTORS = (
    Component(
        name="high_entropy",
        target="lightrft_algos.selectors.high_entropy:high_entropy",
        config="lightrft_algos.selectors.high_entropy:HighEntropyConfig",
        summary="Train only the tokens at which the policy was least sure.",
        needs=frozenset({"entropy"}),
        formula="keep tokens with H_t >= the (1 - ratio) quantile of the whole batch",
        paper="arXiv:2506.01939",
    ),
    Component(
        name="truncated",
        target="lightrft_algos.selectors.truncated:truncated",
        config="lightrft_algos.selectors.truncated:TruncatedRowsConfig",
        summary="Overlong filtering: completions that were cut off train nothing.",
        formula="keep rows that ended by themselves",
        paper="arXiv:2503.14476",
    ),
    Component(
        name="best_of",
        target="lightrft_algos.selectors.best_of:best_of",
        config="lightrft_algos.selectors.best_of:BestOfConfig",
        summary="Best of n: only the best rows of each group train.",
        needs=frozenset({"shaped_rewards"}),
        formula="keep the k rows of highest shaped reward of each group",
        paper="arXiv:2304.06767",
    ),
)

CORRECTIONS = (
    Component(
        name="tis",
        target="lightrft_algos.corrections.tis:tis",
        config="lightrft_algos.corrections.tis:TisConfig",
        summary="Truncated importance weights, per token or per sequence, with the gap as metrics.",
        needs=frozenset({"old_logprobs"}),
        formula="w = min(exp(l_old - l_engine), cap)",
        paper="fengyao.notion.site/off-policy-rl",
    ),
    Component(
        name="band",
        target="lightrft_algos.corrections.band:band",
        config="lightrft_algos.corrections.band:BandConfig",
        summary="A masking band: what engine and trainer disagree about by too much is left out.",
        needs=frozenset({"old_logprobs"}),
        formula="train where low <= w <= high, w = exp(l_old - l_engine) of a token or a completion",
        paper="ringtech.notion.site/icepop",
    ),
)
