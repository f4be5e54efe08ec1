"""Rollouts: our decoder against llama.cpp on a CPU, same weights and prompts, greedy, one thread.

    OMP_NUM_THREADS=1 uv run --no-sync --with cyllama==0.2.18 --with gguf==0.19.0 \\
        benchmarks/rollout_llama.py --json llama.json

The two packages come into an environment on top of the project's, for this run alone: bindings with a prebuilt
llama.cpp, and the writer of its file format. llama.cpp reads each distinct prompt once and copies its keys and values
to the siblings; then all rows advance together by `llama_decode`, and its sampler takes the likeliest tokens. Repeats
alternate. `same` is the share of completions in which the two wrote the same tokens: rounding decides between ties.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import cyllama.llama.llama_cpp as llama
import gguf
import torch
import typer
from lightrft_core.data import GenerateRequest, Sampling
from lightrft_engines.decode.decoder import Decoder
from rollout import GROUP, SCENARIOS, Scenario, attention_of, prompts_of
from tiny_models import tiny_qwen2
from transformers import Qwen2ForCausalLM

Tokens = list[list[int]]
Row = dict[str, float | str]
LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    **{f"self_attn.{part}_proj.{kind}": f"attn_{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")},
    **{f"mlp.{part}_proj.weight": f"ffn_{part}.weight" for part in ("gate", "up", "down")},
}
ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(model: Qwen2ForCausalLM, path: Path) -> None:
    """The model in float32, without a tokenizer."""
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, parameter in model.named_parameters():
        _, _, inner = name.partition("model.layers.")
        number, _, part = inner.partition(".")
        writer.add_tensor(f"blk.{number}.{LAYER[part]}" if inner else ENDS[name], parameter.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """One context with room for all rows, keys and values in float32 as ours."""

    def __init__(self, path: Path, rows: int, tokens: int, *, is_flash: bool) -> None:
        llama.disable_logging()
        self.model = llama.LlamaModel(str(path), llama.LlamaModelParams())
        params = llama.LlamaContextParams()
        params.n_ctx, params.n_seq_max = rows * tokens, rows
        params.n_batch = params.n_ubatch = max(rows, 512)
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = gguf.GGMLQuantizationType.F32
        params.flash_attn_type = int(is_flash)
        self.context = llama.LlamaContext(self.model, params)
        self.batch = llama.LlamaBatch(n_tokens=max(rows, 512), embd=0, n_seq_max=1)
        self.sampler = llama.LlamaSampler(llama.LlamaSamplerChainParams())
        self.sampler.add_greedy()

    def decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Feed (token, position, row, wants logits)."""
        self.batch.reset()
        for token, position, row, is_wanted in entries:
            self.batch.add(token, position, [row], is_wanted)
        self.context.decode(self.batch)

    def likeliest(self, places: Iterable[int]) -> list[int]:
        """The next tokens after these entries of the last decode."""
        return [self.sampler.sample(self.context, place) for place in places]

    def write(self, prompts: Tokens, num: int) -> Tokens:
        """Greedy completions of `num` tokens, groups of siblings in order."""
        self.context.kv_cache_clear(False)
        written: Tokens = []
        for number, prompt in enumerate(prompts):
            first, length = number * GROUP, len(prompt)
            self.decode([(token, place, first, place == length - 1) for place, token in enumerate(prompt)])
            written += [self.likeliest([length - 1]) for _ in range(GROUP)]
            for row in range(first + 1, first + GROUP):
                self.context.memory_seq_cp(first, row, -1, -1)
        for step in range(num - 1):
            self.decode([(row[-1], len(prompts[0]) + step, number, True) for number, row in enumerate(written)])
            for row, token in zip(written, self.likeliest(range(len(written))), strict=True):
                row.append(token)
        return written


def write_embedded(decoder: Decoder, prompts: Tokens, num: int) -> Tokens:
    """The same by ours; siblings are greedy too, so equal."""
    sampling = Sampling(num, temperature=0)
    seeds = tuple(range(GROUP))
    requests = [GenerateRequest(str(index), tuple(ids), seeds, sampling) for index, ids in enumerate(prompts)]
    groups = decoder.generate(requests)
    return [list(completion.token_ids) for group in groups for completion in group]


def compare(name: str, groups: int, repeats: int) -> list[Row]:
    """Both engines' medians in one scenario, every completion as long as the scenario's mean."""
    scenario: Scenario = SCENARIOS[name]
    length = int(scenario.mean or scenario.longest)
    model = tiny_qwen2(None, attention=attention_of("embedded"))
    prompts: Tokens = prompts_of(scenario, groups, model.config.vocab_size).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(model, path)
        room = (path, groups * GROUP, scenario.prompt + length)
        plain, flash = LlamaCpp(*room, is_flash=False), LlamaCpp(*room, is_flash=True)
    decoder = Decoder(model)
    run: dict[str, Callable[[], Tokens]] = {
        "llama.cpp": lambda: plain.write(prompts, length),
        "llama.cpp, flash attention": lambda: flash.write(prompts, length),
        "embedded": lambda: write_embedded(decoder, prompts, length),
    }
    spent: dict[str, list[float]] = {engine: [] for engine in run}
    written: dict[str, Tokens] = {}
    for repeat in range(repeats + 1):
        for engine, write in run.items():
            start = time.process_time()
            written[engine] = write()
            if repeat:  # the first one warms up
                spent[engine].append(time.process_time() - start)
    num = groups * GROUP * length
    rows: list[Row] = [
        {
            "scenario": name,
            "sequences": float(groups * GROUP),
            "engine": engine,
            "tokens_per_cpu_s": num / statistics.median(seconds),
            "same": statistics.mean(
                float(one == ours) for one, ours in zip(written[engine], written["embedded"], strict=True)
            ),
        }
        for engine, seconds in spent.items()
    ]
    for row in rows:
        row["ratio"] = float(row["tokens_per_cpu_s"]) / float(rows[0]["tokens_per_cpu_s"])
    return rows


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    scenario: Annotated[str, typer.Option(help="Letters of the scenarios of rollout.py.")] = "ab",
    groups: Annotated[str, typer.Option(help="Numbers of prompts, with commas; each gets 8 completions.")] = "8,32",
    repeats: Annotated[int, typer.Option(help="Measured repeats after one to warm up.")] = 3,
) -> None:
    """Compare the embedded decoder with llama.cpp on this machine's CPU."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name, count in product(scenario, groups.split(",")):
        for row in compare(name, int(count), repeats):
            print(
                "  ".join(f"{value:.2f}" if isinstance(value, float) else value for value in row.values()), flush=True
            )
            rows.append(row)
    print(f"llama.cpp by cyllama {version('cyllama')}")
    if json_file:
        json_file.write_text(json.dumps({"repeats": repeats, "cyllama": version("cyllama"), "rows": rows}, indent=1))


if __name__ == "__main__":
    typer.run(main)
