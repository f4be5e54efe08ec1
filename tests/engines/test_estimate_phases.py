"""Whole estimates: what each setting of a run file changes, and what is advised."""

import json

import pytest
from lightrft_core.errors import UserError
from lightrft_engines.estimate.advice import advise
from lightrft_engines.estimate.question import Question
from lightrft_engines.estimate.report import Unit, as_data, facts, verdict
from lightrft_engines.estimate.target import Target

RUN = """
algorithm: grpo
kl: null
model: {path: MODEL}
task: {path: ./prompts.jsonl}
rewards: [exact]
sampler: {group_size: 4, prompts_per_step: 8, max_new_tokens: 24}
optim: {batch_size: 16}
trackers: [jsonl]
"""
CPU, GPUS = Target("cpu", 2), Target("cuda", 2)


@pytest.fixture(scope="module")
def run_path(kit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    kit.folder(folder / "model", num_hidden_layers=4, hidden_size=64, intermediate_size=96)
    (folder / "run.yaml").write_text(RUN.replace("MODEL", "./model"))
    rows = [{"prompt": "a" * number, "ground_truth": "1"} for number in range(5, 21)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def question(run_path):
    return Question.read([str(run_path)], [])


def phases(question, target, *sets):
    return question.answer(target, sets).phases


def test_phases_stand_in_the_order_of_a_step(question):
    assert list(phases(question, CPU)) == ["generate", "prepare", "train", "update", "sync"]
    assert all(memory.total > 0 for memory in phases(question, CPU).values())


def test_the_longest_prompt_is_measured_on_the_users_own_data(question, kit):
    found = question.answer(CPU)
    words = kit.tokenizer().apply_chat_template([{"role": "user", "content": "a" * 20}], add_generation_prompt=True)
    longest = len(words["input_ids"])
    assert found.case.lengths.prompt == longest


def test_in_place_nothing_is_copied_and_shards_need_a_copy(question):
    parameters = question.answer(CPU).census.count()
    assert phases(question, CPU)["sync"].engine == 0
    assert phases(question, CPU, "strategy.use=fsdp2")["sync"].engine == 4 * parameters


def test_a_reference_is_as_many_weights_again(question):
    alone, beside = (phases(question, GPUS, *sets)["train"].weights for sets in ((), ("kl=k3",)))
    assert beside == 2 * alone


def test_a_reference_that_sleeps_is_on_the_cpu_until_it_computes(question):
    found = phases(question, GPUS, "kl=k3", "strategy.reference_offload=true")
    alone = phases(question, GPUS)
    assert found["train"].weights == alone["train"].weights
    assert found["train"].host == alone["train"].weights
    assert found["prepare"].weights == 2 * alone["train"].weights


def test_optimizer_state_that_rests_is_on_the_gpu_in_training_alone(question):
    found, alone = phases(question, GPUS, "strategy.optimizer_offload=true"), phases(question, GPUS)
    for phase in ("generate", "prepare", "sync"):
        assert found[phase].optimizer == 0
        assert found[phase].host == alone[phase].optimizer
    for phase in ("train", "update"):
        assert found[phase] == alone[phase]


def test_a_critic_has_weights_and_an_optimizer_of_its_own(question):
    alone, beside = phases(question, CPU), phases(question, CPU, "advantage=gae")
    assert 1.7 * alone["train"].optimizer < beside["train"].optimizer < 2 * alone["train"].optimizer  # it has no head
    assert beside["update"].gradients > 1.7 * alone["update"].gradients


def test_an_average_takes_4_bytes_of_each_weight(question):
    alone, beside = (phases(question, CPU, *sets)["sync"].weights for sets in ((), ("strategy.ema=true",)))
    assert beside - alone == 4 * question.answer(CPU).census.count()


def test_held_out_prompts_are_a_phase_of_their_own(question, run_path):
    found = phases(question, CPU, f"evaluation.task.path={run_path.parent / 'prompts.jsonl'}")
    assert "evaluate" not in found  # its lengths were not measured: a question is about one run's data
    asked = Question.read([str(run_path)], [f"evaluation.task.path={run_path.parent / 'prompts.jsonl'}"])
    assert asked.answer(CPU).phases["evaluate"].cache > 0


def test_adapters_learn_alone_need_no_reference_and_are_served_merged(question):
    whole, lora = (phases(question, GPUS, "kl=k3", *sets) for sets in ((), ("model.lora={rank: 2}",)))
    assert lora["train"].optimizer < 0.3 * whole["train"].optimizer
    assert lora["train"].weights < 0.7 * whole["train"].weights
    assert lora["train"].engine > 0


def test_more_micro_batches_take_less_at_one_time(question):
    large, small = (question.answer(CPU, (f"strategy.max_tokens_per_micro_batch={tokens}",)) for tokens in (500, 130))
    assert small.training.num_passes > large.training.num_passes
    assert small.training.tokens <= 130
    assert small.phases["train"].activations < large.phases["train"].activations


def test_ranks_that_split_layers_have_a_part_of_the_weights(question):
    whole, split = (
        question.answer(GPUS, ("strategy.use=fsdp2", *sets)) for sets in ((), ("strategy.tensor_parallel=2",))
    )
    assert 0.45 * whole.census.count() < split.census.count() < 0.6 * whole.census.count()
    assert split.phases["train"].activations < whole.phases["train"].activations * 2  # of twice the rows


def test_what_a_machine_cannot_share_is_refused_as_train_does(question):
    with pytest.raises(UserError, match="8 prompts cannot be shared evenly by 3 ranks"):
        question.answer(Target("cpu", 3))


def test_a_verdict_leaves_a_tenth_free(question):
    peak = question.answer(GPUS).peak.total
    assert question.answer(Target("cuda", 2)).fits is None
    assert question.answer(Target("cuda", 2, round(peak / 0.89))).fits is True
    tight = question.answer(Target("cuda", 2, round(peak / 0.91)))
    assert tight.fits is False
    assert "does not fit into" in "\n".join(verdict(tight, Unit.of(10**9)))


def test_advice_is_what_the_changed_run_would_need(question):
    before = question.answer(GPUS)
    options = advise(question, before).options
    assert [option.saved for option in options] == sorted((option.saved for option in options), reverse=True)
    changes = [option.change.sets for option in options]
    assert ("strategy.checkpointing=true",) in changes
    for option in options:
        after = question.answer(option.change.target, option.change.sets)
        assert before.peak.total - after.peak.total == option.saved > 0


def test_changes_that_are_not_enough_alone_are_tried_together(question):
    enough = question.answer(GPUS, ("strategy.checkpointing=true", "strategy.use=fsdp2")).peak.total
    before = question.answer(Target("cuda", 2, round(enough / 0.9)))
    advice = advise(question, before)
    assert advice.together is None or advice.together.estimate.fits
    assert advice.together is not None or any(option.estimate.fits for option in advice.options)


def test_facts_tell_parameters_batch_and_tokens(question):
    told = dict(facts(question.answer(CPU)))
    assert told["batch"].startswith("8 prompts x 4 = 32 samples / 16 per update = 2 updates")
    assert "2 processes on CPUs, single, float32" in told["ranks"]
    assert "4 prompts, 16 rows; 8 rows in an update" in told["per rank"]
    data = as_data(question.answer(CPU), None)
    assert data["batch"]["tokens_per_step"] == 8 * (data["batch"]["prompt_tokens"] + 4 * 24)
    assert f"at most {data['batch']['tokens_per_step']:,} in a step" in told["tokens"]


FROZEN = "model.freeze=[model.embed_tokens, model.layers.0, model.layers.1]"


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("strategy.use=ddp", "strategy.precision=bf16"),
        ("strategy.use=fsdp2",),
        ("strategy.use=fsdp2", "strategy.tensor_parallel=2"),
        ("strategy.use=deepspeed", "strategy.stage=1"),
        ("strategy.use=deepspeed", "strategy.stage=3"),
    ],
)
def test_frozen_weights_have_neither_gradients_nor_moments(question, sets):
    whole, frozen = (question.answer(GPUS, (*sets, "kl=k3", *more)) for more in ((), (FROZEN,)))
    num, learning = frozen.census.count(), sum(weight.num for weight in frozen.census.learning)
    assert num == whole.census.count()
    share = learning / num
    assert 0.3 < share < 0.7
    before, after = whole.phases["update"], frozen.phases["update"]
    assert after.optimizer == pytest.approx(share * before.optimizer, rel=0.02)
    assert after.gradients == pytest.approx(share * before.gradients, rel=0.02)
    assert frozen.phases["train"].activations <= whole.phases["train"].activations


def test_a_frozen_policy_is_served_in_place_and_has_a_reference_beside_it(question):
    whole, frozen = (phases(question, CPU, "kl=k3", *more) for more in ((), (FROZEN,)))
    assert frozen["sync"].engine == whole["sync"].engine == 0
    assert frozen["prepare"].weights == whole["prepare"].weights


def test_a_critic_of_a_frozen_policy_learns_all_of_its_own(question):
    found = [phases(question, CPU, *sets)["train"].optimizer for sets in (("advantage=gae",), ())]
    frozen = [phases(question, CPU, FROZEN, *sets)["train"].optimizer for sets in (("advantage=gae",), ())]
    assert found[0] - found[1] == frozen[0] - frozen[1] > 0


def test_where_the_output_alone_learns_no_pass_goes_back_through_blocks(question):
    whole, frozen = (question.answer(CPU, more) for more in ((), ("model.freeze=model",)))
    assert [moment.place for moment in frozen.training.course.moments] == ["head", "rest"]
    assert frozen.phases["train"].activations < 0.7 * whole.phases["train"].activations
