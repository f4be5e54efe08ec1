"""A sibling's sampling settings in vLLM's words; the same for the library and for the server."""

from typing import Any

from lightrft_engines.serving.siblings import Sibling

Settings = dict[str, Any]  # Any: values of vLLM's SamplingParams


def settings(sibling: Sibling) -> Settings:
    """Fields of `SamplingParams` that the server's completion route has too."""
    sampling = sibling.sampling
    found: Settings = {
        "n": 1,
        "seed": sibling.seed,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "logprobs": 0,  # of the sampled token alone
        "stop_token_ids": list(sibling.stop_token_ids),
        "ignore_eos": True,  # end tokens are among the stop tokens
    }
    if sampling.stop:
        found |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
    return found
