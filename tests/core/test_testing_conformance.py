"""The conformance kit passes what is right, names what is wrong, and says what it could not test."""

import multiprocessing
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from lightrft_core.descriptors import Algorithm, Component, RewardComponent
from lightrft_core.kinds import KINDS
from lightrft_core.plugins import Plugins
from lightrft_core.testing import check_component
from lightrft_core.testing.conformance import SUITES

WRONG = Path(__file__).with_name("wrong_components.py")
PLUGINS = Plugins.load()
OFFERS = [(offer.kind, offer.descriptor) for kind in KINDS for offer in PLUGINS.offers(kind.name)]


def failures(kind, component, **more):
    return {result.name: result.detail for result in check_component(kind, component, PLUGINS, **more) if not result.ok}


def wrong(name, descriptor=Component, **facts):
    return descriptor(name="wrong", target=f"{WRONG}:{name}", summary="Wrong.", **facts)


@pytest.mark.parametrize("kind, component", OFFERS, ids=[f"{kind}.{item.name}" for kind, item in OFFERS])
def test_every_registered_component_conforms(kind, component, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    check = partial(failures, kind, component)
    assert (apart(check) if kind == "strategy" else check()) == {}


def apart(work):
    """In a process of its own: a strategy alone leaves a group of one, which later forked ranks would inherit."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=lambda: results.put(work()))
    process.start()
    found = results.get(timeout=300)
    process.join()
    return found


def test_there_is_a_suite_for_every_kind():
    assert set(SUITES) == {kind.name for kind in KINDS}
    assert all(SUITES.values())


@pytest.mark.parametrize(
    "name, check",
    [
        ("reduced_per_micro_batch", "micro batches do not change the gradient"),
        ("reduced_to_a_scalar", "values are per token or per sequence"),
        ("divided_by_padded_length", "padding does not change the gradient"),
        ("sequence_ratio_over_padding", "padding does not change the gradient"),
        ("whitened_inside", "micro batches do not change the gradient"),
        ("whitened_inside", "two ranks give the gradient of one"),
        ("unclamped_ratio", "extreme log ratios stay finite"),
        ("changes_its_inputs", "inputs are left alone"),
    ],
)
def test_a_wrong_loss_is_found(name, check):
    assert check in failures("loss", wrong(name))


def test_a_loss_that_breaks_its_promise_is_found():
    promised = wrong("broken_promise", provides=frozenset({"zero_without_advantage"}))
    found = failures("loss", promised)
    assert found == {
        "promised zero gradient without advantage holds": "rows without advantage have a gradient",
    }


@pytest.mark.parametrize(
    "name, check",
    [
        ("siblings_by_position", "row order does not matter"),
        ("whitened_over_padding", "padding does not matter"),
        ("unscored_taken_for_zero", "unscored rows are neutral and get 0"),
        ("mean_of_this_rank", "two ranks give what one gives"),
        ("divides_by_zero", "equal rewards and single rows stay finite"),
    ],
)
def test_a_wrong_advantage_is_found(name, check):
    assert check in failures("advantage", wrong(name))


@pytest.mark.parametrize(
    "kind, name, check",
    [
        ("kl", "offset_kl", "equal policies have no divergence"),
        ("kl", "batch_kl", "each token stands alone"),
        ("selector", "local_quantile", "two ranks choose what one chooses"),
        ("correction", "weights_of_two", "no gap needs no correction"),
        ("filter", "reversing_filter", "group is left alone"),
        ("filter", "first_sibling_filter", "order of siblings does not matter"),
        ("task", "ForgetfulTask", "state survives a resume"),
        ("shaper", "MeanShaper", "two ranks give what one gives"),
        ("sampler", "SameSeedSampler", "seeds differ by sibling step and run"),
    ],
)
def test_other_wrong_components_are_found(kind, name, check):
    assert check in failures(kind, wrong(name))


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize(
    "name, check",
    [
        ("CoinReward", "verdicts do not depend on neighbours"),
        ("ShortReward", "every response gets a verdict"),
        ("UnreadyReward", "every response gets a verdict"),
    ],
)
def test_a_wrong_reward_is_found(name, check, isolated):
    provides = frozenset({"batch"})  # one call for all requests, so that a reward can depend on its neighbours
    assert check in failures("reward", wrong(name, RewardComponent, is_isolated=isolated, provides=provides))


def test_a_target_that_does_not_import_is_named_with_its_cause():
    component = Component(name="gone", target="no_such_module:thing", summary="Gone.")
    (detail,) = failures("loss", component).values()
    assert "no_such_module" in detail


def test_options_that_load_torch_are_refused(tmp_path):
    plugin = tmp_path / "heavy.py"
    plugin.write_text(
        "import torch\nfrom lightrft_core.sections import LossSection\n\n\nclass Heavy(LossSection):\n    pass\n\n\n"
        "def loss(inputs, *, config):\n    pass\n"
    )
    component = Component(name="heavy", target=f"{plugin}:loss", config=f"{plugin}:Heavy", summary="Heavy.")
    assert "also imports torch" in failures("loss", component)["options import without torch"]


def test_options_without_a_sentence_are_refused(tmp_path):
    plugin = tmp_path / "bare.py"
    plugin.write_text(
        "from lightrft_core.sections import LossSection\n\n\nclass Bare(LossSection):\n    knob: float = 1.0\n\n\n"
        "def loss(inputs, *, config):\n    pass\n"
    )
    component = Component(name="bare", target=f"{plugin}:loss", config=f"{plugin}:Bare", summary="Bare.")
    assert failures("loss", component) == {"options are documented": "no sentence under knob"}


def test_an_algorithm_with_an_unknown_option_is_found():
    bundle = Algorithm(name="odd", summary="Odd.", sections={"loss": {"use": "clip", "clip_hihg": 0.3}})
    assert "clip_hihg" in failures("algorithm", bundle)["sections resolve"]


def test_an_algorithm_with_an_unknown_component_is_found():
    bundle = Algorithm(name="odd", summary="Odd.", sections={"advantage": {"use": "group_nrom"}})
    assert "group_nrom" in failures("algorithm", bundle)["sections resolve"]


def test_an_algorithm_with_an_unknown_section_is_found():
    bundle = Algorithm(name="odd", summary="Odd.", sections={"losses": {"use": "clip"}})
    assert failures("algorithm", bundle)["sections exist"] == "'losses' is no section of a run file"


def test_missing_requirements_are_a_skip_that_names_them():
    component = Component(name="later", target="later:thing", summary="Later.", requires=("no-such-package>=9",))
    (result,) = check_component("engine", component, PLUGINS)
    assert result.ok and result.is_skipped
    assert "no-such-package>=9" in result.detail


def test_a_machine_without_what_it_needs_is_a_skip_that_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    tracker = PLUGINS.find("tracker", "wandb", where="test")
    last = check_component("tracker", tracker, PLUGINS)[-1]
    assert last.is_skipped and "WANDB_API_KEY" in last.detail


def test_missing_options_are_a_skip_that_names_them():
    component = PLUGINS.find("model", "text", where="test")
    last = check_component("model", component, PLUGINS)[-1]
    assert last.is_skipped and "path" in last.detail and "more checks wait" in last.detail


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'lass' is no kind of component"):
        check_component("lass", OFFERS[0][1], PLUGINS)


def test_the_kit_and_its_toys_import_without_torch():
    code = "import sys, lightrft_core.testing, lightrft_core.testing.toys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
