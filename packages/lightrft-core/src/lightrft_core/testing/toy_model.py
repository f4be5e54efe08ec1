"""The toy policy and what surrounds it: model adapter, engine and strategy on plain Python floats."""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from lightrft_core.data import Batch, Completion, FinishReason, GenerateRequest, Group, Prompt, StepStats, Tensor
from lightrft_core.objective import Objective
from lightrft_core.protocols import Advantages, Layout, LogProbs, Setup, Weights, World
from lightrft_core.sections import ModelSection, Section
from lightrft_core.testing.worlds import ThreadWorld

PIECES = "0123456789."
STOP = PIECES.index(".")


class Rows(list[Any]):  # Any: rows of numbers, or numbers
    """A list that, as a tensor does, takes a list of row numbers as its index."""

    def __getitem__(self, index: Any) -> Any:  # Any: an int, a slice or row numbers; an element or rows
        return (
            Rows([list.__getitem__(self, row) for row in index])
            if isinstance(index, list)
            else super().__getitem__(index)
        )


class ToyPolicy:
    """Logits by (digit that was asked, token of the completion before); rows are made as they are asked for."""

    def __init__(self) -> None:
        self.logits: dict[str, list[float]] = {
            f"{first}{place}": [0.0] * len(PIECES) for first in PIECES[:STOP] for place in range(4)
        }

    def logprobs(self, prompt_ids: Sequence[int], place: int, temperature: float = 1.0) -> list[float]:
        """Log-probabilities of the next token at a place of the completion."""
        scaled = [value / temperature for value in self.row(prompt_ids, place)]
        largest = max(scaled)
        total = largest + math.log(sum(math.exp(value - largest) for value in scaled))
        return [value - total for value in scaled]

    def row(self, prompt_ids: Sequence[int], place: int) -> list[float]:
        """The logits themselves, to change in place."""
        return self.logits[f"{PIECES[prompt_ids[-1]]}{min(place, 3)}"]


class ToyModelAdapter:
    """Digits are tokens and `.` ends a completion."""

    stop_token_ids = (STOP,)

    def __init__(self, config: ModelSection, setup: Setup) -> None:
        self.config = config

    def load(self, role: str) -> ToyPolicy:
        """A uniform policy."""
        return ToyPolicy()

    def render(self, prompt: Prompt) -> tuple[int, ...]:
        """The digits of the last message."""
        return self.encode(prompt.messages[-1]["content"])

    def encode(self, text: str) -> tuple[int, ...]:
        """A token per letter of the vocabulary; other letters are left out."""
        return tuple(PIECES.index(letter) for letter in text if letter in PIECES)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Digits, without the stop token."""
        return "".join(PIECES[token] for token in token_ids if token != STOP)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's letter."""
        return [PIECES[token] for token in token_ids]

    def collate(self, groups: Sequence[Group]) -> Batch:
        """Lists of rows instead of tensors; rows keep their own lengths."""
        rollouts = [(number, group, item) for number, group in enumerate(groups) for item in group.rollouts]
        rewards = [item.reward if item.shaped_reward is None else item.shaped_reward for _, _, item in rollouts]
        return Batch(
            prompt_ids=tuple(group.prompt.id for _, group, _ in rollouts),
            prompt_token_ids=tuple(group.prompt_token_ids for _, group, _ in rollouts),
            completion_ids_BT=Rows([list(item.token_ids) for _, _, item in rollouts]),
            mask_BT=Rows([list(item.loss_mask) for _, _, item in rollouts]),
            lengths_B=Rows([len(item.token_ids) for _, _, item in rollouts]),
            group_B=Rows([number for number, _, _ in rollouts]),
            rewards_B=Rows([reward or 0.0 for reward in rewards]),
            scored_B=Rows([reward is not None for reward in rewards]),
            engine_logprobs_BT=Rows([list(item.engine_logprobs) for _, _, item in rollouts]),
            truncated_B=Rows([item.finish_reason != "stop" for _, _, item in rollouts]),
        )

    def layout_for(self, module: ToyPolicy, batch: Batch, layout: Layout) -> Layout:
        """There is no padding to leave out."""
        return "padded"

    def logprobs(
        self,
        module: ToyPolicy,
        batch: Batch,
        *,
        layout: Layout = "auto",
        entropy: bool = False,
        chunk: int | None = None,
    ) -> LogProbs:
        """Rows of floats."""
        rows = zip(batch.prompt_token_ids, batch.completion_ids_BT, strict=True)
        return LogProbs(
            Rows([[module.logprobs(ids, place)[token] for place, token in enumerate(row)] for ids, row in rows])
        )

    def export(self, module: ToyPolicy, path: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the table as JSON."""
        (path / "toy.json").write_text(json.dumps(module.logits if weights is None else dict(weights)))


class ToyEngineConfig(Section):
    """Options of the toy engine: none."""


class ToyEngine:
    """Samples from the trainer's table as it was at the last update."""

    def __init__(self, config: ToyEngineConfig, setup: Setup) -> None:
        self.version = 0
        self._served = ToyPolicy()
        self.update_weights(setup.require_strategy().weights, 0)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        """Each sibling from its own seed."""
        return [[self._complete(request, seed) for seed in request.seeds] for request in requests]

    def _complete(self, request: GenerateRequest, seed: int) -> Completion:
        draws, sampling = random.Random(seed), request.sampling
        token_ids: list[int] = []
        chosen: list[float] = []
        finish: FinishReason = "length"
        while len(token_ids) < sampling.max_new_tokens:
            logprobs = self._served.logprobs(request.prompt_token_ids, len(token_ids), sampling.temperature or 1.0)
            token = _draw(logprobs, draws) if sampling.temperature else logprobs.index(max(logprobs))
            token_ids.append(token)
            chosen.append(logprobs[token] if sampling.temperature else 0.0)
            if token in sampling.stop_token_ids:
                finish = "stop"
                break
        return Completion(tuple(token_ids), tuple(chosen), finish)

    def update_weights(self, weights: Weights, version: int) -> None:
        """Copy the table."""
        self._served.logits = {name: list(row) for name, row in weights()}
        self.version = version

    def fingerprint(self, names: Sequence[str]) -> Mapping[str, float]:
        """Sums of rows."""
        return {name: math.fsum(self._served.logits[name]) for name in names if name in self._served.logits}

    def reset_cache(self) -> None:
        """There is none."""

    def sleep(self) -> None:
        """Nothing to give back."""

    def wake(self) -> None:
        """Always ready."""

    def close(self) -> None:
        """Nothing to free."""


def _draw(logprobs: Sequence[float], draws: random.Random) -> int:
    target, total = draws.random(), 0.0
    for token, value in enumerate(logprobs):
        total += math.exp(value)
        if target < total:
            return token
    return len(logprobs) - 1


class ToyStrategyConfig(Section):
    """Options of the toy strategy."""

    lr: float = Field(default=0.5, gt=0)
    """Step size of plain gradient ascent."""


class ToyStrategy:
    """REINFORCE on the table; it does not use the objective, which is made for tensors."""

    is_exact = True

    def __init__(self, config: ToyStrategyConfig, setup: Setup) -> None:
        self.world: World = setup.world
        self.beside: World = setup.world.beside if isinstance(setup.world, ThreadWorld) else setup.world
        self.policy: ToyPolicy = setup.require_model().load("policy")
        self._model, self._lr = setup.require_model(), config.lr

    def fill(self, batch: Batch, needs: frozenset[str]) -> None:
        """The log-probabilities of the step's start."""
        if "old_logprobs" in needs:
            batch.old_logprobs_BT = self.logprobs(batch).logprobs_BT

    def step(self, minibatch: Batch, objective: Objective) -> StepStats:
        """Ascend `sum of A log p / rows`, with gradients added over ranks."""
        gradient = {name: [0.0] * len(PIECES) for name in self.policy.logits}
        for prompt_ids, tokens, advantages, mask in zip(
            minibatch.prompt_token_ids,
            minibatch.completion_ids_BT,
            minibatch.advantages_BT or (),
            minibatch.mask_BT,
            strict=True,
        ):
            for place, token in enumerate(tokens):
                if mask[place]:
                    self._add(gradient, prompt_ids, place, token, advantages[place])
        names = sorted(gradient)
        flat = [value for name in names for value in gradient[name]]
        *summed, rows = self.world.sum([*flat, float(len(minibatch))])
        return self._apply(names, [value / max(rows, 1.0) for value in summed])

    def _add(
        self, into: dict[str, list[float]], prompt_ids: Sequence[int], place: int, token: int, advantage: float
    ) -> None:
        row = into[f"{PIECES[prompt_ids[-1]]}{min(place, 3)}"]
        for other, logprob in enumerate(self.policy.logprobs(prompt_ids, place)):
            row[other] += advantage * (float(other == token) - math.exp(logprob))

    def _apply(self, names: Sequence[str], gradient: Sequence[float]) -> StepStats:
        norm = math.sqrt(math.fsum(value * value for value in gradient))
        if not math.isfinite(norm):
            return StepStats({}, grad_norm=norm, lr=self._lr, skipped="the gradient is not finite")
        for index, value in enumerate(gradient):
            self.policy.logits[names[index // len(PIECES)]][index % len(PIECES)] += self._lr * value
        return StepStats({"policy_loss": (0.0, 1.0)}, grad_norm=norm, lr=self._lr)

    def logprobs(self, batch: Batch, *, role: str = "policy", layout: Layout = "auto") -> LogProbs:
        """Under the table as it stands; the reference is the uniform start."""
        module = self.policy if role == "policy" else self._model.load(role)
        return self._model.logprobs(module, batch)

    def weights(self) -> Iterator[tuple[str, list[float]]]:
        """Rows of the table by name."""
        yield from self.policy.logits.items()

    def fingerprint(self, num: int = 8) -> Mapping[str, float]:
        """Sums of the first rows."""
        return {name: math.fsum(self.policy.logits[name]) for name in sorted(self.policy.logits)[:num]}

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        self.export(path)

    def stage(self, *, export: str | None = None, state: bool = True) -> Callable[[Path], None]:
        """A copy of the table, and what writes it."""
        kept = ToyPolicy()
        kept.logits = {name: list(row) for name, row in self.policy.logits.items()}

        def write(path: Path) -> None:
            for folder in [path] * state + ([] if export is None else [path / export]):
                folder.mkdir(exist_ok=True)
                self._model.export(kept, folder)

        return write

    def load(self, path: Path) -> None:
        """Read it back."""
        self.policy.logits = json.loads((path / "toy.json").read_text())

    def export(self, path: Path) -> None:
        """Write the table as JSON."""
        path.mkdir(exist_ok=True)
        self._model.export(self.policy, path)

    def close(self) -> None:
        """Nothing to free."""


def toy_advantage(batch: Batch, world: World) -> Advantages:
    """Reward less the mean of the group's scored rewards, on every token; for batches of `Rows`."""
    return Advantages(Rows([[_centred(batch, row)] * batch.lengths_B[row] for row in range(len(batch))]))


def _centred(batch: Batch, row: int) -> float:
    if not batch.scored_B[row]:
        return 0.0
    mates = [i for i in range(len(batch)) if batch.group_B[i] == batch.group_B[row] and batch.scored_B[i]]
    return float(batch.rewards_B[row] - math.fsum(batch.rewards_B[i] for i in mates) / len(mates))
