import pytest
from lightrft_core.resolve import CORE_SECTIONS, SECTIONS, keys_elsewhere
from lightrft_core.sections import LossSection, SamplerSection
from lightrft_core.suggest import did_you_mean, distance, nearest

SAMPLER = list(SamplerSection.model_fields)
OPTIM = list(CORE_SECTIONS["optim"].model_fields)
RUN = list(CORE_SECTIONS["run"].model_fields)
LOSS = [*LossSection.model_fields, "clip_low", "clip_high", "dual_clip"]
SIBLING_TYPOS = [  # dropped, doubled, swapped, wrong letters; hyphens, case, plurals, order, one word of several
    ("grup_size", SAMPLER, "group_size"),
    ("groupsize", SAMPLER, "group_size"),
    ("group-size", SAMPLER, "group_size"),
    ("GroupSize", SAMPLER, "group_size"),
    ("size_group", SAMPLER, "group_size"),
    ("group_sizes", SAMPLER, "group_size"),
    ("group", SAMPLER, "group_size"),
    ("temprature", SAMPLER, "temperature"),
    ("temperatur", SAMPLER, "temperature"),
    ("tempreature", SAMPLER, "temperature"),
    ("temp", SAMPLER, "temperature"),
    ("topp", SAMPLER, "top_p"),
    ("top-k", SAMPLER, "top_k"),
    ("topk", SAMPLER, "top_k"),
    ("minp", SAMPLER, "min_p"),
    ("max_new_token", SAMPLER, "max_new_tokens"),
    ("max_tokens", SAMPLER, "max_new_tokens"),
    ("new_max_tokens", SAMPLER, "max_new_tokens"),
    ("prompt_per_step", SAMPLER, "prompts_per_step"),
    ("prompts_per_stpe", SAMPLER, "prompts_per_step"),
    ("stops", SAMPLER, "stop"),
    ("max_refil_rounds", SAMPLER, "max_refill_rounds"),
    ("clip_hihg", LOSS, "clip_high"),
    ("clip_hi", LOSS, "clip_high"),
    ("cliphigh", LOSS, "clip_high"),
    ("cliplow", LOSS, "clip_low"),
    ("clip_lwo", LOSS, "clip_low"),
    ("high_clip", LOSS, "clip_high"),
    ("dualclip", LOSS, "dual_clip"),
    ("agregation", LOSS, "aggregation"),
    ("aggregaton", LOSS, "aggregation"),
    ("entropy_coeff", LOSS, "entropy_coef"),
    ("entropy", LOSS, "entropy_coef"),
    ("Lr", OPTIM, "lr"),
    ("warmup_step", OPTIM, "warmup_steps"),
    ("warm_up_ratio", OPTIM, "warmup_ratio"),
    ("shedule", OPTIM, "schedule"),
    ("scheduler", OPTIM, "schedule"),
    ("beta", OPTIM, "betas"),
    ("weight_deacy", OPTIM, "weight_decay"),
    ("weightdecay", OPTIM, "weight_decay"),
    ("max_grad_nrom", OPTIM, "max_grad_norm"),
    ("grad_norm", OPTIM, "max_grad_norm"),
    ("batchsize", OPTIM, "batch_size"),
    ("batch_szie", OPTIM, "batch_size"),
    ("epoch", OPTIM, "epochs"),
    ("min_lr", OPTIM, "min_lr_ratio"),
    ("sed", RUN, "seed"),
    ("step", RUN, "steps"),
    ("episode", RUN, "episodes"),
    ("maxtime", RUN, "max_time"),
    ("max_tiem", RUN, "max_time"),
    ("nmae", RUN, "name"),
    ("directory", RUN, "dir"),
]
SECTION_TYPOS = [
    ("smapler", "sampler"),
    ("samplers", "sampler"),
    ("optimizer", "optim"),
    ("optm", "optim"),
    ("reward", "rewards"),
    ("filter", "filters"),
    ("losss", "loss"),
    ("advantages", "advantage"),
    ("stratgy", "strategy"),
    ("tracker", "trackers"),
    ("checkpoints", "checkpoint"),
    ("evaluations", "evaluation"),
    ("eval", "evaluation"),
    ("modle", "model"),
    ("self_test", "selftest"),
    ("algorthm", "algorithm"),
    ("KL", "kl"),
]
WRONG_SECTION = [
    ("lr", LOSS, "optim"),
    ("temperature", OPTIM, "sampler"),
    ("seed", OPTIM, "run"),
    ("group_size", OPTIM, "sampler"),
    ("max_prompt_tokens", SAMPLER, "task"),
    ("zzzz_of_nothing_known", RUN, None),
    ("batch-size", SAMPLER, "optim"),
    ("target", LOSS, "kl"),
    ("keep", RUN, "checkpoint"),
]


def test_at_least_95_percent_of_typos_name_the_right_key_first():
    cases = [(word, names, right) for word, names, right in SIBLING_TYPOS]
    cases += [(word, list(SECTIONS), right) for word, right in SECTION_TYPOS]
    wrong = [
        (word, right, said)
        for word, names, right in cases
        if f"Did you mean {right!r}?" != (said := did_you_mean(word, names, keys_elsewhere()))
    ]
    assert len(cases) >= 40
    assert len(wrong) <= 0.05 * len(cases), wrong


@pytest.mark.parametrize(("word", "siblings", "section"), WRONG_SECTION)
def test_a_key_of_another_section_is_sent_there(word, siblings, section):
    said = did_you_mean(word, siblings, keys_elsewhere())
    if section is None:
        assert said.startswith("There is: name, ")
    else:
        assert "belongs in section" in said and section in said


def test_nothing_like_it_lists_what_there_is():
    assert did_you_mean("zzzzzz", ["lr", "betas"]) == "There is: lr, betas."


def test_nothing_at_all_says_nothing():
    assert did_you_mean("x", []) == ""


def test_a_long_list_is_shortened():
    assert did_you_mean("zzzzzzzz", [f"key{n}" for n in range(20)]).endswith("key11, ....")


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [("abc", "abc", 0), ("abc", "acb", 1), ("abc", "ab", 1), ("", "ab", 2), ("ab", "xy", 2)],
)
def test_distance_counts_edits_and_swaps(first, second, edits):
    assert distance(first, second) == distance(second, first) == edits


def test_nearest_ranks_and_limits():
    assert nearest("clip_hig", ["clip_low", "clip_high", "dual_clip"])[0] == "clip_high"
    assert nearest("qqqq", ["clip_low"]) == []
