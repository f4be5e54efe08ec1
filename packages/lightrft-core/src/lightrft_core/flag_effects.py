"""Flags whose effect needs more than one key, or depends on other flags."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightrft_core.errors import UserError
from lightrft_core.flag_rows import Given, GivenFlag
from lightrft_core.nodes import Plain
from lightrft_core.overrides import Override
from lightrft_core.sections import TaskSection
from lightrft_core.suggest import did_you_mean
from lightrft_core.yaml_marks import read_yaml

ESTIMATORS = {
    "group_norm": ("advantage.use", "group_norm"),
    "reinforce": ("advantage.use", "reinforce"),
    "reinforce++": ("advantage.use", "reinforce_pp"),
    "reinforce_baseline": ("advantage.use", "reinforce_pp_baseline"),
    "rloo": ("advantage.use", "rloo"),
    "gae": ("advantage.use", "gae"),
    "grpo": ("algorithm", "grpo"),
    "dr_grpo": ("algorithm", "dr_grpo"),
    "dapo": ("algorithm", "dapo"),
    "cpgd": ("algorithm", "cpgd"),
    "gspo": ("algorithm", "gspo"),
    "gmpo": ("algorithm", "gmpo"),
}
CLIP_HIGHER = 0.3  # LightRFT's clip_range_higher where only use_clip_higher is given
KL_FLAGS = ("kl_estimator", "kl_target", "use_kl_loss", "kl_horizon")
_SECRET = re.compile(r"[0-9a-f]{40}|[A-Za-z0-9_-]{60,}")


def advantage_estimator(given: GivenFlag, _: Given) -> Iterable[Override]:
    """An advantage, or the algorithm that has that name."""
    name = str(given.value)
    if name not in ESTIMATORS:
        hint = did_you_mean(name, list(ESTIMATORS))
        raise given.refuse(f"{name!r} is not one of {', '.join(ESTIMATORS)}.", hint if "mean" in hint else "")
    key, value = ESTIMATORS[name]
    return [given.override(key, value)]


def eps_clip(given: GivenFlag, others: Given) -> Iterable[Override]:
    """Both sides of the clip range; flags for one side win."""
    higher, lower = "clip_range_higher" in others or "use_clip_higher" in others, "clip_range_lower" in others
    if higher and lower:
        raise given.refuse("has no effect beside flags for both sides.", "Leave it out.")
    if not lower:
        yield given.override("loss.clip_low", given.value)
    if not higher:
        yield given.override("loss.clip_high", given.value)


def use_clip_higher(given: GivenFlag, others: Given) -> Iterable[Override]:
    """Clip-higher; its height may come from `--clip_range_higher`."""
    if not given.value:
        raise given.refuse("has no effect: this is off unless it is asked for.", "Leave it out.")
    if "clip_range_higher" not in others:
        yield given.override("loss.clip_high", CLIP_HIGHER)


def init_kl_coef(given: GivenFlag, others: Given) -> Iterable[Override]:
    """The KL's weight; 0 takes the KL out, and with it the reference model."""
    if given.value != 0:
        yield given.override("kl.coef", given.value)
        return
    idle = [others[name].source for name in KL_FLAGS if name in others]
    if idle:
        names = " and ".join(idle)
        raise given.refuse(f"0 turns the KL off, so {names} would have no effect.", f"Leave {names} out.")
    yield given.override("kl", None)


def zero_stage(given: GivenFlag, others: Given) -> Iterable[Override]:
    """The deepspeed strategy at a stage."""
    if "fsdp" in others:
        raise given.refuse("has no effect beside --fsdp, which is another strategy.", "Leave one of them out.")
    yield given.override("strategy.use", "deepspeed")
    yield given.override("strategy.stage", given.value)


def max_len(given: GivenFlag, others: Given) -> Iterable[Override]:
    """Deprecated: prompt and answer together; the answer gets what the prompt leaves."""
    if "generate_max_len" in others and "prompt_max_len" in others:
        raise given.refuse("has no effect beside --prompt_max_len and --generate_max_len.", "Leave it out.")
    default = TaskSection.model_fields["max_prompt_tokens"].default
    if "generate_max_len" in others:
        rest = int(given.value) - int(others["generate_max_len"].value)
        key = "task.max_prompt_tokens"
    else:
        prompt = int(others["prompt_max_len"].value) if "prompt_max_len" in others else int(default)
        rest = int(given.value) - prompt
        key = "sampler.max_new_tokens"
        if "prompt_max_len" not in others:
            yield given.override("task.max_prompt_tokens", prompt)
    if rest < 1:
        raise given.refuse(
            f"{given.value} leaves {rest} tokens for {key}.", "Give --prompt_max_len and --generate_max_len."
        )
    yield given.override(key, rest)


def prompt_data(given: GivenFlag, others: Given) -> Iterable[Override]:
    """One source of prompts, or several separated by commas."""
    yield given.override("task.path", given.value)
    probs = others.get("prompt_data_probs")
    if probs is None:
        return
    num_paths = len(given.value) if isinstance(given.value, list) else 1
    if num_paths != len(probs.value):
        raise probs.refuse(
            f"gives {len(probs.value)} probabilities for {num_paths} data sources.", "Give one for each."
        )


def reward_pretrain(given: GivenFlag, _: Given) -> Iterable[Override]:
    """A reward model's folder, or a JSON map of names to folders."""
    if not str(given.value).startswith("{"):
        return [given.override("rewards[model].path", given.value)]
    models = _json(given)
    if not isinstance(models, dict) or not all(isinstance(path, str) for path in models.values()):
        raise given.refuse("takes a folder or a JSON map of names to folders.")
    return [
        given.override(f"rewards[{name}]", {"use": "model", "name": name, "path": path})
        for name, path in models.items()
    ]


def remote_rm_url(given: GivenFlag, _: Given) -> Iterable[Override]:
    """A reward server, or a Python file with a reward function."""
    text = str(given.value)
    if re.match(r"https?://", text):
        return [given.override("rewards[remote].url", text)]
    if not re.search(r"\.py(:\w+)?$", text):
        hint = "For example http://127.0.0.1:5000/score or ./my_reward.py."
        raise given.refuse(f"{text!r} is neither a URL nor a .py file.", hint)
    file, _py, function = text.partition(".py")
    path = Path(f"{file}.py")
    if not path.is_file():
        raise given.refuse(f"{path} does not exist.")
    return [given.override("rewards[python].path", f"{path.resolve()}{function}")]


def reward_recipe(given: GivenFlag, _: Given) -> Iterable[Override]:
    """JSON (or a file of it): label -> sources with weights; every source scores only its labels."""
    text = str(given.value)
    recipe = _json(given) if text.lstrip().startswith("{") else read_yaml(Path(text), text).plain()
    if not isinstance(recipe, dict):
        raise given.refuse("takes a map from label to [source, weight] pairs.")
    labels: dict[tuple[str, float], list[str]] = {}
    for label, entries in recipe.items():
        for source, weight in _sources(given, str(label), entries):
            labels.setdefault((source, weight), []).append(str(label))
    times = [source for source, _ in labels]
    for (source, weight), of in labels.items():
        name = source if times.count(source) == 1 else f"{source}_{'_'.join(of)}"
        yield given.override(f"rewards[{name}]", {"use": source, "name": name, "weight": weight, "labels": of})


def _sources(given: GivenFlag, label: str, entries: Plain) -> Iterator[tuple[str, float]]:
    pairs = list(entries.items()) if isinstance(entries, dict) else entries
    for entry in pairs if isinstance(pairs, list) else [pairs]:
        parts = list(entry) if isinstance(entry, list | tuple) else [entry, 1.0]
        if len(parts) == 3:  # LightRFT's (kind, name, weight); a rule is named by the label
            kind, name, weight = parts
            parts = [name or (label if kind == "rule" else kind), weight]
        if len(parts) != 2 or not isinstance(parts[0], str) or not isinstance(parts[1], int | float):
            raise given.refuse(f"{label!r}: {entry!r} is not [source, weight].")
        yield parts[0], float(parts[1])


def use_wandb(given: GivenFlag, others: Given) -> Iterable[Override]:
    """The wandb tracker, with its project; an API key never goes on a command line."""
    text = str(given.value)
    if _SECRET.fullmatch(text):
        raise given.refuse("looks like an API key.", "Put it into the environment variable WANDB_API_KEY.")
    if text.lower() == "true" or "wandb_project" in others:
        yield given.override("trackers[wandb]", {})
    else:
        yield given.override("trackers[wandb].project", text)


def use_tensorboard(given: GivenFlag, _: Given) -> Iterable[Override]:
    """The tensorboard tracker, with its folder."""
    if str(given.value).lower() == "true":
        return [given.override("trackers[tensorboard]", {})]
    return [given.override("trackers[tensorboard].dir", given.value)]


def loss_agg_mode(given: GivenFlag, _: Given) -> Iterable[Override]:
    """Both spellings: token-mean and token_mean."""
    return [given.override("loss.aggregation", str(given.value).replace("-", "_"))]


def _json(given: GivenFlag) -> Plain:
    try:
        return json.loads(str(given.value))
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}.", where=given.source) from None
