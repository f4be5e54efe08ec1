"""The example that a reward's descriptor gives is one that it likes."""

import pytest
from lightrft_core.data import Prompt, ScoreRequest
from lightrft_core.plugins import Plugins

PLUGINS = Plugins.load()
EXAMPLES = [offer.descriptor for offer in PLUGINS.offers("reward") if offer.descriptor.example]


def test_rewards_that_want_a_form_say_which():
    assert {"gsm8k", "math", "format", "gsm8k_rule", "geo3k_rule"} <= {component.name for component in EXAMPLES}


@pytest.mark.parametrize("component", EXAMPLES, ids=lambda component: component.name)
def test_the_example_of_a_reward_gets_the_full_score(component):
    reward = PLUGINS.target(component)(PLUGINS.config_class("reward", component)())
    prompt = Prompt("p", ({"role": "user", "content": "6*7?"},), reference="42")
    (score,) = reward.score([ScoreRequest(component.example.replace("{reference}", "42"), (), prompt)])
    assert score.value == 1.0
