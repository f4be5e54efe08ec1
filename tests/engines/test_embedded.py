"""The engine serves the trainer's module itself, and says what its policy would say."""

import pytest
import torch
from lightrft_core.abilities import Piece
from lightrft_core.data import GenerateRequest, Group, Media, Prompt, Rollout, Sampling
from lightrft_core.errors import UserError
from lightrft_engines.config import TextConfig
from lightrft_engines.embedded import EmbeddedEngine
from lightrft_engines.embedded_config import EmbeddedConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.training.config import SingleConfig
from lightrft_engines.training.single import SingleStrategy

REQUEST = GenerateRequest("p", (5, 9, 2), (1, 2, 3), Sampling(8))


@pytest.fixture
def adapter(kit, qwen_folder):
    return TextAdapter(TextConfig(path=str(qwen_folder)), kit.setup(qwen_folder))


@pytest.fixture
def strategy(kit, qwen_folder, adapter):
    return SingleStrategy(SingleConfig(device="cpu"), kit.setup(qwen_folder, model=adapter))


def engine_for(kit, folder, adapter, strategy=None, **options):
    return EmbeddedEngine(EmbeddedConfig(**options), kit.setup(folder, model=adapter, strategy=strategy))


def test_it_serves_the_strategys_module_in_place(kit, qwen_folder, adapter, strategy):
    engine = engine_for(kit, qwen_folder, adapter, strategy)
    assert engine.module is strategy.policy
    before = engine.generate([REQUEST])
    with torch.no_grad():
        strategy.policy.lm_head.weight.mul_(-1)
    engine.update_weights(lambda: pytest.fail("weights in place are not read"), 7)
    assert engine.version == 7
    assert engine.generate([REQUEST]) != before


def test_alone_it_loads_the_policy_and_takes_weights_over(kit, qwen_folder, adapter, strategy):
    engine = engine_for(kit, qwen_folder, adapter)
    with torch.no_grad():
        for parameter in strategy.policy.parameters():
            parameter.mul_(1.5)
    served = engine_for(kit, qwen_folder, adapter, strategy)
    assert engine.generate([REQUEST]) != served.generate([REQUEST])
    engine.update_weights(strategy.weights, 1)
    assert engine.version == 1
    assert engine.generate([REQUEST]) == served.generate([REQUEST])


def test_its_fingerprint_is_the_strategys_and_that_of_live_parameters(kit, qwen_folder, adapter, strategy):
    engine = engine_for(kit, qwen_folder, adapter, strategy)
    before = dict(strategy.fingerprint())
    assert engine.fingerprint(tuple(before)) == before
    with torch.no_grad():
        for parameter in strategy.policy.parameters():
            parameter.add_(1e-3)
    assert engine.fingerprint(tuple(before)) == strategy.fingerprint() != before


def test_engine_and_trainer_agree_on_logprobs(kit, qwen_folder, adapter, strategy):
    engine = engine_for(kit, qwen_folder, adapter, strategy)
    requests = [GenerateRequest(f"p{size}", tuple(range(1, size)), (1, 2, 3), Sampling(9)) for size in (3, 12, 6)]
    groups = [
        Group(
            Prompt(request.prompt_id, ()),
            request.prompt_token_ids,
            [
                Rollout(request.prompt_id, index, one.token_ids, "", one.logprobs, one.finish_reason, 0, reward=0.0)
                for index, one in enumerate(completions)
            ],
        )
        for request, completions in zip(requests, engine.generate(requests), strict=True)
    ]
    batch = adapter.collate(groups)
    trainer_BT = strategy.logprobs(batch).logprobs_BT
    assert torch.allclose(trainer_BT[batch.mask_BT], batch.engine_logprobs_BT[batch.mask_BT], atol=1e-4)


def test_the_models_own_stop_tokens_end_a_completion(kit, qwen_folder, adapter):
    engine = engine_for(kit, qwen_folder, adapter)
    many = GenerateRequest("p", (5, 9, 2), tuple(range(200)), Sampling(50))
    (group,) = engine.generate([many])
    stopped = [completion for completion in group if completion.finish_reason == "stop"]
    assert stopped
    for completion in stopped:
        assert completion.token_ids[-1] in adapter.stop_token_ids
        assert not set(completion.token_ids[:-1]) & set(adapter.stop_token_ids)


def test_stop_texts_are_read_with_the_adapters_tokenizer(kit, qwen_folder, adapter):
    engine = engine_for(kit, qwen_folder, adapter)
    many = GenerateRequest("p", (5, 9, 2), tuple(range(50)), Sampling(40, stop=("A",)))
    (group,) = engine.generate([many])
    texts = [adapter.decode(completion.token_ids) for completion in group]
    assert any(text.endswith("A") for text in texts)
    assert not any("A" in text[:-1] for text in texts)


def test_images_are_refused_by_name(kit, qwen_folder, adapter):
    engine = engine_for(kit, qwen_folder, adapter)
    with pytest.raises(UserError, match=r"prompt p has images, and the embedded engine reads text\.") as caught:
        engine.generate([GenerateRequest("p", (1,), (0,), Sampling(1), (Media("image", "x.png"),))])
    assert "plugins list" in caught.value.hint


def test_sleeping_waking_and_closing_change_nothing(kit, qwen_folder, adapter):
    engine = engine_for(kit, qwen_folder, adapter, max_batch_size=2, max_prefill_tokens=4)
    before = engine.generate([REQUEST])
    engine.sleep()
    engine.wake()
    engine.reset_cache()
    assert engine.generate([REQUEST]) == before
    engine.close()


def test_a_time_limit_ends_what_is_not_done_with_the_tokens_it_has(kit, qwen_folder, adapter, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("lightrft_engines.decode.session.time.monotonic", lambda: next(clock))
    engine = engine_for(kit, qwen_folder, adapter, time_limit=6.5, max_batch_size=2)
    request = GenerateRequest("p", (5, 9, 2), (1, 2, 3), Sampling(50, stop_token_ids=()))
    (cut,) = engine.generate([request])
    (whole,) = engine_for(kit, qwen_folder, adapter, max_batch_size=2).generate([request])
    assert [completion.finish_reason for completion in cut] == ["abort"] * 3
    assert [len(completion.token_ids) for completion in cut] == [6, 6, 0]
    for short, full in zip(cut, whole, strict=True):
        assert full.token_ids[: len(short.token_ids)] == short.token_ids
        assert full.logprobs[: len(short.logprobs)] == short.logprobs


def test_a_stream_tells_what_the_time_limit_ended(kit, qwen_folder, adapter, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("lightrft_engines.decode.decoder.time.monotonic", lambda: next(clock))
    engine = engine_for(kit, qwen_folder, adapter, time_limit=3.5)
    pieces = [piece for new in engine.stream([REQUEST]) for piece in new]
    assert {piece.place for piece in pieces if piece.finish_reason == "abort"} == {(0, 0), (0, 1), (0, 2)}
    assert len(pieces) == 3 * 4


def test_a_stream_tells_what_generate_returns_token_for_token(kit, qwen_folder, adapter):
    engine = engine_for(kit, qwen_folder, adapter, max_batch_size=2)
    asked = [
        REQUEST,
        GenerateRequest("q", (4, 7), (5,), Sampling(5, temperature=0.0)),
        GenerateRequest("r", (8, 1, 1, 6), (6, 7), Sampling(3)),
    ]
    found: dict[tuple[int, int], list[Piece]] = {}
    for pieces in engine.stream(asked):
        assert not torch.is_inference_mode_enabled()
        for piece in pieces:
            found.setdefault(piece.place, []).append(piece)
    for number, completions in enumerate(engine.generate(asked)):
        for sibling, completion in enumerate(completions):
            own = found[number, sibling]
            assert [token for piece in own for token in piece.token_ids] == list(completion.token_ids)
            assert [p for piece in own for p in piece.logprobs] == pytest.approx(completion.logprobs, abs=1e-5)
            assert [piece.finish_reason for piece in own] == [None] * (len(own) - 1) + [completion.finish_reason]


def test_a_stream_that_is_closed_early_leaves_the_module_in_its_mode(kit, qwen_folder, adapter, strategy):
    engine = engine_for(kit, qwen_folder, adapter, strategy)
    strategy.policy.train()
    stream = engine.stream([REQUEST])
    next(stream)
    assert not strategy.policy.training
    stream.close()
    assert strategy.policy.training


def test_a_stream_refuses_images(kit, qwen_folder, adapter):
    engine = engine_for(kit, qwen_folder, adapter)
    with pytest.raises(UserError, match="reads text"):
        next(engine.stream([GenerateRequest("p", (5,), (1,), Sampling(1), (Media("image", "a.png"),))]))


@pytest.mark.gpu
def test_alone_it_takes_the_gpu_and_the_numbers_that_are_fast_there(kit, qwen_folder, adapter):
    engine = engine_for(kit, qwen_folder, adapter)
    parameter = next(engine.module.parameters())
    assert parameter.device.type == "cuda"
    assert parameter.dtype == torch.bfloat16
    assert len(engine.generate([REQUEST])[0]) == 3
