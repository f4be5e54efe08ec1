"""From prompts to groups of rollouts: render, seed, generate, decode. Samplers and evaluations draw this way."""

from collections import Counter
from collections.abc import Sequence

from lightrft_core.data import GenerateRequest, Group, Prompt, Rollout, Sampling, seed_for
from lightrft_core.protocols import Engine, ModelAdapter
from lightrft_core.sections import SamplerSection


def sampling_of(section: SamplerSection, stop_token_ids: tuple[int, ...]) -> Sampling:
    """The settings of a run's sampler as the engine takes them."""
    return Sampling(
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        min_p=section.min_p,
        stop=section.stop,
        stop_token_ids=stop_token_ids,
    )


def sample_groups(
    engine: Engine,
    model: ModelAdapter,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    num_samples: int,
    *,
    run_seed: int,
    purpose: int | str,
) -> list[Group]:
    """Generate `num_samples` completions of each prompt; seeds derive from (run seed, purpose, prompt id, sibling).

    A prompt that comes twice (fewer prompts than a step takes) gets other seeds the second time.
    """
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        again = (seen[prompt.id],) if seen[prompt.id] else ()
        seeds.append(tuple(seed_for(run_seed, purpose, prompt.id, index, *again) for index in range(num_samples)))
        seen[prompt.id] += 1
    requests = [
        GenerateRequest(prompt.id, model.render(prompt), own, sampling, prompt.media)
        for prompt, own in zip(prompts, seeds, strict=True)
    ]
    groups = []
    for prompt, request, completions in zip(prompts, requests, engine.generate(requests), strict=True):
        rollouts = [
            Rollout(
                prompt_id=prompt.id,
                index=index,
                token_ids=completion.token_ids,
                text=model.decode(completion.token_ids),
                engine_logprobs=completion.logprobs,
                finish_reason=completion.finish_reason,
                policy_version=engine.version,
                seed=seed,
            )
            for index, (completion, seed) in enumerate(zip(completions, request.seeds, strict=True))
        ]
        groups.append(Group(prompt, request.prompt_token_ids, rollouts))
    return groups
