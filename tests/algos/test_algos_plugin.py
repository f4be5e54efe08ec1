"""What lightrft-algos offers, and that listing it loads no torch."""

import subprocess
import sys

import pytest
from lightrft_core.kinds import KINDS
from lightrft_core.plugins import Plugins

OFFERS = {
    kind.name: {offer.descriptor.name: offer.descriptor for offer in Plugins.load().offers(kind.name)} for kind in KINDS
}


def test_the_module_and_every_options_module_import_without_torch():
    targets = [
        item.config.partition(":")[0]
        for offers in OFFERS.values()
        for item in offers.values()
        if getattr(item, "config", None) and item.config.startswith("lightrft_algos")
    ]
    code = f"import sys, importlib, lightrft_algos.plugin\n[importlib.import_module(m) for m in {targets!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


NAMES = (
    *("grpo", "dr_grpo", "dapo", "gspo", "gmpo", "cpgd", "cispo", "sapo", "reinforce", "reinforce_pp"),
    *("reinforce_pp_baseline", "rloo", "raft", "ppo"),
)
COMPATIBLE = {
    "verl": "grpo dr_grpo dapo gspo rloo reinforce_pp reinforce_pp_baseline ppo",
    "trl": "grpo dr_grpo dapo gspo cispo sapo rloo",
    "openrlhf": "ppo grpo dr_grpo rloo reinforce_pp reinforce_pp_baseline",
}


def test_the_algorithms_are_there():
    others = {f"{library}/{name}" for library, names in COMPATIBLE.items() for name in names.split()}
    assert {*NAMES, *others} == {name for name, _ in OFFERS["algorithm"].items()}


@pytest.mark.parametrize("name", OFFERS["algorithm"])
def test_every_algorithm_tells_formula_paper_and_when_to_use_it(name):
    bundle = OFFERS["algorithm"][name]
    assert bundle.formula and bundle.when and bundle.summary.endswith(".") and bundle.when.endswith(".")
    source = "github.com/" if "/" in name else ("arXiv:", "Williams 1992")
    assert bundle.paper.startswith(source)


@pytest.mark.parametrize("name", OFFERS["algorithm"])
def test_every_algorithm_names_its_advantage_and_its_loss(name):
    sections = OFFERS["algorithm"][name].sections
    assert sections["advantage"]["use"] in OFFERS["advantage"]
    assert sections["loss"]["use"] in OFFERS["loss"]


DUAL, SINGLE = (
    {"use": "clip", "dual_clip": 3.0, "aggregation": "token_mean"},
    {"use": "clip", "aggregation": "token_mean"},
)
CENTRED = {"use": "group_norm", "std": "none"}
GAE = {"use": "gae", "gamma": 1.0, "lambd": 1.0, "normalize": True}
CHOICES = {  # what must be in advantage and loss, and the KL: estimator, place and weight
    "verl/grpo": ({"std": "group", "eps": 1e-6}, DUAL, ("k3", "loss", 0.001)),
    "verl/dr_grpo": (CENTRED, {**DUAL, "aggregation": "seq_mean_token_sum_norm"}, None),
    "verl/dapo": ({"std": "group", "eps": 1e-6}, {**DUAL, "clip_high": 0.28, "dual_clip": 10.0}, None),
    "verl/gspo": ({"eps": 1e-6}, {"use": "gspo", "level": "token", "clip_low": 3e-4, "clip_high": 4e-4}, None),
    "verl/rloo": ({"use": "rloo"}, DUAL, ("k1", "reward", 0.001)),
    "verl/reinforce_pp": ({"use": "reinforce_pp"}, DUAL, ("k1", "reward", 0.001)),
    "verl/reinforce_pp_baseline": ({"use": "reinforce_pp_baseline"}, DUAL, ("k1", "reward", 0.001)),
    "verl/ppo": (GAE, DUAL, None),
    "trl/grpo": ({"std": "group", "eps": 1e-4}, SINGLE, None),
    "trl/dr_grpo": (CENTRED, {"aggregation": "seq_mean_token_sum_norm"}, None),
    "trl/dapo": ({"eps": 1e-4}, {**SINGLE, "clip_high": 0.28}, None),
    "trl/gspo": ({"eps": 1e-4}, {"use": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}, None),
    "trl/cispo": ({"eps": 1e-4}, {"use": "cispo", "clip_low": 1.0, "clip_high": 4.0}, None),
    "trl/sapo": ({"eps": 1e-4}, {"use": "sapo", "tau_positive": 1.0, "tau_negative": 1.05}, None),
    "trl/rloo": (
        {"use": "rloo"},
        {"use": "reinforce", "aggregation": "seq_mean_token_sum"},
        ("k1", "reward", 0.05),
    ),
    "openrlhf/ppo": (GAE, SINGLE, ("k1", "reward", 0.01)),
    "openrlhf/grpo": ({"std": "group", "eps": 1e-9, "clip": 10.0}, SINGLE, ("k3", "loss", 0.01)),
    "openrlhf/dr_grpo": ({**CENTRED, "clip": 10.0}, SINGLE, ("k2", "loss", 0.01)),
    "openrlhf/rloo": ({"use": "rloo", "clip": 10.0}, SINGLE, ("k2", "loss", 0.01)),
    "openrlhf/reinforce_pp": ({"use": "reinforce_pp"}, SINGLE, ("k1", "reward", 0.01)),
    "openrlhf/reinforce_pp_baseline": ({"use": "reinforce_pp_baseline"}, SINGLE, ("k2", "loss", 0.01)),
}


@pytest.mark.parametrize("name", [name for name in OFFERS["algorithm"] if "/" in name])
def test_compatibility_bundles_make_the_choices_of_their_library(name):
    bundle = OFFERS["algorithm"][name]
    advantage, loss, kl = CHOICES[name]
    assert advantage.items() <= bundle.sections["advantage"].items()
    assert loss.items() <= bundle.sections["loss"].items()
    found = bundle.sections.get("kl")
    assert kl == (None if found is None else (found["use"], found["place"], found["coef"]))
    assert ", version " in bundle.paper and bundle.when.startswith("To carry ")


@pytest.mark.parametrize(("library", "clip"), [("verl/ppo", 0.5), ("openrlhf/ppo", 0.5), ("ppo", 0.2)])
def test_critics_are_clipped_as_their_library_does(library, clip):
    assert OFFERS["algorithm"][library].sections["critic"] == {"clip": clip}


def test_verls_dapo_draws_ten_batches_at_most():
    assert OFFERS["algorithm"]["verl/dapo"].sections["sampler"] == {"max_refill_rounds": 9}


def test_reinforce_pp_has_its_kl_in_the_reward_and_the_baseline_in_the_loss():
    plain, baseline = (OFFERS["algorithm"][name].sections["kl"] for name in ("reinforce_pp", "reinforce_pp_baseline"))
    assert (plain["use"], plain["place"]) == ("k1", "reward")
    assert (baseline["use"], baseline["place"]) == ("k2", "loss")


def test_dapo_is_clip_higher_token_mean_dynamic_sampling_and_overlong_without_kl():
    sections = OFFERS["algorithm"]["dapo"].sections
    assert sections["loss"] == {"use": "clip", "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token_mean"}
    assert sections["filters"] == [{"use": "spread"}]
    assert sections["shapers"] == [{"use": "overlong"}]
    assert "kl" not in sections


def test_dr_grpo_divides_by_neither_spread_nor_length():
    sections = OFFERS["algorithm"]["dr_grpo"].sections
    assert sections["advantage"]["std"] == "none"
    assert sections["loss"]["aggregation"] == "seq_mean_token_sum_norm"
    assert "kl" not in sections


def test_grpo_has_a_k3_penalty_in_the_loss():
    sections = OFFERS["algorithm"]["grpo"].sections
    assert sections["advantage"]["std"] == "group"
    assert sections["loss"]["aggregation"] == "seq_mean_token_mean"
    assert (sections["kl"]["use"], sections["kl"]["place"]) == ("k3", "loss")


def test_k1_is_for_rewards_only():
    assert "reward_only" in OFFERS["kl"]["k1"].provides
    assert "reward_only" not in OFFERS["kl"]["k2"].provides | OFFERS["kl"]["k3"].provides


def test_every_loss_but_cpgd_promises_that_rows_without_advantage_have_no_gradient():
    promises = {name for name, item in OFFERS["loss"].items() if "zero_without_advantage" in item.provides}
    assert promises == set(OFFERS["loss"]) - {"cpgd"}
