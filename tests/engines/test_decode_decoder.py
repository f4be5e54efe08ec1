"""Completions equal those of plain forward passes, whatever else is in the batch."""

import math
from dataclasses import replace

import pytest
import torch
from lightrft_core.data import GenerateRequest, Sampling
from lightrft_core.errors import RunFailed, UserError
from lightrft_engines.attention import register_attention
from lightrft_engines.decode.decoder import Decoder
from lightrft_engines.decode.readers import PaddedReader, SharedReader
from transformers import AutoConfig, AutoModelForCausalLM

FAMILIES = ("qwen2", "llama", "mistral", "gemma2", "gpt2", "qwen3_moe")
SHARING = ("qwen2", "llama", "gpt2", "qwen3_moe")
LENGTHS = (1, 3, 12, 12, 5)


def prompts(lengths=LENGTHS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(1, 97, (length,), generator=generator).tolist()) for length in lengths]


def requests(texts, sampling, group=1):
    """One request a prompt; seeds count up."""
    return [
        GenerateRequest(f"p{index}", ids, tuple(range(index * group, index * group + group)), sampling)
        for index, ids in enumerate(texts)
    ]


def greedy(model, ids, num):
    """What transformers' own greedy search writes."""
    tokens = torch.tensor([ids])
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=num,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tuple(out[0, len(ids) :].tolist())


def plain_logprobs(model, ids, completion, temperature=1.0):
    """Log-probabilities of the completion's tokens from one full forward pass."""
    tokens = torch.tensor([ids + completion.token_ids])
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits[0, len(ids) - 1 : -1]
    logp = (logits.float() / temperature).log_softmax(-1)
    return logp.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]


def flat(groups):
    return [completion for group in groups for completion in group]


def test_which_models_share_prompts_is_found_out(kit):
    longest = {family: Decoder(kit.model(family)).longest_shared for family in FAMILIES}
    whole = dict.fromkeys(("qwen2", "llama", "gpt2", "qwen3_moe"), math.inf)
    assert longest == {**whole, "mistral": 8, "gemma2": 0}


def test_a_model_with_another_attention_runs_with_padding(kit):
    model = kit.model("qwen2")
    model.set_attn_implementation("sdpa")
    assert Decoder(model).longest_shared == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_completions_equal_transformers_token_by_token(kit, family):
    model = kit.model(family)
    texts = prompts()
    completions = flat(Decoder(model).generate(requests(texts, Sampling(24, temperature=0))))
    assert [completion.token_ids for completion in completions] == [greedy(model, ids, 24) for ids in texts]
    assert {completion.finish_reason for completion in completions} == {"length"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_a_plain_forward_pass(kit, family, temperature):
    model = kit.model(family)
    texts = prompts()
    groups = Decoder(model, [0, 1, 2, 3]).generate(requests(texts, Sampling(20, temperature=temperature), group=3))
    for ids, group in zip(texts, groups, strict=True):
        for completion in group:
            expected = plain_logprobs(model, ids, completion, temperature)
            assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["lfm2", "deepseek_v3"])
def test_layers_with_states_and_layers_with_narrow_values_are_served_right(family):
    config = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    config |= {
        "lfm2": {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2},
        "deepseek_v3": {
            "num_key_value_heads": 4,
            "head_dim": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 6,
            "first_k_dense_replace": 2,
        },
    }[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **config), attn_implementation=register_attention()
    ).eval()
    decoder = Decoder(model, [1, 2, 3], max_prefill_tokens=16)
    assert decoder.longest_shared == (0 if family == "lfm2" else math.inf)
    texts = prompts()
    for ids, group in zip(texts, decoder.generate(requests(texts, Sampling(15), group=3)), strict=True):
        for completion in group:
            expected = plain_logprobs(model, ids, completion)
            assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "mistral", "gemma2"])
@pytest.mark.parametrize("max_rows", [1, 3, 8, 256])
def test_tokens_do_not_depend_on_what_else_is_in_the_batch(kit, family, max_rows):
    decoder = Decoder(kit.model(family), [0, 1, 2, 3, 4, 5], max_batch_size=max_rows, max_prefill_tokens=13)
    wanted = requests(prompts(), Sampling(16), group=4)
    together = decoder.generate(wanted)
    alone = [decoder.generate([replace(request, seeds=(seed,))])[0][0] for request in wanted for seed in request.seeds]
    assert [completion.token_ids for completion in flat(together)] == [completion.token_ids for completion in alone]


def test_many_groups_pass_through_a_small_batch_in_their_order(kit):
    model = kit.model("qwen2")
    decoder = Decoder(model, [0, 1, 2, 3, 4, 5, 6, 7], max_batch_size=6)
    wanted = requests(prompts([2, 9, 4, 4, 30, 1, 2, 17, 6, 5, 4, 3]), Sampling(120), group=5)
    groups = decoder.generate(wanted)
    assert [len(group) for group in groups] == [5] * 12
    lengths = {len(completion.token_ids) for completion in flat(groups)}
    assert len(lengths) > 15  # rows really leave and join at different times
    for request, group in zip(wanted, groups, strict=True):
        for completion in group:
            expected = plain_logprobs(model, request.prompt_token_ids, completion)
            assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)


def test_columns_are_freed_and_grown_while_rows_come_and_go(kit):
    model = kit.model("qwen2")
    decoder = Decoder(model, [0, 1, 2], max_batch_size=4)
    wanted = requests(prompts([3] * 20), Sampling(90), group=1)
    wanted[3] = replace(wanted[3], sampling=Sampling(200))
    for request, (completion,) in zip(wanted, decoder.generate(wanted), strict=True):
        expected = plain_logprobs(model, request.prompt_token_ids, completion)
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)


def test_a_prompt_is_read_once_for_all_its_siblings(kit):
    model = kit.model("qwen2")
    decoder = Decoder(model, max_batch_size=2)
    fed = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].numel()))
    text = prompts([11])[0]
    decoder.generate(
        [GenerateRequest("p", text, (1, 2, 3), Sampling(2)), GenerateRequest("q", text, (4, 5), Sampling(2))]
    )
    assert sorted(fed, reverse=True)[0] == 11
    assert sum(fed) == 11 + 5


def test_prompts_are_read_in_passes_of_bounded_size(kit):
    model = kit.model("qwen2")
    decoder = Decoder(model, max_prefill_tokens=10)
    fed = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].numel()))
    decoder.generate(requests(prompts([4, 4, 25, 4]), Sampling(1)))
    assert fed == [25, 8, 4]


def test_only_last_positions_go_through_the_head(kit):
    model = kit.model("qwen2")
    decoder = Decoder(model)
    fed = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].shape[:-1].numel()))
    decoder.generate(requests(prompts([4, 9]), Sampling(2), group=3))
    assert fed == [2, 6]


def test_rows_that_are_done_leave_the_batch_at_once(kit):
    model = kit.model("qwen2")
    decoder = Decoder(model, range(40))
    fed = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].numel()))
    lengths = [len(completion.token_ids) for completion in flat(decoder.generate(requests(prompts(), Sampling(30), 6)))]
    assert sum(fed) == sum(LENGTHS) + sum(length - 1 for length in lengths)


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_a_single_token_completion_and_a_single_token_prompt(kit, family):
    model = kit.model(family)
    ((completion,),) = Decoder(model).generate([GenerateRequest("p", (7,), (3,), Sampling(1, temperature=0))])
    assert completion.token_ids == greedy(model, (7,), 1)
    assert completion.finish_reason == "length"


def test_an_end_token_may_come_first(kit):
    model = kit.model("qwen2")
    ids = prompts([6])[0]
    first = greedy(model, ids, 1)[0]
    ((completion,),) = Decoder(model, [first]).generate([GenerateRequest("p", ids, (0,), Sampling(5, temperature=0))])
    assert completion.token_ids == (first,)
    assert completion.finish_reason == "stop"


def test_an_end_token_at_the_limit_counts_as_stop(kit):
    model = kit.model("qwen2")
    ids = prompts([6])[0]
    tokens = greedy(model, ids, 4)
    last = next(index for index in range(4) if tokens[index] not in tokens[:index] and index)
    sampling = Sampling(last + 1, temperature=0, stop_token_ids=(tokens[last],))
    ((completion,),) = Decoder(model).generate([GenerateRequest("p", ids, (0,), sampling)])
    assert (completion.token_ids, completion.finish_reason) == (tokens[: last + 1], "stop")


def test_requests_may_differ_in_sampling(kit):
    model = kit.model("qwen2")
    texts = prompts([4, 4, 6])
    kinds = (Sampling(9, temperature=0), Sampling(5), Sampling(7, temperature=0.5, top_k=3))
    mixed = [GenerateRequest(f"p{i}", ids, (i,), kind) for i, (ids, kind) in enumerate(zip(texts, kinds, strict=True))]
    together = flat(Decoder(model).generate(mixed))
    alone = [Decoder(model).generate([request])[0][0] for request in mixed]
    assert [completion.token_ids for completion in together] == [completion.token_ids for completion in alone]
    assert [len(completion.token_ids) for completion in together] == [9, 5, 7]


def test_no_requests_give_no_completions(kit):
    assert Decoder(kit.model("qwen2")).generate([]) == []


def test_seeds_decide_and_equal_seeds_agree(kit):
    decoder = Decoder(kit.model("qwen2"))
    text = prompts([5])[0]
    ((a, b, c),) = decoder.generate([GenerateRequest("p", text, (11, 12, 11), Sampling(20))])
    assert a.token_ids == c.token_ids != b.token_ids


def test_first_tokens_follow_the_models_distribution(kit):
    model = kit.model("qwen2")
    text = prompts([5])[0]
    (group,) = Decoder(model, max_batch_size=4000).generate(
        [GenerateRequest("p", text, tuple(range(4000)), Sampling(1))]
    )
    with torch.no_grad():
        expected = model(torch.tensor([text])).logits[0, -1].softmax(-1) * 4000
    counts = torch.bincount(torch.tensor([completion.token_ids[0] for completion in group]), minlength=97)
    common = expected >= 5
    chi_square = ((counts - expected).square() / expected)[common].sum()
    freedom = int(common.sum())
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("was_training", [True, False])
def test_the_module_keeps_its_mode_also_when_generation_fails(kit, was_training):
    model = kit.model("qwen2").train(was_training)
    decoder = Decoder(model)
    decoder.generate(requests(prompts(), Sampling(2)))
    assert model.training is was_training
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    with pytest.raises(RunFailed):
        decoder.generate(requests(prompts(), Sampling(2)))
    assert model.training is was_training


def test_the_module_still_trains_after_generation(kit):
    model = kit.model("qwen2").train()
    Decoder(model).generate(requests(prompts(), Sampling(4)))
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_logits_that_are_not_finite_name_the_prompt(kit):
    model = kit.model("qwen2")
    decoder = Decoder(model)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = math.nan
    with pytest.raises(RunFailed, match=r"^prompt p1: the model's logits are not finite after 0 tokens"):
        decoder.generate(requests([(1, 2), (5, 2), (3, 3)], Sampling(2, temperature=0)))


def test_an_empty_prompt_is_refused_by_name(kit):
    with pytest.raises(UserError, match="prompt p0: the prompt has no tokens"):
        Decoder(kit.model("qwen2")).generate(requests([()], Sampling(2)))


def test_more_tokens_than_learned_positions_are_refused(kit):
    decoder = Decoder(kit.model("gpt2"))
    with pytest.raises(UserError, match="6 tokens and 252 new ones are more than the model's 256 positions") as caught:
        decoder.generate(requests(prompts([6]), Sampling(252)))
    assert "max_new_tokens" in caught.value.hint
    assert Decoder(kit.model("qwen2")).max_positions == math.inf


def test_sequences_within_the_window_share_their_prompt(kit):
    model = kit.model("mistral")
    decoder = Decoder(model)
    kinds = []
    for num in (3, 4):
        rows = decoder._rows(requests(prompts([5]), Sampling(num)))
        kinds.append(type(decoder._reader(rows, 1)))
    assert kinds == [SharedReader, PaddedReader]
    ids = prompts([5])[0]
    ((completion,),) = decoder.generate(requests([ids], Sampling(3, temperature=0)))
    assert completion.token_ids == greedy(model, ids, 3)


def test_bfloat16_models_report_logprobs_in_full_precision(kit):
    model = kit.model("qwen2", dtype=torch.bfloat16)
    decoder = Decoder(model)
    assert decoder.longest_shared == math.inf
    texts = prompts()
    for ids, (completion,) in zip(texts, decoder.generate(requests(texts, Sampling(12))), strict=True):
        expected = plain_logprobs(model, ids, completion)
        assert (torch.tensor(completion.logprobs) - expected).abs().mean() < 0.1


def test_bfloat16_greedy_completions_equal_transformers_but_for_ties(kit):
    model = kit.model("qwen2", dtype=torch.bfloat16)
    texts = prompts([1, 3, 12, 12, 5, 20, 7, 9])
    completions = flat(Decoder(model).generate(requests(texts, Sampling(24, temperature=0))))
    num_same = 0
    for ids, completion in zip(texts, completions, strict=True):
        expected, written = greedy(model, ids, 24), completion.token_ids
        fork = next((place for place in range(24) if expected[place] != written[place]), None)
        num_same += fork is None
        if fork is not None:
            with torch.no_grad():
                logits = model(torch.tensor([ids + written[:fork]]), use_cache=False).logits[0, -1].float()
            gap = abs(float(logits[expected[fork]] - logits[written[fork]]))
            assert gap <= 2 * 2**-7 * float(logits.abs().max())
    assert num_same >= len(texts) // 2
