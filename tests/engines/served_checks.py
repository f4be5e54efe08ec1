"""What holds for every engine with a process of its own, colocated and in a server: sampling, weights, their proof.

Modules of tests import these, with a fixture `trial` of their engine.
"""

import pytest
import torch
from lightrft_core.data import Media
from lightrft_core.errors import RunFailed, UserError

from tests.engines.served_trials import same


def test_engine_and_trainer_agree_on_logprobs(trial):
    trial.engine.update_weights(trial.strategy.weights, 1)
    assert trial.gap() < 1e-4


def test_greedy_takes_the_likeliest_token_of_the_trainers_model(trial):
    trial.engine.update_weights(trial.strategy.weights, 1)
    (request,) = trial.requests(9, num=1, temperature=0.0)
    ((completion,),) = trial.engine.generate([request])
    ids = torch.tensor([[*request.prompt_token_ids, *completion.token_ids]])
    with torch.no_grad():
        scores_TV = trial.strategy.policy(ids).logits[0, len(request.prompt_token_ids) - 1 : -1].float()
    assert scores_TV.argmax(-1).tolist() == list(completion.token_ids)
    expected = scores_TV.log_softmax(-1).amax(-1).tolist()
    assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_logprobs_are_of_the_truncated_distribution(trial):
    for completion, *_ in trial.engine.generate(trial.requests(top_k=1)):
        assert completion.logprobs == pytest.approx([0.0] * len(completion.logprobs), abs=1e-6)
    (pairs,) = trial.engine.generate(trial.requests(5, num=40, max_new_tokens=1, top_k=2, temperature=0.7))
    chances = {one.token_ids[0]: one.logprobs[0] for one in pairs}
    assert len(chances) == 2
    assert sum(torch.tensor(list(chances.values())).exp()) == pytest.approx(1.0, abs=1e-5)


def test_stop_texts_end_a_completion_where_the_embedded_engine_ends_it(trial):
    from lightrft_engines.decode.rows import StopTexts

    decode = trial.setup.model.decode
    (free,) = trial.engine.generate(trial.requests(6, num=20, max_new_tokens=30))
    (ended,) = trial.engine.generate(trial.requests(6, num=20, max_new_tokens=30, stop=("A", "cd")))
    stops = StopTexts(("A", "cd"), decode)
    for whole, cut in zip(free, ended, strict=True):
        ends = [num for num in range(1, len(whole.token_ids) + 1) if stops.end(whole.token_ids[:num])]
        expected = whole.token_ids[: ends[0]] if ends else whole.token_ids
        assert cut.token_ids == expected
        assert len(cut.logprobs) == len(cut.token_ids)
        assert cut.finish_reason == ("stop" if ends else whole.finish_reason)
    assert any(one.token_ids != other.token_ids for one, other in zip(free, ended, strict=True))


def test_the_models_own_end_token_is_part_of_the_completion(trial):
    (group,) = trial.engine.generate(trial.requests(3, num=200, max_new_tokens=50))
    ends = set(trial.setup.model.stop_token_ids)
    stopped = [one for one in group if one.finish_reason == "stop"]
    assert stopped
    assert all(one.token_ids[-1] in ends and not ends & set(one.token_ids[:-1]) for one in stopped)


def test_every_parameter_is_served_as_trained(trial):
    trial.change(0.9)
    assert len(trial.wrong()) == len(trial.names())
    trial.engine.update_weights(trial.strategy.weights, 5)
    assert trial.wrong() == []
    assert trial.engine.version == 5


def test_training_does_not_reach_the_engine_before_a_sync(trial):
    trial.engine.update_weights(trial.strategy.weights, 1)
    before = trial.engine.generate(trial.requests())
    trial.change(1.1)
    assert same(trial.engine.generate(trial.requests()), before)
    trial.engine.update_weights(trial.strategy.weights, 2)
    assert not same(trial.engine.generate(trial.requests()), before)
    assert trial.gap() < 1e-4


def test_a_corrupted_sync_is_caught_by_the_parameters_name(trial):
    name = "model.layers.1.self_attn.k_proj.weight"

    def corrupted():
        for known, tensor in trial.strategy.weights():
            yield known, (tensor.roll(1, 0) if known == name else tensor)

    trial.engine.update_weights(corrupted, 1)
    assert trial.wrong() == [name]
    trial.engine.update_weights(trial.strategy.weights, 2)
    assert trial.wrong() == []


def test_a_sync_that_lacks_a_parameter_is_refused(trial):
    with pytest.raises(
        RunFailed, match=f"{trial.label} serves parameters that the trainer did not send, model.norm.weight"
    ):
        trial.engine.update_weights(
            lambda: (pair for pair in trial.strategy.weights() if pair[0] != "model.norm.weight"), 1
        )
    trial.engine.update_weights(trial.strategy.weights, 2)


def test_a_stale_prefix_cache_is_seen_in_the_logprobs(trial):
    requests = trial.requests(150, 220, max_new_tokens=3)  # longer than a block of the cache: 128 tokens on CPUs
    trial.engine.update_weights(trial.strategy.weights, 1)
    assert trial.gap(requests) < 1e-4
    trial.change(1.15)
    backend = trial.engine._backend  # the public way resets the caches
    backend.load(trial.strategy.weights)
    assert trial.wrong() == []
    assert trial.gap(requests) > 1e-3
    trial.engine.reset_cache()
    assert trial.gap(requests) < 1e-4


def test_a_parameter_that_is_not_served_is_named(trial):
    with pytest.raises(
        RunFailed, match=f"{trial.label} serves no parameter that is known to be the trainer's model.other"
    ):
        trial.engine.fingerprint(["model.other"])


def test_a_prompt_beyond_the_context_says_what_to_lower(trial):
    with pytest.raises(
        UserError, match="250 tokens and 12 new ones are more than the engine's context of 25"
    ) as caught:
        trial.engine.generate(trial.requests(250))
    assert caught.value.where == "prompt p250"
    assert "sampler.max_new_tokens" in caught.value.hint and "engine.max_model_len" in caught.value.hint


def test_images_are_refused_where_the_adapter_prepares_none(trial):
    (request,) = trial.requests(3)
    with pytest.raises(UserError, match="prompt p3 has images"):
        trial.engine.generate([type(request)("p3", (1,), (0,), request.sampling, (Media("image", "x.png"),))])


def test_sleeping_and_waking_change_nothing_where_there_is_no_memory_to_give_back(trial):
    before = trial.engine.generate(trial.requests())
    trial.engine.sleep()
    trial.engine.wake()
    assert same(trial.engine.generate(trial.requests()), before)


@pytest.mark.parametrize(
    ("options", "where", "said"),
    [
        ({"sleep": True}, "engine.sleep", "on a CPU there is no"),
        ({"quantization": "fp8"}, "engine.quantization", "rounds weights to fp8 on GPUs only"),
        ({"memory_fraction": 0.5}, "engine.memory_fraction", "engine.kv_cache_gb works on CPUs"),
        ({"mode": "server", "sync": "ipc"}, "engine.sync", "ipc moves weights between GPUs"),
        ({"mode": "server", "sync": "nccl"}, "engine.sync", "nccl moves weights between GPUs"),
        ({"dtype": "bfloat16"}, "engine.dtype", "the trainer's weights are float32"),
        ({"tensor_parallel": 2}, "engine.tensor_parallel", "there are 1 ranks"),
    ],
)
def test_an_option_without_effect_here_is_refused(start, options, where, said):
    with pytest.raises(UserError, match=said) as caught:
        start(**options)
    assert caught.value.where == where


def test_a_server_listens_on_this_machine_only(server):
    client = server.engine._backend._client
    assert client.is_loopback and client.url.startswith("http://127.0.0.1:")


def test_an_attached_engine_syncs_and_proves_too(server, start):
    attached = start(mode="server", url=server.engine._backend._client.url)
    attached.change(1.05)
    assert attached.wrong() == attached.names()
    attached.engine.update_weights(attached.strategy.weights, 3)
    assert attached.wrong() == []
    assert attached.gap(attached.requests(5, num=2)) < 1e-4
    server.engine.update_weights(server.strategy.weights, 1)
    assert server.wrong() == []


def test_what_is_no_server_does_not_answer(start):
    with pytest.raises(RunFailed, match="Connection refused"):
        start(mode="server", url="http://127.0.0.1:9")


def test_a_stream_tells_tokens_while_they_are_written_and_may_be_left(colocated):
    engine, asked = colocated.engine, colocated.requests(3, 40, max_new_tokens=40)
    expected = engine.generate(asked)
    left = engine.stream(asked)
    first = next(left)
    assert first and all(0 < len(piece.token_ids) < 10 for piece in first)
    turns = list(engine.stream(asked))  # beside the open one
    assert len(turns) > 10
    left.close()
    told = [[[], None] for _ in range(6)]
    for piece in (piece for turn in turns for piece in turn):
        own = told[3 * piece.place[0] + piece.place[1]]
        own[0] += piece.token_ids
        own[1] = piece.finish_reason
    assert told == [[list(one.token_ids), one.finish_reason] for group in expected for one in group]
    assert same(engine.generate(asked), expected)


def test_a_request_that_is_ended_late_is_no_other_one(server, monkeypatch):
    """SGLang ends every request whose name begins so."""
    names, dialect = [], server.engine._backend._dialect
    write = type(dialect).write

    def written(self, client, sibling, name, timeout):
        names.append(name)
        write(self, client, sibling, name, timeout)

    monkeypatch.setattr(type(dialect), "write", written)
    for _ in range(2):
        server.engine.generate(server.requests(3, num=12, max_new_tokens=1))
    assert len(names) == 24
    assert not [(one, other) for one in names for other in names if one is not other and other.startswith(one)]
