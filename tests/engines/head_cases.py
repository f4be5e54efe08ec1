"""Heads to compare, and their log-probabilities as a plain loop in fp64: run as a script, it compares Triton's kernels.

TRITON_INTERPRET=1 python head_cases.py     worst differences as JSON
"""

import json
import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """A random head, hidden states and the slopes of a loss in the results."""

    tokens: int
    vocabulary: int
    width: int
    bias: bool = False
    entropy: bool = False
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32
    seed: int = 0
    device: str = "cpu"

    def make(self):
        """Fresh leaves: (head, hidden states, targets, slopes)."""
        torch.manual_seed(self.seed)
        head = torch.nn.Linear(self.width, self.vocabulary, bias=self.bias)
        hidden = torch.randn(self.tokens, self.width)
        targets = torch.randint(0, self.vocabulary, (self.tokens,))
        targets[: min(self.tokens, 2)] = torch.tensor([self.vocabulary - 1, 0])[: self.tokens]
        with torch.no_grad():
            head.weight.mul_(3)
        slopes = torch.randn(2, self.tokens).to(self.device)
        head, hidden = head.to(self.device, self.dtype), hidden.to(self.device, self.dtype)
        return head, hidden.requires_grad_(), targets.to(self.device), slopes


def loop(case: Case):
    """[log-probabilities, entropies, gradients of hidden states, weight, bias], token by token in fp64."""
    head, hidden, targets, slopes = case.make()
    weight = head.weight.detach().double().requires_grad_()
    bias = head.bias.detach().double().requires_grad_() if case.bias else None
    states = hidden.detach().double().requires_grad_()
    values, entropies = [], []
    for token in range(case.tokens):
        logits = weight @ states[token] if bias is None else weight @ states[token] + bias
        odds = (logits / case.temperature - (logits / case.temperature).max().detach()).exp()
        probabilities = odds / odds.sum()
        values.append(probabilities[targets[token]].log())
        entropies.append(-(probabilities * probabilities.log()).sum())
    value, entropy = torch.stack(values), torch.stack(entropies)
    loss = (value * slopes[0].double()).sum() + ((entropy * slopes[1].double()).sum() if case.entropy else 0)
    leaves = [states, weight, *([bias] if case.bias else [])]
    return [value.detach(), *([entropy.detach()] if case.entropy else []), *torch.autograd.grad(loss, leaves)]


def fused(case: Case, **options):
    """The same from `token_logprobs`."""
    from lightrft_engines.head import token_logprobs

    head, hidden, targets, slopes = case.make()
    value, entropy = token_logprobs(hidden, head, targets, case.temperature, entropy=case.entropy, **options)
    loss = (value * slopes[0]).sum() + ((entropy * slopes[1]).sum() if case.entropy else 0)
    grads = torch.autograd.grad(loss, [hidden, head.weight, *([head.bias] if case.bias else [])])
    return [value.detach(), *([entropy.detach()] if case.entropy else []), *grads]


def differences(found, expected) -> list[float]:
    """The largest difference of each result, relative to its largest number."""
    pairs = zip(found, expected, strict=True)
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs]


def peak_bytes(run) -> int:
    """Most bytes that tensors held at one time, from the profiler's record of allocations."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


SMALL = {  # a tile of the kernels is 128 by 128, a span 2048 entries; Triton's interpreter multiplies no bf16
    "one tile": Case(5, 11, 16),
    "with bias, temperature and entropy": Case(7, 50, 24, bias=True, entropy=True, temperature=0.7),
    "several tiles and spans": Case(150, 4500, 70, entropy=True, seed=1),
    "a vocabulary of whole spans": Case(128, 4096, 32, bias=True, seed=2),
    "half precision": Case(40, 300, 48, entropy=True, dtype=torch.float16, seed=3),
}


if __name__ == "__main__":
    rows = {name: differences(fused(case, chunk=100), loop(case)) for name, case in SMALL.items()}
    print(json.dumps({"worst": rows, "kernels": "lightrft_engines.head_kernels" in sys.modules}))
