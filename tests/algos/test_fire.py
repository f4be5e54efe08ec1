"""FIRE: a hot first token, then as usual; by ids, with the log-probabilities it was drawn with."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightrft_algos.samplers.fire import FireConfig, FireSampler
from lightrft_core.data import Completion, Media, Prompt, Sampling
from lightrft_core.protocols import Setup
from lightrft_core.sections import ModelSection, OptimSection, RunSection
from lightrft_core.testing.toys import ToyEngine, ToyEngineConfig, toy_prompts, toy_setup
from lightrft_engines.config import TextConfig
from lightrft_engines.embedded import EmbeddedEngine
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.text import TextAdapter

STOP = 10  # the toy's


class ScriptedEngine:
    """Answers each call from a list of first tokens, then with one continuation for all; keeps what it was asked."""

    version = 5

    def __init__(self, firsts, rest=(1, 2)):
        self.firsts, self.rest, self.calls = iter(firsts), rest, []

    def generate(self, requests):
        self.calls.append(requests)
        if requests[0].sampling.max_new_tokens == 1:
            return [[self.first(next(self.firsts)) for _ in request.seeds] for request in requests]
        logprobs = (-0.2,) * len(self.rest)
        return [[Completion(self.rest, logprobs, "stop") for _ in request.seeds] for request in requests]

    def first(self, token):
        return Completion((token,), (-2.5,), "stop" if token == STOP else "length")


def sampler(tmp_path, **options):
    return FireSampler(FireConfig(**{"group_size": 4, "max_new_tokens": 9, **options}), toy_setup(tmp_path, seed=17))


def test_only_temperature_and_length_differ_between_the_two_calls(tmp_path):
    engine = ScriptedEngine([1, 2, 3, 4])
    options = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "stop": ("\n",)}
    sampler(tmp_path, first_token_temperature=8.0, **options).sample(engine, toy_prompts()[:1], step=1)
    first, rest = engine.calls
    assert {request.sampling for request in first} == {Sampling(1, 8.0, 0.9, 5, 0.1, ("\n",), (STOP,))}
    assert {request.sampling for request in rest} == {Sampling(8, 0.7, 0.9, 5, 0.1, ("\n",), (STOP,))}


def test_continuations_go_on_from_the_ids_and_siblings_that_begin_alike_share_a_request(tmp_path):
    engine = ScriptedEngine([3, 7, 3, 3])
    prompt = Prompt(id="p", messages=({"role": "user", "content": "42"},), media=(Media("image", "cat.png"),))
    (group,) = sampler(tmp_path).sample(engine, [prompt], step=1)
    rest = engine.calls[1]
    assert [(request.prompt_token_ids, len(request.seeds)) for request in rest] == [((4, 2, 3), 3), ((4, 2, 7), 1)]
    assert all(request.media == prompt.media and request.prompt_id == "p" for request in rest)
    assert [rollout.token_ids for rollout in group.rollouts] == [(3, 1, 2), (7, 1, 2), (3, 1, 2), (3, 1, 2)]
    assert [rollout.text for rollout in group.rollouts] == ["312", "712", "312", "312"]
    assert group.prompt_token_ids == (4, 2)


def test_every_draw_has_its_own_seed(tmp_path):
    engine = ScriptedEngine([1] * 8)
    sampler(tmp_path).sample(engine, toy_prompts()[:2], step=1)
    seeds = [seed for call in engine.calls for request in call for seed in request.seeds]
    assert len(seeds) == len(set(seeds)) == 16


def test_a_first_token_that_ends_the_text_is_the_whole_completion(tmp_path):
    engine = ScriptedEngine([STOP, 3, STOP, 3])
    (group,) = sampler(tmp_path).sample(engine, toy_prompts()[:1], step=1)
    assert [rollout.token_ids for rollout in group.rollouts] == [(STOP,), (3, 1, 2), (STOP,), (3, 1, 2)]
    assert [rollout.finish_reason for rollout in group.rollouts] == ["stop"] * 4
    assert sum(len(request.seeds) for request in engine.calls[1]) == 2


def test_where_all_first_tokens_end_the_text_the_engine_is_called_once(tmp_path):
    engine = ScriptedEngine([STOP] * 4)
    sampler(tmp_path).sample(engine, toy_prompts()[:1], step=1)
    assert len(engine.calls) == 1


def test_a_limit_of_one_token_leaves_nothing_to_continue(tmp_path):
    engine = ScriptedEngine([1, 2, 3, 4])
    (group,) = sampler(tmp_path, max_new_tokens=1).sample(engine, toy_prompts()[:1], step=1)
    assert len(engine.calls) == 1
    assert [rollout.finish_reason for rollout in group.rollouts] == ["length"] * 4


def test_log_probabilities_and_mask_are_of_both_parts(tmp_path):
    (group,) = sampler(tmp_path).sample(ScriptedEngine([3] * 4), toy_prompts()[:1], step=1)
    assert {rollout.engine_logprobs for rollout in group.rollouts} == {(-2.5, -0.2, -0.2)}
    assert {rollout.loss_mask for rollout in group.rollouts} == {(True, True, True)}


def test_a_stop_text_that_begins_in_the_first_token_is_cut_behind(tmp_path):
    engine = ScriptedEngine([3, 4, 3, 4], rest=(1, 2))
    (group,) = sampler(tmp_path, stop=("31",)).sample(engine, toy_prompts()[:1], step=1)
    assert [rollout.token_ids for rollout in group.rollouts] == [(3, 1), (4, 1, 2), (3, 1), (4, 1, 2)]
    assert [len(rollout.engine_logprobs) for rollout in group.rollouts] == [2, 3, 2, 3]


def test_the_toys_stop_token_is_found_as_often_as_its_probability_says(tmp_path):
    setup = toy_setup(tmp_path)
    setup.require_strategy().policy.logits["00"] = [0.0] * 10 + [5.0]
    engine = ToyEngine(ToyEngineConfig(), setup)
    config = FireConfig(group_size=4000, max_new_tokens=2, first_token_temperature=2.0)
    (group,) = FireSampler(config, setup).sample(engine, toy_prompts()[:1], step=1)
    chance = math.exp(2.5) / (10 + math.exp(2.5))
    ended = sum(rollout.token_ids == (STOP,) for rollout in group.rollouts)
    assert abs(ended - 4000 * chance) < 4 * math.sqrt(4000 * chance * (1 - chance))
    logprobs = {rollout.engine_logprobs[0] for rollout in group.rollouts if rollout.token_ids[0] == STOP}
    assert [round(value, 9) for value in logprobs] == [round(math.log(chance), 9)]


NUM_DRAWS, TOP_K, HOT, REGULAR = 6000, 4, 10.0, 0.8


def enumerated(module, ids, temperature):
    """Probabilities of the next token: the top 4 at a temperature, from the model's own forward."""
    with torch.no_grad():
        logits = module(torch.tensor([ids])).logits[0, -1].double()
    top = logits.topk(TOP_K)
    return dict(zip(top.indices.tolist(), (top.values / temperature).softmax(-1).tolist(), strict=True))


@pytest.fixture(scope="module")
def drawn(quickstart_model):
    """First two tokens with their log-probabilities, and the distribution of them by enumeration."""
    config = FireConfig(
        group_size=NUM_DRAWS, max_new_tokens=2, temperature=REGULAR, top_k=TOP_K, first_token_temperature=HOT
    )
    section = ModelSection(path=str(quickstart_model))
    setup = Setup(RunSection(), OptimSection(), config, section, Path(), num_optimizer_steps=1)
    setup.model = adapter = TextAdapter(TextConfig(path=str(quickstart_model)), setup)
    engine = EmbeddedEngine(EmbeddedConfig(), setup)
    prompt = Prompt("p", ({"role": "user", "content": "Lin has 3 pens and buys 4. How many pens are there?"},))
    (group,) = FireSampler(config, setup).sample(engine, [prompt], step=1)
    ids = list(group.prompt_token_ids)
    expected = {}
    for token, chance in enumerated(engine.module, ids, HOT).items():
        if token in adapter.stop_token_ids:
            expected[token,] = (chance,)
            continue
        for after, rest in enumerated(engine.module, [*ids, token], REGULAR).items():
            expected[token, after] = (chance, rest)
    return group, expected


def test_two_tokens_pass_a_chi_square_test_against_the_enumerated_distribution(drawn):
    group, expected = drawn
    counts = Counter(rollout.token_ids for rollout in group.rollouts)
    assert set(counts) <= set(expected)
    numbers = {pair: NUM_DRAWS * math.prod(chances) for pair, chances in expected.items()}
    common = [pair for pair, number in numbers.items() if number >= 5]
    chi_square = sum((counts[pair] - numbers[pair]) ** 2 / numbers[pair] for pair in common)
    rare = NUM_DRAWS - sum(numbers[pair] for pair in common)
    if rare >= 5:
        chi_square += (NUM_DRAWS - sum(counts[pair] for pair in common) - rare) ** 2 / rare
    freedom = len(common) - 1 + (rare >= 5)
    assert freedom >= 6
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_reported_log_probabilities_are_those_of_the_two_distributions(drawn):
    group, expected = drawn
    for rollout in group.rollouts[:500]:
        logprobs = [math.log(chance) for chance in expected[rollout.token_ids]]
        assert rollout.engine_logprobs == pytest.approx(logprobs, abs=1e-4)
