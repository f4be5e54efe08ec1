"""Options of the text adapter. Free of torch, so that the command line can read them."""

from collections.abc import Mapping
from typing import Literal

from lightrft_core.sections import Idle, ModelSection, Section
from pydantic import Field, field_validator


class LoraSection(Section):
    """Train low-rank adapters beside frozen linear layers; what is served and exported is the merged model."""

    rank: int = Field(ge=1)
    """Rank of the adapters."""
    alpha: float = Field(default=16, gt=0)
    """Adapters count alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapters' inputs that passes with gradient leave out. Above 0 a step depends on how it is cut."""
    target_modules: tuple[str, ...] = Field(default=("all-linear",), min_length=1)
    """Names of the linear layers that get one; `all-linear` is every one but the output."""
    load_in_4bit: bool = False
    """Keep the frozen weights in 4 bits (QLoRA), where every rank has all: single, ddp, deepspeed to stage 2."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("target_modules")
    @classmethod
    def _all_or_some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "all-linear" in value and len(value) > 1:
            raise ValueError("all-linear stands alone")
        return value


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
    lora: LoraSection | None = None
    """Train adapters instead of all weights: `{rank: 16}`; by default all weights train."""
    freeze: tuple[str, ...] = ()
    """Parameters of the policy that stay as they are, by the first parts of their names in the model:
    `[model.embed_tokens, model.layers.0]`. A tied weight is named by all its names. A critic learns all of its own."""

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def idle(self) -> Mapping[str, Idle]:
        """Beside adapters all other weights are frozen."""
        return {} if self.lora is None else {"freeze": Idle("lora", "model.lora trains adapters alone.")}
