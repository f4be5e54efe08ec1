"""Options that do nothing beside others, as a component tells of them."""

from collections.abc import Mapping

from lightrft_core.no_effect import keys_without_effect
from lightrft_core.sections import Idle, LossSection, Section
from pydantic import Field


class GateConfig(LossSection):
    """Options of a loss with a gate."""

    gate: bool = False
    """Whether there is one."""
    height: float = Field(default=1.0)
    """Its height."""

    def idle(self) -> Mapping[str, Idle]:
        """No gate, no height."""
        return {} if self.gate else {"height": Idle("gate", "there is no gate.")}


def test_a_section_has_no_idle_options_by_default():
    assert Section().idle() == {}


def test_what_a_component_calls_idle_does_nothing_and_says_why():
    sections = {"loss": GateConfig()}
    rule = keys_without_effect(sections, {})["loss.height"]
    assert (rule.cause, rule.reason) == ("loss.gate", "there is no gate.")
    assert "loss.height" not in keys_without_effect({"loss": GateConfig(gate=True)}, {})
