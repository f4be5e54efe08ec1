"""The plain sampler asks the engine for exactly what its options say."""

from lightrft_algos.samplers.plain import PlainConfig, PlainSampler
from lightrft_core.data import Completion, Media, Prompt, Sampling, seed_for
from lightrft_core.testing.toys import toy_prompts, toy_setup


class RecordingEngine:
    """Answers every seed with one stop token, and keeps what it was asked."""

    version = 5

    def __init__(self):
        self.requests = []

    def generate(self, requests):
        self.requests += requests
        return [[Completion((10,), (-0.5,), "stop") for _ in request.seeds] for request in requests]


def test_requests_carry_the_options_media_and_seeds(tmp_path):
    setup = toy_setup(tmp_path, seed=17)
    config = PlainConfig(group_size=3, max_new_tokens=9, temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, stop=("\n",))
    prompt = Prompt(id="p", messages=({"role": "user", "content": "4"},), media=(Media("image", "cat.png"),))
    engine = RecordingEngine()
    (group,) = PlainSampler(config, setup).sample(engine, [prompt], step=6)
    (request,) = engine.requests
    assert request.sampling == Sampling(9, 0.7, 0.9, 5, 0.1, ("\n",), (10,))
    assert request.media == prompt.media
    assert request.prompt_token_ids == group.prompt_token_ids == (4,)
    assert request.seeds == tuple(seed_for(17, 6, "p", sibling) for sibling in range(3))


def test_groups_follow_the_prompts(tmp_path):
    prompts = toy_prompts()[3:6]
    groups = PlainSampler(PlainConfig(group_size=2), toy_setup(tmp_path)).sample(RecordingEngine(), prompts, step=1)
    assert [group.prompt for group in groups] == prompts
    assert [[rollout.index for rollout in group.rollouts] for group in groups] == [[0, 1]] * 3
    assert {rollout.policy_version for group in groups for rollout in group.rollouts} == {5}


def test_no_prompts_give_no_groups(tmp_path):
    assert PlainSampler(PlainConfig(), toy_setup(tmp_path)).sample(RecordingEngine(), [], step=1) == []
