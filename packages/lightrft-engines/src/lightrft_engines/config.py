"""Options of the text adapter. Free of torch, so that the command line can read them."""

from typing import Literal

from lightrft_core.sections import ModelSection


class TextConfig(ModelSection):
    """A Hugging Face causal language model."""

    attention: Literal["auto", "lightrft", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention code; `auto` is LightRFT's own (packs rows, shares prompts) where the model allows it, else torch's
    SDPA, else plain."""
    chat_template: str | None = None
    """A Jinja template file, or `plain` to join the messages' contents by blank lines; by default the tokenizer's own,
    and `plain` with a warning where it has none."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, where it is not the model's."""
