"""Numbers that describe rollouts. Every mean is a (sum, count) pair until all ranks are added up."""

from collections.abc import Iterable, Mapping, Sequence

from lightrft_core.data import Group, Rollout, StepStats
from lightrft_core.protocols import World

Pairs = dict[str, tuple[float, float]]


def means(pairs: Mapping[str, tuple[float, float]], world: World) -> dict[str, float]:
    """Means over all ranks of pairs whose names may differ between ranks; names without a count are left out."""
    names = sorted({name for names in world.gather(sorted(pairs)) for name in names})
    flat = world.sum([number for name in names for number in pairs.get(name, (0.0, 0.0))])
    sums = dict(zip(names, zip(flat[::2], flat[1::2], strict=True), strict=True))
    return {name: total / count for name, (total, count) in sums.items() if count}


def add_pairs(into: Pairs, pairs: Mapping[str, tuple[float, float]]) -> None:
    """Add (sum, count) pairs by name, in place."""
    for name, (total, count) in pairs.items():
        present = into.get(name, (0.0, 0.0))
        into[name] = (present[0] + total, present[1] + count)


def rollout_pairs(groups: Sequence[Group]) -> Pairs:
    """Rewards and named scores, completion lengths, truncation, unscored share and groups without spread."""
    pairs: Pairs = {}
    for group in groups:
        rewards = group.rewards()
        spread = 0.0 if len(set(rewards)) > 1 else 1.0
        add_pairs(pairs, {"group/zero_spread_fraction": (spread, 1.0)})
        for rollout in group.rollouts:
            add_pairs(pairs, dict(_of_rollout(rollout)))
    return pairs


def version_pairs(groups: Sequence[Group], version: int) -> Pairs:
    """How many syncs ago the weights were served that wrote the rollouts; 0 where these are on-policy."""
    lags = [float(version - rollout.policy_version) for group in groups for rollout in group.rollouts]
    return {"gap/version_lag": (sum(lags), float(len(lags)))}


def _of_rollout(rollout: Rollout) -> Iterable[tuple[str, tuple[float, float]]]:
    yield "completion/length", (float(len(rollout.token_ids)), 1.0)
    yield "completion/truncated_fraction", (float(rollout.finish_reason == "length"), 1.0)
    yield "reward/unscored_fraction", (float(rollout.reward is None), 1.0)
    if rollout.reward is not None:
        yield "reward/mean", (rollout.reward, 1.0)
    if rollout.shaped_reward is not None and rollout.shaped_reward != rollout.reward:
        yield "reward/shaped", (rollout.shaped_reward, 1.0)
    for name, value in rollout.scores.items():
        yield ("accuracy" if name == "accuracy" else f"reward/{name}"), (value, 1.0)


def training_metrics(stats: Sequence[StepStats]) -> dict[str, float]:
    """Means over the optimizer steps of one rollout step; their pairs are sums over all ranks already."""
    pairs: Pairs = {}
    for item in stats:
        add_pairs(pairs, item.metrics)
    metrics = {
        name if "/" in name else f"train/{name}": total / count for name, (total, count) in pairs.items() if count
    }
    finite = [item.grad_norm for item in stats if item.skipped is None]
    if finite:
        metrics["train/grad_norm"] = sum(finite) / len(finite)
    metrics["train/lr"] = stats[-1].lr
    metrics["train/skipped_steps"] = float(sum(item.skipped is not None for item in stats))
    return metrics
