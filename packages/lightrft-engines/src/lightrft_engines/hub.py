"""Reading Hugging Face folders and hub models, with errors that say what is wrong and what to do."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from lightrft_core.errors import UserError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from lightrft_engines.attention import register_attention
from lightrft_engines.config import TextConfig

log = logging.getLogger(__name__)
Loaded = TypeVar("Loaded")
Options = dict[str, str | bool | None]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SAMPLE, NUM_SAMPLES = 1 << 15, 64  # bytes of a file that its digest reads at one place, and the places
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")


def load_config(config: TextConfig) -> PreTrainedConfig:
    """The model's config.json."""
    _require_folder(config.path, "model.path")
    found: PreTrainedConfig = _guarded(
        lambda: AutoConfig.from_pretrained(config.path, **_options(config, config.path)), config, "config"
    )
    return found


def load_tokenizer(config: TextConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, or the one that `model.tokenizer` names."""
    path = config.tokenizer or config.path
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"no tokenizer in {path}: none of {', '.join(TOKENIZER_FILES)} is there.",
            where="model.tokenizer" if config.tokenizer else "model.path",
            hint="Copy the tokenizer files beside the weights, or set `model.tokenizer` to a folder that has them.",
        )
    options = _options(config, path) | ({"revision": None} if config.tokenizer else {})
    tokenizer: PreTrainedTokenizerBase = _guarded(
        lambda: AutoTokenizer.from_pretrained(path, **options), config, "tokenizer"
    )
    return tokenizer


def load_template(config: TextConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The Jinja text of the chat template, which only transformers' sandbox runs; None for plain text."""
    if config.chat_template == "plain":
        return None
    if config.chat_template is not None:
        path = Path(config.chat_template)
        if not path.is_file():
            raise UserError(
                f"no chat template at {config.chat_template}.",
                where="model.chat_template",
                hint="Name a Jinja file, or write `plain`.",
            )
        return path.read_text(encoding="utf-8")
    if isinstance(tokenizer.chat_template, dict):
        return str(tokenizer.get_chat_template())
    if tokenizer.chat_template is None:
        log.warning(
            "the tokenizer of %s has no chat template: prompts are the messages' contents joined by blank lines. "
            "Set model.chat_template to a Jinja file if the model was trained with one, or to `plain` to keep this "
            "without a warning.",
            config.path,
        )
    return tokenizer.chat_template if tokenizer.chat_template is None else str(tokenizer.chat_template)


def stop_tokens(config: TextConfig, hf_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """End tokens of generation_config.json and of the tokenizer; the model config's where neither has one."""
    found: list[int] = []
    for ids in (_generation_eos(config), tokenizer.eos_token_id):
        found += _as_list(ids)
    found = found or _as_list(hf_config.get_text_config().eos_token_id)
    return tuple(dict.fromkeys(found))


def load_model(
    config: TextConfig,
    hf_config: PreTrainedConfig,
    *,
    needs_head: bool = True,
    quantization: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """Weights in the precision of the files, from safetensors only; `UserError` where some are missing.

    Without `needs_head` those of the output layer may be. With a `quantization` linear layers are packed as it says.
    """
    options = _options(config, config.path)

    def load() -> tuple[PreTrainedModel, dict[str, list[str]]]:
        loaded: tuple[PreTrainedModel, dict[str, list[str]]] = AutoModelForCausalLM.from_pretrained(
            config.path,
            dtype="auto",
            attn_implementation=choose_attention(config, hf_config),
            use_safetensors=True,
            output_loading_info=True,
            quantization_config=quantization,
            **options,
        )
        return loaded

    module, report = _guarded(load, config, "model")
    spared = set() if needs_head else _head_names(module)
    missing = sorted(set(report["missing_keys"]) - spared)
    if missing:
        raise UserError(
            f"{config.path} lacks {len(missing)} of the model's weights, such as {missing[0]}.",
            where="model.path",
            hint="Is this the folder of a causal language model, completely downloaded?",
        )
    return module


def build_model(config: TextConfig, hf_config: PreTrainedConfig) -> PreTrainedModel:
    """The model without weights, on the meta device, tied as the real one is."""

    def build() -> PreTrainedModel:
        with torch.device("meta"):
            module: PreTrainedModel = AutoModelForCausalLM.from_config(
                hf_config,
                attn_implementation=choose_attention(config, hf_config),
                trust_remote_code=config.trust_remote_code,
            )
        module.tie_weights()
        module.generation_config = _generation_config(config) or module.generation_config
        return module

    return _guarded(build, config, "model")


def digest(config: TextConfig) -> bytes:
    """Of config.json and of bytes from all over the weight files: another model's differ, and large ones read fast."""
    found = hashlib.sha256()
    for name in ("config.json", *_weight_files(config)):
        path = Path(str(cached_file(config.path, name, revision=config.revision)))
        size = path.stat().st_size
        found.update(f"{name} {size}".encode())
        with path.open("rb") as file:
            for number in range(NUM_SAMPLES):
                file.seek(max(0, size - SAMPLE) * number // (NUM_SAMPLES - 1))
                found.update(file.read(SAMPLE))
    return found.digest()


def _weight_files(config: TextConfig) -> list[str]:
    single, index = (
        cached_file(config.path, name, revision=config.revision, _raise_exceptions_for_missing_entries=False)
        for name in WEIGHTS
    )
    if single is not None or index is None:
        return [WEIGHTS[0]]
    return sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))


def _head_names(module: PreTrainedModel) -> set[str]:
    head = module.get_output_embeddings()
    own = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    return {name for name, parameter in module.named_parameters() if id(parameter) in own}


def choose_attention(config: TextConfig, hf_config: PreTrainedConfig) -> str:
    """Our attention function where the model takes functions and its scores are plain; else SDPA, else eager."""
    if config.attention not in ("auto", "lightrft"):
        return config.attention
    if hf_config.get_text_config().to_dict().get("attn_logit_softcapping"):
        return _unless_asked(config, "eager", "caps its attention scores")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(hf_config), None)
    if model_class is None or not model_class._supports_sdpa:
        return _unless_asked(config, "eager", "does not support SDPA")
    if not model_class._supports_attention_backend:
        return _unless_asked(config, "sdpa", "takes no attention functions")
    return register_attention()


def _unless_asked(config: TextConfig, fallback: str, reason: str) -> str:
    if config.attention == "lightrft":
        raise UserError(
            f"the model at {config.path} {reason}, so LightRFT's attention cannot run it.",
            where="model.attention",
            hint=f"Use `auto`, which takes `{fallback}` here.",
        )
    return fallback


def _require_folder(path: str, where: str) -> None:
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
            raise UserError(
                f"{path} is not a Hugging Face model: it has no config.json (it holds {names}).",
                where=where,
                hint="Name the folder that holds config.json, model.safetensors and the tokenizer files.",
            )
    elif path.startswith(("/", "./", "../", "~")) or path.count("/") > 1:
        raise UserError(
            f"no folder {path}.",
            where=where,
            hint="Give the folder of a model, or a hub id such as org/name.",
        )


def _options(config: TextConfig, path: str) -> Options:
    return {
        "local_files_only": Path(path).is_dir(),
        "trust_remote_code": config.trust_remote_code,
        "revision": config.revision,
    }


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars, which would cut through ours, and the hub's report of each retry.

    Nor with what DeepSpeed, which transformers looks for, tells on standard output where there is no GPU.
    """
    shown, hub = hf_logging.is_progress_bar_enabled(), logging.getLogger("huggingface_hub")
    deepspeed = logging.getLogger("DeepSpeed")
    level = hub.level
    hf_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    deepspeed.addFilter(_is_error)
    try:
        yield
    finally:
        hub.setLevel(level)
        deepspeed.removeFilter(_is_error)
        if shown:
            hf_logging.enable_progress_bar()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _guarded(load: Callable[[], Loaded], config: TextConfig, part: str) -> Loaded:
    """Transformers' own errors about files, as one paragraph with advice."""
    try:
        with quietly():
            return load()
    except (OSError, ValueError, ImportError, KeyError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"cannot load the {part} of {config.path}: {text[:400]}", where="model.path", hint=_advice(config, text)
        ) from error


def _advice(config: TextConfig, text: str) -> str:
    folder = Path(config.path)
    if "trust_remote_code" in text:
        return "It needs Python code that comes with the model; read it, then set `model.trust_remote_code: true`."
    if folder.is_dir() and not any((folder / name).is_file() for name in WEIGHTS) and list(folder.glob("*.bin")):
        return "It holds pickled weights (.bin), which are never loaded: convert them to safetensors first."
    if folder.is_dir() and not any((folder / name).is_file() for name in WEIGHTS):
        return "It holds no model.safetensors."
    return "Give the folder of a Hugging Face model that is on this machine, or a hub id that can be reached."


def _generation_config(config: TextConfig) -> GenerationConfig | None:
    if Path(config.path).is_dir() and not (Path(config.path) / "generation_config.json").is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(
            config.path, local_files_only=Path(config.path).is_dir(), revision=config.revision
        )
    except OSError:  # a hub model without one
        return None


def _generation_eos(config: TextConfig) -> int | list[int] | None:
    found = _generation_config(config)
    eos: int | list[int] | None = None if found is None else found.eos_token_id
    return eos


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
