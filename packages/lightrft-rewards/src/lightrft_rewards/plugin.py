"""What this package offers: rule rewards, and tasks that need no or one well-known file."""

from collections.abc import Iterator

from lightrft_core.descriptors import Component, RewardComponent
from lightrft_core.hookspecs import hookimpl

LIGHTRFT_API = 1

_REFERENCE = frozenset({"reference"})
_MATH = ("math-verify>=0.9",)


@hookimpl
def lightrft_rewards() -> Iterator[RewardComponent]:
    """Rules that judge a response."""
    yield RewardComponent(
        name="exact",
        target="lightrft_rewards.exact:ExactReward",
        config="lightrft_rewards.exact:ExactConfig",
        summary="1 where the answer is the reference, but for case and space.",
        needs=_REFERENCE,
    )
    yield RewardComponent(
        name="numeric",
        target="lightrft_rewards.numeric:NumericReward",
        config="lightrft_rewards.numeric:NumericConfig",
        summary="1 where the number on the #### line, in the box or at the end is the reference's, exactly.",
        needs=_REFERENCE,
    )
    yield RewardComponent(
        name="gsm8k",
        target="lightrft_rewards.numeric:Gsm8kReward",
        config="lightrft_rewards.numeric:Gsm8kConfig",
        summary="1 where the last `#### n` line has the reference's number.",
        example="#### {reference}",
        needs=_REFERENCE,
    )
    yield RewardComponent(
        name="math",
        target="lightrft_rewards.mathematics:MathReward",
        config="lightrft_rewards.mathematics:MathConfig",
        summary="1 where the last \\boxed{} equals the reference: by form, as a number, or by math-verify.",
        example="\\boxed{{reference}}",
        needs=_REFERENCE,
        requires=_MATH,
    )
    yield RewardComponent(
        name="format",
        target="lightrft_rewards.thinking:FormatReward",
        config="lightrft_rewards.thinking:FormatConfig",
        summary="1 where <think>...</think> comes before \\boxed{}, or a regular expression matches.",
        example="<think>Let me see.</think> \\boxed{{reference}}",
    )
    yield RewardComponent(
        name="gsm8k_rule",
        target="lightrft_rewards.mathematics:Gsm8kRule",
        config="lightrft_rewards.mathematics:RuleConfig",
        summary="LightRFT's recipe: 0.9 accuracy of the last \\boxed{} + 0.1 format; answers are numbers.",
        example="<think>Let me see.</think> \\boxed{{reference}}",
        needs=_REFERENCE,
        formula="0.9 * accuracy + 0.1 * format",
    )
    yield RewardComponent(
        name="geo3k_rule",
        target="lightrft_rewards.mathematics:Geo3kRule",
        config="lightrft_rewards.mathematics:RuleConfig",
        summary="LightRFT's recipe: 0.9 accuracy of the last \\boxed{} + 0.1 format; answers are expressions.",
        example="<think>Let me see.</think> \\boxed{{reference}}",
        needs=_REFERENCE,
        requires=_MATH,
        formula="0.9 * accuracy + 0.1 * format",
    )
    yield RewardComponent(
        name="python",
        target="lightrft_rewards.function:PythonReward",
        config="lightrft_rewards.function:PythonConfig",
        summary="A Python function of yours: `path: ./my_reward.py:reward`.",
        provides=frozenset({"batch"}),
    )


@hookimpl
def lightrft_tasks() -> Iterator[Component]:
    """Where prompts come from."""
    yield Component(
        name="gsm8k",
        target="lightrft_rewards.gsm8k:Gsm8kTask",
        config="lightrft_rewards.gsm8k:Gsm8kTaskConfig",
        summary="GSM8K's own files; the number after #### is the reference.",
        paper="https://arxiv.org/abs/2110.14168",
    )
    yield Component(
        name="word_problems",
        target="lightrft_rewards.word_problem_task:WordProblemsTask",
        config="lightrft_rewards.word_problem_task:WordProblemsConfig",
        summary="Small word problems made from a seed: no file, no download.",
    )
