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
    *("reinforce_pp_baseline", "rloo", "raft", "verl/grpo", "trl/grpo", "openrlhf/reinforce_pp"),
)


def test_the_algorithms_are_there():
    assert set(NAMES) <= set(OFFERS["algorithm"])


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


@pytest.mark.parametrize(
    ("name", "advantage", "loss", "kl"),
    [
        ("verl/grpo", {"std": "group", "eps": 1e-6}, {"dual_clip": 3.0, "aggregation": "token_mean"}, ("k3", "loss")),
        ("trl/grpo", {"std": "group", "eps": 1e-4}, {"aggregation": "token_mean"}, None),
        ("openrlhf/reinforce_pp", {"use": "reinforce_pp"}, {"aggregation": "token_mean"}, ("k1", "reward")),
    ],
)
def test_compatibility_bundles_make_the_choices_of_their_library(name, advantage, loss, kl):
    sections = OFFERS["algorithm"][name].sections
    assert advantage.items() <= sections["advantage"].items()
    assert {**loss, "clip_low": 0.2, "clip_high": 0.2}.items() <= sections["loss"].items()
    assert kl == ((sections["kl"]["use"], sections["kl"]["place"]) if "kl" in sections else None)


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
