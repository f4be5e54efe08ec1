"""An engine: completions that the seeds alone decide, with the log-probabilities they were drawn with."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

from lightrft_core.abilities import Piece, StreamingEngine
from lightrft_core.data import Completion, GenerateRequest, Sampling
from lightrft_core.errors import UserError
from lightrft_core.testing.engine_case import engine_of, is_frozen, requests
from lightrft_core.testing.engine_trainer_checks import (
    a_step_of_the_trainer_is_served,
    greedy_takes_the_trainers_likeliest_token,
    logprobs_are_the_trainers,
)
from lightrft_core.testing.results import Case, Check, require

LOGPROB_TOLERANCE = 1e-4


def every_seed_gets_a_completion(case: Case) -> None:
    """As many as seeds, in order; lengths agree; log-probabilities are finite and not above 0."""
    engine = engine_of(case)
    asked = requests(case.parts["setup"])
    answers = engine.generate(asked)
    require(len(answers) == len(asked), f"{len(answers)} answers to {len(asked)} requests")
    for request, completions in zip(asked, answers, strict=True):
        num, wanted = len(completions), len(request.seeds)
        require(num == wanted, f"{num} completions for {wanted} seeds")
        for completion in completions:
            _check_completion(completion, request.sampling)


def _check_completion(completion: Completion, sampling: Sampling) -> None:
    token_ids, stops = completion.token_ids, set(sampling.stop_token_ids)
    require(0 < len(token_ids) <= sampling.max_new_tokens, f"{len(token_ids)} tokens, limit {sampling.max_new_tokens}")
    require(len(completion.logprobs) == len(token_ids), "not one log-probability per token")
    finite = all(math.isfinite(value) and value <= 1e-6 for value in completion.logprobs)
    require(finite, f"a log-probability is positive or not finite: {completion.logprobs}")
    require(not stops & set(token_ids[:-1]), "generation went on after a stop token")
    ended = token_ids[-1] in stops
    if completion.finish_reason == "length":
        require(len(token_ids) == sampling.max_new_tokens, "finish_reason is length before the limit was reached")
    require(not ended or completion.finish_reason == "stop", "a stop token ended it but finish_reason is not stop")


def seeds_decide(case: Case) -> None:
    """The same request twice gives the same completions."""
    engine = engine_of(case)
    asked = requests(case.parts["setup"])
    _same(engine.generate(asked), engine.generate(asked), "a second call")


def the_rest_of_the_batch_does_not_matter(case: Case) -> None:
    """Requests alone, in reverse, and siblings alone."""
    engine = engine_of(case)
    asked = requests(case.parts["setup"])
    expected = engine.generate(asked)
    _same(engine.generate(asked[::-1])[::-1], expected, "another order of requests")
    _same([engine.generate([request])[0] for request in asked], expected, "a request by itself")
    last = [replace(request, seeds=request.seeds[-1:]) for request in asked]
    _same(engine.generate(last), [completions[-1:] for completions in expected], "a sibling by itself")


def limits_and_stop_tokens_are_honoured(case: Case) -> None:
    """A limit of one token, and a token that was drawn made a stop token."""
    engine = engine_of(case)
    setup = case.parts["setup"]
    for completions in engine.generate(requests(setup, max_new_tokens=1)):
        require(all(len(item.token_ids) == 1 for item in completions), "max_new_tokens=1 gives another length")
    free = engine.generate(requests(setup))
    stop = next((item.token_ids[0] for items in free for item in items), 0)
    for completions in engine.generate(requests(setup, stop_token_ids=(stop,))):
        for item in completions:
            require(stop not in item.token_ids[:-1], f"generation went on after stop token {stop}")
            require(item.token_ids[-1] != stop or item.finish_reason == "stop", "stopped but finish_reason differs")


def greedy_takes_the_likeliest_token(case: Case) -> None:
    """Temperature 0: every seed gives the same."""
    engine = engine_of(case)
    for completions in engine.generate(requests(case.parts["setup"], temperature=0.0)):
        require(len({item.token_ids for item in completions}) == 1, "temperature 0 gives different completions")


def streams_tell_what_generate_returns(case: Case) -> None:
    """Where it streams: two at once that take turns, each token for token what `generate` returns."""
    engine = engine_of(case)
    streaming: object = engine
    if not isinstance(streaming, StreamingEngine):
        return
    asked = requests(case.parts["setup"])
    expected = engine.generate(asked)
    told: list[dict[tuple[int, int], list[Piece]]] = [{}, {}]
    for turn in zip_longest(streaming.stream(asked), streaming.stream(asked[::-1]), fillvalue=()):
        for found, pieces in zip(told, turn, strict=True):
            for piece in pieces:
                found.setdefault(piece.place, []).append(piece)
    _same(_joined(told[0], asked), expected, "a stream")
    _same(_joined(told[1], asked[::-1])[::-1], expected, "a stream beside another")


def _joined(
    told: Mapping[tuple[int, int], Sequence[Piece]], asked: Sequence[GenerateRequest]
) -> list[list[Completion]]:
    answers = []
    for number, request in enumerate(asked):
        own = [told.get((number, sibling), ()) for sibling in range(len(request.seeds))]
        for pieces in own:
            ends = [piece.finish_reason is not None for piece in pieces]
            require(sum(ends) == 1 and ends[-1], "a stream does not tell each completion's end, once and last")
        answers.append([_completion(pieces) for pieces in own])
    return answers


def _completion(pieces: Sequence[Piece]) -> Completion:
    token_ids = tuple(token for piece in pieces for token in piece.token_ids)
    logprobs = tuple(value for piece in pieces for value in piece.logprobs)
    return Completion(token_ids, logprobs, pieces[-1].finish_reason or "abort")


def update_weights_sets_the_version(case: Case) -> None:
    """And the fingerprint of what is served is the trainer's. One with `frozen_weights` refuses them."""
    engine = engine_of(case)
    strategy = case.parts["setup"].require_strategy()
    if is_frozen(case):
        _refuses(lambda: engine.update_weights(strategy.weights, 7))
        return
    engine.sleep()
    engine.wake()
    engine.update_weights(strategy.weights, 7)
    require(engine.version == 7, f"version is {engine.version} after update_weights(..., 7)")
    trained = strategy.fingerprint()
    served = engine.fingerprint(list(trained))
    wrong = [name for name, value in trained.items() if served.get(name) != value]
    require(not wrong, f"served weights differ from the trained ones: {', '.join(wrong)}")
    engine.reset_cache()


def _refuses(call: Callable[[], object]) -> None:
    try:
        call()
    except UserError:
        return
    require(False, "it provides frozen_weights, and yet takes some without a UserError")


def close_frees_it(case: Case) -> None:
    """Last: it may not be used afterwards."""
    engine_of(case).close()


def _same(found: Sequence[Sequence[Completion]], expected: Sequence[Sequence[Completion]], what: str) -> None:
    for one, other in zip(found, expected, strict=True):
        for left, right in zip(one, other, strict=True):
            require(left.token_ids == right.token_ids, f"{what} gives other tokens: {left} instead of {right}")
            gap = max(abs(a - b) for a, b in zip(left.logprobs, right.logprobs, strict=True))
            require(gap <= LOGPROB_TOLERANCE, f"{what} changes log-probabilities by {gap:.3g}")


CHECKS: tuple[Check, ...] = (
    every_seed_gets_a_completion,
    seeds_decide,
    the_rest_of_the_batch_does_not_matter,
    limits_and_stop_tokens_are_honoured,
    greedy_takes_the_likeliest_token,
    greedy_takes_the_trainers_likeliest_token,
    logprobs_are_the_trainers,
    a_step_of_the_trainer_is_served,
    streams_tell_what_generate_returns,
    update_weights_sets_the_version,
    close_frees_it,
)
