"""The adapter for text: any causal language model of transformers, with its tokenizer and chat template."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from jinja2 import TemplateError
from lightrft_core.abilities import Share
from lightrft_core.data import Batch, Group, Prompt, Rollout, seed_for
from lightrft_core.errors import UserError
from lightrft_core.protocols import Layout, LogProbs, Setup
from lightrft_core.sections import CriticSection
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightrft_engines.attention import ATTENTION
from lightrft_engines.config import TextConfig
from lightrft_engines.freezing import freeze
from lightrft_engines.hub import (
    build_model,
    choose_attention,
    digest,
    load_config,
    load_model,
    load_template,
    load_tokenizer,
    quietly,
    stop_tokens,
)
from lightrft_engines.logprobs import Abilities, logprobs, loss, probe
from lightrft_engines.lora import add_adapters, as_they_come, in_4_bits
from lightrft_engines.sequence import SequenceRanks, allows
from lightrft_engines.value_model import ValueModel, export, read_head, values

log = logging.getLogger(__name__)
_NO_CHARACTER, _LONGEST_CHARACTER = "\ufffd", 8  # what a part of a character decodes to; tokens of the longest


class TextAdapter:
    """`protocols.ModelAdapter` for causal language models."""

    def __init__(self, config: TextConfig, setup: Setup) -> None:
        self._config = config
        self._temperature = setup.sampler.temperature
        self._patches, self._seed = setup.patches, seed_for(setup.run.seed, "lora")
        self._hf_config = load_config(config)
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(config)
        self._template = load_template(config, self._tokenizer)
        self._stop = stop_tokens(config, self._hf_config, self._tokenizer)
        self._abilities: WeakKeyDictionary[nn.Module, Abilities] = WeakKeyDictionary()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The generation config's end tokens and the tokenizer's."""
        return self._stop

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The Hugging Face tokenizer."""
        return self._tokenizer

    def load(self, role: str) -> PreTrainedModel:
        """The model in evaluation mode (no dropout, in training too) on the CPU, patches applied.

        `UserError` where the folder, the weights or the tokenizer are not what a model needs, and where `model.freeze`
        is not of this model.
        """
        return self._marked(self._patched(load_model(self._config, self._hf_config), role), role)

    def skeleton(self, role: str) -> PreTrainedModel:
        """The same without weights, on the meta device."""
        return self._marked(self._patched(build_model(self._config, self._hf_config), role), role)

    @property
    def freezes(self) -> bool:
        """See `abilities.FreezingAdapter`: where `model.freeze` names parameters."""
        return bool(self._config.freeze) and not self.uses_lora

    @property
    def uses_lora(self) -> bool:
        """See `abilities.LoraAdapter`: where `model.lora` is set."""
        return self._config.lora is not None

    @property
    def lora_shards(self) -> bool:
        """See `abilities.LoraAdapter`."""
        return self._config.lora is not None and not self._config.lora.load_in_4bit

    def load_lora(self) -> PreTrainedModel:
        """See `abilities.LoraAdapter`; `UserError` for layers that the model does not have."""
        if self.lora_shards:
            return self._with_adapters(self.load("policy"))
        module = load_model(self._config, self._hf_config, quantization=in_4_bits())
        as_they_come(module)
        return self._with_adapters(self._patched(module, "policy"))

    def lora_skeleton(self) -> PreTrainedModel:
        """See `abilities.LoraAdapter`."""
        return self._with_adapters(self.skeleton("policy"))

    def base_digest(self) -> bytes:
        """See `abilities.LoraAdapter`."""
        return digest(self._config)

    def require_sequence_ranks(self, size: int) -> None:
        """See `abilities.SequenceAdapter`: heads are dealt to the ranks, and rows must be packed."""
        text = self._hf_config.get_text_config()
        heads = int(text.num_attention_heads)
        kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)  # GPT-2's config has none
        if choose_attention(self._config, self._hf_config) != ATTENTION:
            raise UserError(
                "this model does not run with LightRFT's attention, so its sequences cannot be split over ranks.",
                where="strategy.sequence_parallel",
                hint="Set it to 1; `strategy.use: fsdp2` and `strategy.checkpointing: true` save memory too.",
            )
        if not allows(size, heads, kv_heads):
            raise UserError(
                f"{size} ranks cannot share a sequence: the model has {heads} attention heads ({kv_heads} for keys).",
                where="strategy.sequence_parallel",
                hint=f"Choose from {', '.join(str(n) for n in range(1, heads + 1) if allows(n, heads, kv_heads))}.",
            )

    def load_critic(self, critic: CriticSection) -> ValueModel:
        """See `abilities.ValueAdapter.load_critic`; `UserError` where the model cannot be the policy's critic."""
        path = critic.path or self._config.path
        config = self._config.model_copy(update={"path": path, "revision": None} if critic.path else {})
        try:
            hf_config = load_config(config)
            module = self._patched(load_model(config, hf_config, needs_head=False), "critic")
        except UserError as error:
            raise UserError(error.what, where="critic.path", hint=error.hint) from error
        own, needed = (item.get_text_config().vocab_size for item in (hf_config, self._hf_config))
        if own < needed:
            raise UserError(
                f"{path} knows {own} tokens, and the policy writes {needed}.",
                where="critic.path",
                hint="A critic reads the policy's tokens: choose a model with the same tokenizer.",
            )
        weight_1D = read_head(path, config.revision, critic.head, hf_config.get_text_config().hidden_size)
        log.info("critic: %s value head `%s`", "a new" if weight_1D is None else "the model's own", critic.head)
        value_model = ValueModel(module.get_decoder(), module.base_model_prefix, critic.head, weight_1D)
        self._abilities[value_model] = probe(module)
        value_model.eval()
        return value_model

    def render(self, prompt: Prompt) -> tuple[int, ...]:
        """Chat template with the generation prompt added; `plain` joins contents by blank lines."""
        if prompt.media:
            raise UserError(
                f"prompt {prompt.id} holds {prompt.media[0].kind}s and this model adapter takes text only.",
                where="model.use",
                hint="Choose a vision-language adapter, or a task without media.",
            )
        if self._template is None:
            text = "\n\n".join(message["content"] for message in prompt.messages)
            ids = list(self._tokenizer(text).input_ids)
            return tuple(ids[:-1] if len(ids) > 1 and ids[-1] in self._stop else ids)
        return self._templated(prompt, self._template)

    def encode(self, text: str) -> tuple[int, ...]:
        """Plain text; special tokens are neither added nor, where the text spells one, made."""
        return tuple(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text, special tokens left out, nothing tidied up."""
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's own text; tokens that make up one character are empty but for the last, which has it."""
        pieces: list[str] = []
        parts: list[int] = []  # tokens that are not yet whole characters
        for token_id in token_ids:
            parts.append(int(token_id))
            text = self._tokenizer.decode(parts, clean_up_tokenization_spaces=False)
            if text.endswith(_NO_CHARACTER) and len(parts) < _LONGEST_CHARACTER and len(pieces) + 1 < len(token_ids):
                pieces.append("")
                continue
            raw = self._tokenizer.convert_ids_to_tokens(parts[0])
            is_cut = isinstance(raw, str) and raw.startswith("▁") and not text.startswith(" ")
            pieces.append(f" {text}" if is_cut else text)
            parts = []
        return pieces

    def collate(self, groups: Sequence[Group]) -> Batch:
        """Rows in the groups' order; masks come from lengths, so that padding may equal any real token."""
        rows = [(number, group, rollout) for number, group in enumerate(groups) for rollout in group.rollouts]
        rollouts = [rollout for _, _, rollout in rows]
        width = max((len(rollout.token_ids) for rollout in rollouts), default=0)
        scored = [rollout.reward is not None for rollout in rollouts]
        return Batch(
            prompt_ids=tuple(group.prompt.id for _, group, _ in rows),
            prompt_token_ids=tuple(group.prompt_token_ids for _, group, _ in rows),
            completion_ids_BT=_right_padded([rollout.token_ids for rollout in rollouts], width, torch.long),
            mask_BT=_right_padded([_trained(rollout) for rollout in rollouts], width, torch.bool),
            lengths_B=torch.tensor([len(rollout.token_ids) for rollout in rollouts], dtype=torch.long),
            group_B=torch.tensor([number for number, _, _ in rows], dtype=torch.long),
            rewards_B=torch.tensor([_reward(rollout) for rollout in rollouts], dtype=torch.float32),
            scored_B=torch.tensor(scored, dtype=torch.bool),
            engine_logprobs_BT=_right_padded([rollout.engine_logprobs for rollout in rollouts], width, torch.float32),
            temperature=self._temperature,
            truncated_B=torch.tensor([rollout.finish_reason != "stop" for rollout in rollouts], dtype=torch.bool),
        )

    def layout_for(self, module: nn.Module, batch: Batch, layout: Layout) -> Layout:
        """`auto` resolved to what this model computes right; `UserError` where `packed` is asked for and is not."""
        try:
            return self._abilities_of(module).layout(layout, batch)
        except ValueError as error:
            raise UserError(str(error), where="strategy.packing", hint="Use `packing: auto` or `false`.") from error

    def logprobs(
        self,
        module: PreTrainedModel,
        batch: Batch,
        *,
        layout: Layout = "auto",
        entropy: bool = False,
        chunk: int | None = None,
        ranks: SequenceRanks | None = None,
    ) -> LogProbs:
        """See `protocols.ModelAdapter.logprobs`; entries past a row's length are 0."""
        resolved = self._split_layout(module, batch, layout, ranks)
        abilities = self._abilities_of(module)
        return logprobs(module, batch, abilities, layout=resolved, entropy=entropy, chunk=chunk, ranks=ranks)

    def loss(
        self,
        module: PreTrainedModel,
        batch: Batch,
        share: Share,
        *,
        layout: Layout = "auto",
        entropy: bool = False,
        chunk: int | None = None,
    ) -> Tensor:
        """See `abilities.LossAdapter.loss`."""
        resolved, abilities = self.layout_for(module, batch, layout), self._abilities_of(module)
        return loss(module, batch, share, abilities, layout=resolved, entropy=entropy, chunk=chunk)

    def values(
        self, critic: ValueModel, batch: Batch, *, layout: Layout = "auto", ranks: SequenceRanks | None = None
    ) -> Tensor:
        """See `abilities.ValueAdapter.values`."""
        return values(critic, batch, self._split_layout(critic, batch, layout, ranks), ranks)

    def export_critic(self, critic: ValueModel, path: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        """Safetensors, config and tokenizer."""
        export(critic, path, weights)
        self._tokenizer.save_pretrained(path)

    def export(self, module: PreTrainedModel, path: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        """Safetensors, configs and tokenizer; a module with adapters only stands for the model of these weights."""
        plain = module
        if self._config.lora is not None and weights is not None:
            plain = self.skeleton("policy").to(next(iter(weights.values())).dtype)
        with quietly():
            plain.save_pretrained(path, state_dict=None if weights is None else dict(weights))
            self._tokenizer.save_pretrained(path)

    def _split_layout(self, module: nn.Module, batch: Batch, layout: Layout, ranks: SequenceRanks | None) -> Layout:
        resolved = self.layout_for(module, batch, layout)
        if ranks is not None and resolved != "packed":
            raise UserError(
                "this model cannot run these rows packed, so ranks cannot share their sequences.",
                where="strategy.sequence_parallel",
                hint="Set it to 1. Models with a sliding window take rows up to the window's length.",
            )
        return resolved

    def _templated(self, prompt: Prompt, template: str) -> tuple[int, ...]:
        messages = [dict(message) for message in prompt.messages]
        try:
            ids = self._tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            roles = ", ".join(message.get("role", "?") for message in messages)
            raise UserError(
                f"the chat template refuses prompt {prompt.id} with the roles {roles}: {error}.",
                where="model.chat_template",
                hint="Change the messages (some templates know no system role), or name another template.",
            ) from error
        return tuple(ids)

    def _with_adapters(self, module: PreTrainedModel) -> PreTrainedModel:
        assert self._config.lora is not None  # `uses_lora`
        return add_adapters(module, self._config.lora, path=self._config.path, seed=self._seed)

    def _patched(self, module: PreTrainedModel, role: str) -> PreTrainedModel:
        for name, patch in self._patches:
            log.info("%s: patch %s", role, name)
            patch(module)
        return module.eval()

    def _marked(self, module: PreTrainedModel, role: str) -> PreTrainedModel:
        if role == "policy" and self.freezes:
            freeze(module, self._config.freeze)
        return module

    def _abilities_of(self, module: nn.Module) -> Abilities:
        if module not in self._abilities:
            self._abilities[module] = probe(module)
        return self._abilities[module]


def _trained(rollout: Rollout) -> tuple[bool, ...]:
    return rollout.loss_mask if rollout.reward is not None else (False,) * len(rollout.loss_mask)


def _reward(rollout: Rollout) -> float:
    if rollout.reward is None:
        return 0.0
    return rollout.reward if rollout.shaped_reward is None else rollout.shaped_reward


def _right_padded(rows: Sequence[Sequence[float]], width: int, dtype: torch.dtype) -> Tensor:
    padded = torch.zeros(len(rows), width, dtype=dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded
