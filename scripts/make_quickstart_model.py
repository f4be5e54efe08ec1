"""Make the tiny start model of the quickstart: `python scripts/make_quickstart_model.py`, about two CPU-minutes.

The idea: reinforcement sharpens what a model can do, it does not teach arithmetic. So the model is first taught the
skill on clean solutions, and is then shown solutions of mixed quality, which give it habits, good and bad, to choose
between. Same seed, same machine type, same weights.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from lightrft_rewards.word_problems import OPERATIONS, WordProblem, chain, problems
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

FOLDER = Path(__file__).parents[1] / "packages/lightrft-core/src/lightrft_core/recipes/quickstart-model"
SEED = 7
MAX_NEW_TOKENS = 32
MAX_LENGTH = 512
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CARD = Path(__file__).with_name("quickstart_card.md")

Writer = Callable[[WordProblem, random.Random], str]


@dataclass(frozen=True)
class Stage:
    """One supervised stage: how many steps of how many solutions, who writes them, at which peak rate."""

    num_steps: int
    batch_size: int
    learning_rate: float
    write: Writer


def clean_solution(problem: WordProblem, rng: random.Random) -> str:
    """The right solution, always."""
    return problem.solution


def mixed_solution(problem: WordProblem, rng: random.Random) -> str:
    """A solution as a careless pupil writes it: about two in five are right."""
    steps = list(problem.steps)
    if len(steps) > 1 and rng.random() < 0.6:
        steps = steps[:1]  # stops after the first step
    if rng.random() < 0.2:
        steps[-1] = _with_other_operation(steps[-1], rng)
    if rng.random() < 0.1:
        left, result = steps[-1].split("=")
        steps[-1] = f"{left}={int(result) + rng.choice((1, 2, 10))}"
    answer = steps[-1].split("=")[1]
    return "\n".join(steps if rng.random() < 0.2 else [*steps, f"#### {answer}"])


def _with_other_operation(step: str, rng: random.Random) -> str:
    """The same two numbers under another operation: `7-3=4` becomes `7+3=10`."""
    left = step.split("=")[0]
    sign = next(sign for sign in OPERATIONS if sign in left)
    first, second = sorted(map(int, left.split(sign)), reverse=True)
    return chain(rng.choice([other for other in OPERATIONS if other != sign]), [first, second])[0][0]


CLEAN = Stage(num_steps=1000, batch_size=32, learning_rate=3e-3, write=clean_solution)
MIXED = Stage(num_steps=100, batch_size=32, learning_rate=1e-3, write=mixed_solution)


def bare_sum(rng: random.Random) -> WordProblem:
    """An arithmetic chain without a story; what a word problem comes down to."""
    while True:
        operations = rng.choice(("+", "-", "*", "+-", "*+", "*-"))
        numbers = [rng.randint(2, 9) for _ in range(len(operations) + 1)]
        lines = chain(operations, numbers)
        if lines[-1][1] > 0:
            question = str(numbers[0]) + "".join(f"{o}{n}" for o, n in zip(operations, numbers[1:], strict=True))
            return WordProblem(f"{question}=?", tuple(line for line, _ in lines), lines[-1][1])


def lessons(seed: int, num: int, bare_share: float = 0.3) -> list[WordProblem]:
    """Training-split word problems with a share of bare sums, shuffled."""
    rng = random.Random(seed)
    num_bare = int(num * bare_share)
    drawn = problems(num - num_bare, seed, split="train") + [bare_sum(rng) for _ in range(num_bare)]
    rng.shuffle(drawn)
    return drawn


def make_tokenizer(texts: list[str]) -> Qwen2Tokenizer:
    """Learn a byte-level BPE on `texts`: each of their words is one token, each digit is one, all else is bytes.

    Normaliser and pre-tokeniser are Qwen2's own, because transformers puts them back whenever it loads a tokenizer
    that lies beside a `qwen2` config.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, min_frequency=2, initial_alphabet=alphabet))
    learnt = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        pad_token=PAD,
        unk_token=PAD,
        eos_token=END,
        model_max_length=MAX_LENGTH,
        padding_side="left",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [START]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tokenizer_texts(seed: int) -> list[str]:
    """What the tokenizer learns its words from: problems, solutions and the roles of a chat."""
    drawn = problems(4000, seed, split="train")
    return [text for p in drawn for text in (p.question, p.solution, "system", "user", "assistant")]


def make_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """A fresh Qwen2 of about 0.4M parameters."""
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=1,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            initializer_range=0.08,
            bos_token_id=None,
            **ids,
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=MAX_NEW_TOKENS, **ids
    )
    return model


def render(tokenizer: Qwen2Tokenizer, question: str) -> list[int]:
    """The prompt ids that a run of reinforcement learning shows for `question`."""
    messages = [{"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def collate(tokenizer: Qwen2Tokenizer, pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels `[B, T]`, padded on the right; a label is -100 on the prompt and on padding."""
    rows = []
    for question, solution in pairs:
        prompt = render(tokenizer, question)
        completion = [*tokenizer.encode(solution), tokenizer.eos_token_id]
        rows.append((prompt + completion, [-100] * len(prompt) + completion))
    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows])
    labels_BT = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    return ids_BT, labels_BT


def optimizers(model: Qwen2ForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings, norms and biases."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=learning_rate, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)]


def teach(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, stage: Stage, seed: int) -> None:
    """Train on the solution tokens of one stage, the rate falling to zero along a cosine."""
    rng = random.Random(seed)
    batches = _batches(lessons(seed, stage.num_steps * stage.batch_size), stage.batch_size)
    steppers = optimizers(model, stage.learning_rate)
    for step, batch in enumerate(batches):
        rate = stage.learning_rate * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / stage.num_steps))
        ids_BT, labels_BT = collate(tokenizer, [(problem.question, stage.write(problem, rng)) for problem in batch])
        logits_BTV = model(input_ids=ids_BT).logits
        loss = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate
            stepper.step()
            stepper.zero_grad()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f}", flush=True)


def _batches(items: list[WordProblem], size: int) -> Iterator[list[WordProblem]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def judge(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, held_out: list[WordProblem], sample: bool) -> list[bool]:
    """Tell for each problem whether one completion ends in the right `#### answer` line."""
    batch = tokenizer.pad({"input_ids": [render(tokenizer, p.question) for p in held_out]}, return_tensors="pt")
    choice = {"do_sample": True, "top_k": 0} if sample else {"do_sample": False, "top_k": None}
    ids_BT = model.generate(**batch, **choice, max_new_tokens=MAX_NEW_TOKENS)
    texts = tokenizer.batch_decode(ids_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.split("\n")[-1] == f"#### {p.answer}" for text, p in zip(texts, held_out, strict=True)]


def measure(folder: Path, seed: int) -> dict[str, float]:
    """Load the written folder as a run would, in fp32, and answer 256 held-out problems 8 times each."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    held_out = problems(256, seed=0, split="test")
    right_KN = torch.tensor([judge(model, tokenizer, held_out, sample=True) for _ in range(8)])
    greedy_N = torch.tensor(judge(model, tokenizer, held_out, sample=False))
    return {
        "greedy": greedy_N.float().mean().item(),
        "pass_1": right_KN.float().mean().item(),
        "pass_8": right_KN.any(dim=0).float().mean().item(),
        "num_parameters": model.num_parameters(),
        "num_tokens": len(tokenizer),
    }


def make(folder: Path, seed: int) -> dict[str, float]:
    """Make the model and write its folder with its card; the numbers of the card are returned."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(tokenizer_texts(seed))
    model = make_model(tokenizer)
    teach(model, tokenizer, CLEAN, seed)  # the skill
    teach(model, tokenizer, MIXED, seed + 1)  # the habits
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    numbers = measure(folder, seed)
    (folder / "README.md").write_text(CARD.read_text().format(seed=seed, **numbers))
    return numbers


def main() -> None:
    """Make the model and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    print(json.dumps(make(arguments.folder, arguments.seed)))
    print(f"{time.process_time():.0f} CPU-seconds")


if __name__ == "__main__":
    main()
