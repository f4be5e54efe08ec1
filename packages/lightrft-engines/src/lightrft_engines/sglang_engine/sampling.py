"""A sibling's sampling settings in SGLang's words, and its answers; the same inside this process and over HTTP."""

from collections.abc import Mapping
from typing import Any

from lightrft_engines.serving.siblings import Sibling

Settings = dict[str, Any]  # Any: values of SGLang's SamplingParams


def settings(sibling: Sibling) -> Settings:
    """Fields of `SamplingParams`.

    Greedy is `top_k` 1 to SGLang, so a `top_k` of 1 at a temperature becomes its equal: `min_p` 1, none less likely
    than the likeliest.
    """
    sampling = sibling.sampling
    is_greedy = sampling.temperature == 0
    only_likeliest = sampling.top_k == 1 and not is_greedy
    return {
        "sampling_seed": sibling.seed,
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": 1.0 if is_greedy else sampling.top_p,
        "top_k": -1 if is_greedy or only_likeliest or sampling.top_k == 0 else sampling.top_k,
        "min_p": 0.0 if is_greedy else 1.0 if only_likeliest else sampling.min_p,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(sibling.stop_token_ids),
        "stop": list(sampling.stop),
        "no_stop_trim": True,
    }


def request(sibling: Sibling) -> dict[str, Any]:  # Any: JSON
    """A body of `/generate`, or the arguments of one request."""
    return {
        "input_ids": list(sibling.prompt_token_ids),
        "sampling_params": settings(sibling),
        "return_logprob": True,
    }


def take(sibling: Sibling, answer: Mapping[str, Any]) -> None:  # Any: JSON
    """What SGLang wrote until now: every token with the log-probability that it was drawn with."""
    about, start = answer["meta_info"], len(sibling.token_ids)
    pairs = (about.get("output_token_logprobs") or [])[start:]
    sibling.add(answer["output_ids"][start:], [float(pair[0]) for pair in pairs])
    if about["finish_reason"] is not None:
        sibling.finish(about["finish_reason"]["type"])
