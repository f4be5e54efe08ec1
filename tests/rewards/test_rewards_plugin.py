"""What the package offers keeps what its kind promises."""

import pytest
from lightrft_core.plugins import Plugins
from lightrft_core.testing import check_component
from lightrft_rewards import plugin

REWARDS = {component.name: component for component in plugin.lightrft_rewards()}
TASKS = {component.name: component for component in plugin.lightrft_tasks()}


@pytest.mark.parametrize("name", sorted(set(REWARDS) - {"python"}))
def test_every_reward_passes_the_conformance_kit(name):
    if REWARDS[name].requires:
        pytest.importorskip("math_verify")
    results = check_component("reward", REWARDS[name], Plugins.load())
    assert [result for result in results if not result.ok] == []


def test_word_problems_pass_the_conformance_kit():
    results = check_component("task", TASKS["word_problems"], Plugins.load())
    assert [result for result in results if not result.ok] == []
