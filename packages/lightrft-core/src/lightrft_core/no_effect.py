"""Keys that do nothing in a given run. Setting one is refused; the resolved file leaves it out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightrft_core.sections import CriticSection, EvaluationSection, Section

Get = Callable[[str], Any]  # Any: the value of a dotted key, of any type


@dataclass(frozen=True, slots=True)
class Rule:
    """`keys` do nothing where `holds`, which depends on `cause`; `reason` completes "has no effect: ..."."""

    keys: tuple[str, ...]
    cause: str
    holds: Callable[[Get], bool]
    reason: str


def _warmup_rule(section: str) -> Rule:
    return Rule(
        (f"{section}.warmup_ratio",),
        f"{section}.warmup_steps",
        lambda get: get(f"{section}.warmup_steps") is not None,
        f"{section}.warmup_steps is set. Give one of the two. `--set {section}.warmup_steps=null` takes it back.",
    )


RULES = (
    Rule(
        tuple(f"critic.{name}" for name in CriticSection.model_fields),
        "advantage.use",
        lambda get: not get("critic"),
        "nothing in this run needs a critic's values. Did you mean advantage 'gae', or algorithm 'ppo'?",
    ),
    _warmup_rule("optim"),
    _warmup_rule("critic"),
    Rule(
        ("loss.token_budget",),
        "loss.aggregation",
        lambda get: get("loss.aggregation") != "seq_mean_token_sum_norm",
        "only loss.aggregation seq_mean_token_sum_norm divides by it.",
    ),
    Rule(
        ("kl.horizon",),
        "kl.target",
        lambda get: get("kl.target") is None,
        "the weight is steered only where kl.target is set.",
    ),
    Rule(
        ("run.episodes",),
        "run.steps",
        lambda get: get("run.steps") is not None,
        "run.steps is set. Give one of the two. `--set run.steps=null` takes it back.",
    ),
    Rule(
        tuple(f"evaluation.{name}" for name in EvaluationSection.model_fields),
        "evaluation.task",
        lambda get: not get("evaluation.task"),
        "there is no evaluation.task. Add one: `task: {path: test.jsonl}`, or the flag --eval_data.",
    ),
    Rule(
        ("evaluation.top_p",),
        "evaluation.temperature",
        lambda get: get("evaluation.temperature") == 0,
        "evaluation.temperature is 0, which is greedy.",
    ),
    Rule(
        ("evaluation.num_samples",),
        "evaluation.temperature",
        lambda get: get("evaluation.temperature") == 0 and get("evaluation.num_samples") > 1,
        "evaluation.temperature is 0, so all samples of a prompt would be the same. Set it above 0.",
    ),
    Rule(
        ("sampler.max_refill_rounds",),
        "filters",
        lambda get: not get("filters"),
        "there are no filters that could drop a group.",
    ),
    Rule(
        ("selftest.rollouts", "selftest.tolerance"),
        "selftest.enabled",
        lambda get: not get("selftest.enabled"),
        "selftest.enabled is false.",
    ),
    Rule(
        ("checkpoint.background",),
        "checkpoint.every",
        lambda get: get("checkpoint.every") is None and get("checkpoint.every_episodes") is None,
        "neither checkpoint.every nor checkpoint.every_episodes is set: the run saves only at its end, which waits for "
        "the checkpoint.",
    ),
    Rule(
        ("run.watchdog_action",),
        "run.watchdog",
        lambda get: get("run.watchdog") is None,
        "run.watchdog is null, so nothing is watched.",
    ),
    Rule(
        ("run.unscored_patience",),
        "run.max_unscored_fraction",
        lambda get: get("run.max_unscored_fraction") == 1,
        "run.max_unscored_fraction is 1, so the run never stops for it.",
    ),
)


def keys_without_effect(sections: Mapping[str, Section], present: Mapping[str, bool]) -> dict[str, Rule]:
    """Dotted key -> its rule, for the sections that are there; `present` says which lists and tasks the run has."""

    def get(key: str) -> Any:  # Any: as in Get
        if key in present:
            return present[key]
        section, _, name = key.partition(".")
        return sections[section].__dict__.get(name)

    found: dict[str, Rule] = {}
    for rule in RULES:
        if rule.keys[0].partition(".")[0] in sections and rule.holds(get):
            found |= {key: rule for key in rule.keys if key not in found}
    for name, section in sections.items():
        for option, why in section.idle().items():
            key, cause = f"{name}.{option}", f"{name}.{why.because}"
            found.setdefault(key, Rule((key,), cause, lambda get: True, why.reason))
    return found
