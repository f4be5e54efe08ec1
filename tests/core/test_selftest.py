"""Each check of step 0 fails when it should, and names the row and the token."""

from dataclasses import replace

import pytest
import torch
from lightrft_core.assembly import build_selftest
from lightrft_core.data import LossOutput
from lightrft_core.errors import RunFailed
from lightrft_core.protocols import LogProbs
from lightrft_core.selftest import describe
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.single import SingleStrategy

from tests.core.real_run import disturb, real_run

NAMES = ["end of text is trained", "engine = trainer", "packed = padded", "ratio 1", "clip fraction 0"]


class CutsTheEnd(TextAdapter):
    """Leaves the last token of every row out of the mask."""

    def collate(self, groups):
        batch = super().collate(groups)
        for row, length in enumerate(batch.lengths_B.tolist()):
            batch.mask_BT[row, length - 1] = False
        return batch


class PacksWrong(TextAdapter):
    """Its packed layout is off by 0.1 at one token."""

    def logprobs(self, module, batch, *, layout="auto", entropy=False, chunk=None):
        found = super().logprobs(module, batch, layout=layout, entropy=entropy, chunk=chunk)
        return found if layout == "padded" else LogProbs(found.logprobs_BT + 0.1 * first_token(found), found.entropy_BT)


class Drifts(TextAdapter):
    """Every call gives other numbers, as a model with dropout does."""

    calls = 0

    def logprobs(self, module, batch, *, layout="auto", entropy=False, chunk=None):
        found = super().logprobs(module, batch, layout=layout, entropy=entropy, chunk=chunk)
        self.calls += 1
        return LogProbs(found.logprobs_BT + 0.1 * self.calls * first_token(found), found.entropy_BT)


class Inexact(SingleStrategy):
    """Says that it computes in half precision."""

    is_exact = False


def first_token(found):
    place_BT = torch.zeros_like(found.logprobs_BT)
    place_BT[0, 0] = 1.0
    return place_BT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = real_run(tmp_path_factory.mktemp("selftest"), "kl={use: k3}", "strategy.packing=auto")
    yield run
    run.core.close()


@pytest.fixture
def groups(run):
    return sampled(run)


def sampled(run):
    trainer = run.trainer()
    found = trainer.parts.sampler.sample(run.core.engine, run.core.task.everything()[:2], step=0)
    trainer.parts.store.close()
    for group in found:
        for rollout in group.rollouts:
            rollout.reward = rollout.shaped_reward = 0.0
    return found


def with_adapter(run, kind):
    """The self-test with another model adapter."""
    core = run.core
    setup = replace(core.setup, strategy=None)
    setup.model = kind(run.run_file.model.config, setup)
    strategy = SingleStrategy(run.run_file.strategy.config, setup)
    return replace(build_selftest(core, run.run_file), model=setup.model, strategy=strategy)


def shift_engine(groups, by):
    """Change what the engine says of token 2 of the second sibling of the first prompt; returns its name."""
    rollout = groups[0].rollouts[1]
    values = list(rollout.engine_logprobs)
    values[2] += by
    rollout.engine_logprobs = tuple(values)
    return f"row {rollout.prompt_id}#1, token 2 "


def failure(selftest, groups):
    with pytest.raises(RunFailed) as caught:
        selftest.run(groups)
    return str(caught.value)


def test_a_sound_run_passes_every_check(run, groups):
    findings = build_selftest(run.core, run.run_file).run(groups)
    assert [finding.name for finding in findings] == [*NAMES, "policy = reference (KL 0)"]
    assert all(finding.ok and finding.deviation <= 1e-3 for finding in findings)
    lines = []
    describe(findings, lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("self-test passed: end of text is trained (0.0e+00), engine = trainer (")


def test_without_a_reference_there_is_no_kl_to_check(run, groups):
    findings = replace(build_selftest(run.core, run.run_file), has_reference=False).run(groups)
    assert [finding.name for finding in findings] == NAMES


@pytest.mark.parametrize("by", [0.1, -0.1])
def test_an_engine_that_disagrees_is_named_with_row_and_token(run, groups, by):
    place = shift_engine(groups, by)
    piece = run.core.model.pieces(groups[0].rollouts[1].token_ids)[2]
    text = failure(build_selftest(run.core, run.run_file), groups)
    assert text.startswith("self-test: engine = trainer: off by 0.1, ")
    assert f"{place}{piece!r}" in text
    assert "The tolerance is 0.001 nats (selftest.tolerance). Nothing was trained" in text
    assert "selftest.enabled=false" in text


def test_an_engine_value_that_is_no_number_fails(run, groups):
    place = shift_engine(groups, float("nan"))
    assert place in failure(build_selftest(run.core, run.run_file), groups)


def test_truncated_sampling_may_only_raise_the_engines_values(run, groups):
    """Top-p and the like leave less to share, so what is drawn gets likelier, never less likely."""
    selftest = replace(build_selftest(run.core, run.run_file), is_truncated=True)
    shift_engine(groups, 0.5)
    assert {finding.name for finding in selftest.run(groups)} >= {"engine = trainer"}
    shift_engine(groups, -0.6)
    assert "engine = trainer: off by 0.1" in failure(selftest, groups)


def test_truncation_is_read_from_the_sampler(tmp_path):
    for setting, expected in (("top_p=0.9", True), ("top_k=5", True), ("min_p=0.1", True), ("top_p=1", False)):
        run = real_run(tmp_path, f"sampler.{setting}")
        assert build_selftest(run.core, run.run_file).is_truncated is expected
        run.core.close()


def test_an_end_token_outside_the_mask_fails(run, groups):
    first = groups[0].rollouts[0]
    text = failure(with_adapter(run, CutsTheEnd), groups)
    assert "end of text is trained: off by 1, the last token is not in the mask: row " in text
    assert f"row {first.prompt_id}#0, token {len(first.token_ids) - 1} " in text


def test_what_the_loss_mask_leaves_out_need_not_be_trained(run, groups):
    for group in groups:
        for rollout in group.rollouts:
            rollout.loss_mask = (*rollout.loss_mask[:-1], False)
    build_selftest(run.core, run.run_file).run(groups)


def test_a_packed_layout_that_differs_fails(run, groups):
    text = failure(with_adapter(run, PacksWrong), groups)
    assert "packed = padded: off by 0.1" in text
    assert f"row {groups[0].rollouts[0].prompt_id}#0, token 0 " in text
    assert "engine = trainer" not in text


def test_a_model_that_answers_differently_each_time_fails(run, groups):
    assert "ratio 1: off by " in failure(with_adapter(run, Drifts), groups)


def test_a_loss_that_clips_where_nothing_has_moved_fails(run, groups):
    def loss(inputs):
        return LossOutput(inputs.logprobs_BT, {"clip_fraction": inputs.mask_BT.float()})

    text = failure(replace(build_selftest(run.core, run.run_file), loss=loss), groups)
    assert text.startswith("self-test: clip fraction 0: off by 1, 100.0% of the tokens are clipped")


def test_a_loss_that_measures_no_clipping_is_not_asked(run, groups):
    selftest = replace(build_selftest(run.core, run.run_file), loss=lambda inputs: LossOutput(inputs.logprobs_BT))
    assert "clip fraction 0" not in [finding.name for finding in selftest.run(groups)]


def test_a_loss_sees_reference_and_entropy_as_in_training(run, groups):
    def loss(inputs):
        return LossOutput(inputs.ref_logprobs_BT + inputs.entropy_BT)

    replace(build_selftest(run.core, run.run_file), loss=loss).run(groups)


def test_a_policy_that_is_not_the_reference_fails(tmp_path):
    run = real_run(tmp_path, "kl={use: k3}")
    disturb(run)
    text = failure(build_selftest(run.core, run.run_file), sampled(run))
    assert text.startswith("self-test: policy = reference (KL 0): off by ")
    run.core.close()


def test_half_precision_is_allowed_more_at_one_token_and_less_on_average(run, groups):
    setup = replace(run.core.setup, strategy=None)
    selftest = replace(build_selftest(run.core, run.run_file), strategy=Inexact(run.run_file.strategy.config, setup))
    shift_engine(groups, 0.2)  # a large logit, rounded
    assert "engine = trainer" in failure(build_selftest(run.core, run.run_file), groups)
    selftest.run(groups)
    shift_engine(groups, 1.0)
    assert "The tolerance is 0.03 nats on average and 1 at one token" in failure(selftest, groups)
    shift_engine(groups, -1.2)
    for rollout in [rollout for group in groups for rollout in group.rollouts]:
        rollout.engine_logprobs = tuple(value + 0.04 for value in rollout.engine_logprobs)
    assert "engine = trainer: off by 0.04" in failure(selftest, groups)
