"""The vision package holds its plugin alone for now: it is listed, and prompts with media are refused in words."""

import pytest
from lightrft_core.data import Media, Prompt
from lightrft_core.errors import UserError
from lightrft_core.plugins import State
from lightrft_core.protocols import Setup
from lightrft_core.sections import ModelSection, OptimSection, RunSection, SamplerSection
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter


def test_the_plugin_is_listed_and_sound(plugins):
    row = plugins.row("lightrft-vlm")
    assert (row.state, row.problem) == (State.OK, "")


def test_it_holds_no_component_yet(plugins):
    assert plugins.row("lightrft-vlm").components == ()


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_a_prompt_with_media_is_refused_by_the_text_adapter(quickstart_model, tmp_path, kind):
    section = TextConfig(path=str(quickstart_model))
    setup = Setup(
        run=RunSection(),
        optim=OptimSection(),
        sampler=SamplerSection(),
        model_section=ModelSection(path=str(quickstart_model)),
        run_dir=tmp_path,
        num_optimizer_steps=1,
    )
    prompt = Prompt("p7", ({"role": "user", "content": f"<{kind}> What is it?"},), media=(Media(kind, b"bytes"),))
    with pytest.raises(UserError) as caught:
        TextAdapter(section, setup).render(prompt)
    assert str(caught.value) == (
        f"model.use: prompt p7 holds {kind}s and this model adapter takes text only. Choose a vision-language adapter, "
        "or a task without media."
    )
