"""From prompts to groups: in order, decoded, and with seeds of their own for every sibling."""

from dataclasses import replace

import pytest
from lightrft_core.data import Media, Sampling, seed_for
from lightrft_core.drawing import sample_groups
from lightrft_core.testing.toys import ToyEngine, ToyEngineConfig, toy_prompts, toy_setup


class Remembers(ToyEngine):
    """Keeps what it was asked."""

    def generate(self, requests):
        self.requests = list(requests)
        return super().generate(requests)


@pytest.fixture
def setup(tmp_path):
    return toy_setup(tmp_path)


@pytest.fixture
def engine(setup):
    return Remembers(ToyEngineConfig(), setup)


@pytest.fixture
def draw(setup, engine):
    model = setup.require_model()
    sampling = Sampling(max_new_tokens=5, stop_token_ids=model.stop_token_ids)

    def run(prompts, num_samples=3, seed=7, purpose=1):
        return sample_groups(engine, model, prompts, sampling, num_samples, run_seed=seed, purpose=purpose)

    return run


def seeds(groups):
    return [rollout.seed for group in groups for rollout in group.rollouts]


def test_groups_come_in_the_prompts_order_with_siblings_numbered(draw):
    prompts = toy_prompts()[3:0:-1]
    groups = draw(prompts)
    assert [group.prompt for group in groups] == prompts
    assert [[rollout.index for rollout in group.rollouts] for group in groups] == [[0, 1, 2]] * 3
    assert all(rollout.prompt_id == group.prompt.id for group in groups for rollout in group.rollouts)
    assert [group.prompt_token_ids for group in groups] == [(3,), (2,), (1,)]


def test_text_is_decoded_and_the_engines_account_kept(draw, engine, setup):
    engine.update_weights(setup.require_strategy().weights, 4)
    rollouts = [rollout for group in draw(toy_prompts(), num_samples=8) for rollout in group.rollouts]
    for rollout in rollouts:
        assert rollout.text == "".join(str(token) for token in rollout.token_ids if token != 10)
        assert len(rollout.engine_logprobs) == len(rollout.token_ids) == len(rollout.loss_mask)
        assert (rollout.finish_reason == "stop") == (rollout.token_ids[-1] == 10)
        assert rollout.policy_version == 4
        assert rollout.reward is None
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}


def test_seeds_derive_from_run_purpose_prompt_and_sibling(draw):
    [group] = draw(toy_prompts()[:1], seed=7, purpose="evaluation")
    assert seeds([group]) == [seed_for(7, "evaluation", "toy-0", index) for index in range(3)]


@pytest.mark.parametrize("change", [{"seed": 8}, {"purpose": 2}, {"purpose": "1+1"}])
def test_another_run_or_purpose_draws_other_seeds(draw, change):
    assert not set(seeds(draw(toy_prompts()))) & set(seeds(draw(toy_prompts(), **change)))


def test_a_prompt_that_comes_twice_gets_other_seeds(draw):
    first, second, third = draw([toy_prompts()[0]] * 3)
    assert len(set(seeds([first, second, third]))) == 9
    assert seeds([first]) == seeds(draw(toy_prompts()[:1]))


def test_what_else_is_drawn_does_not_matter(draw):
    alone = draw(toy_prompts()[4:5])[0]
    among = draw(toy_prompts())[4]
    assert among.rollouts == alone.rollouts


def test_media_go_to_the_engine(draw, engine):
    media = (Media("image", b"png"),)
    draw([replace(toy_prompts()[0], media=media)])
    assert engine.requests[0].media == media


def test_nothing_to_draw_is_nothing_drawn(draw):
    assert draw([]) == []
