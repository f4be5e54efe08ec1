"""Write many completions side by side: rows join when there is room and leave when they are done."""

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from lightrft_core.data import Sampling
from lightrft_core.errors import RunFailed
from torch import Tensor

from lightrft_engines.decode.distribution import draw, uniforms
from lightrft_engines.decode.readers import Reader
from lightrft_engines.decode.rows import Row, SharedPrompt
from lightrft_engines.decode.threads import StepThreads

REFILL_SHARE = 8
AHEAD = (
    32  # tokens for which a row's random numbers are made at once: a dozen small operations, shared by as many steps
)


class Session:
    """Rows of one temperature and truncation, at most `max_rows` at once."""

    def __init__(
        self,
        reader: Reader,
        rows: Iterable[Row],
        sampling: Sampling,
        max_rows: int,
        device: torch.device,
        threads: StepThreads | None = None,
    ) -> None:
        self.reader, self.sampling, self.max_rows, self.device = reader, sampling, max_rows, device
        self.threads = threads
        self.waiting = deque(rows)
        self.rows: list[Row] = []
        self.tokens_R = self.seeds_R = torch.zeros(0, dtype=torch.long, device=device)
        self.numbers_RK = torch.zeros(0, 0, dtype=torch.float64, device=device)
        self.num_used = 0
        for row in self.waiting:
            row.prompt.num_waiting += 1
            row.prompt.num_open += 1

    def run(self, end: float = math.inf) -> None:
        """Finish every row; at the time `end` of the monotonic clock those that are not done end as they are."""
        while self.is_open:
            if time.monotonic() >= end:
                self.abort()
            else:
                self.advance()

    def abort(self) -> None:
        """End all rows with the tokens that they have."""
        for row in (*self.rows, *self.waiting):
            row.finish_reason = "abort"
        self.rows.clear()
        self.waiting.clear()

    @property
    def is_open(self) -> bool:
        """Whether some row is not finished."""
        return bool(self.waiting or self.rows)

    def advance(self) -> None:
        """Let waiting rows join with their first token, or write one more token of each."""
        if self.waiting and self._has_room():
            self._admit()
        elif self.rows:
            with nullcontext() if self.threads is None else self.threads.for_rows(len(self.rows)):
                self._step()

    def _has_room(self) -> bool:
        """Joining costs some time whatever the number of rows: wait for a worthwhile number of free places."""
        if not self.rows or not self.reader.is_open:
            return not self.rows
        free = self.max_rows - len(self.rows)
        return free >= min(len(self.waiting), max(1, self.max_rows // REFILL_SHARE))

    def _admit(self) -> None:
        num = min(self.max_rows - len(self.rows), len(self.waiting))
        rows = [self.waiting.popleft() for _ in range(num)]
        self._read([row.prompt for row in rows])
        logits_NV = torch.stack([row.prompt.logits_V for row in rows if row.prompt.logits_V is not None])
        seeds_N = torch.tensor([row.seed for row in rows], dtype=torch.long, device=self.device)
        tokens_N, staying = self._draw(rows, logits_NV, uniforms(seeds_N, torch.zeros_like(seeds_N)))
        for row in rows:
            row.prompt.num_waiting -= 1
            if row.prompt.num_waiting == 0:
                row.prompt.logits_V = None
        stay_N = torch.tensor(staying, dtype=torch.long, device=self.device)
        if staying:
            self.rows += [rows[index] for index in staying]
            self.reader.join([slot for index in staying if (slot := rows[index].prompt.slot) is not None])
            self.tokens_R = torch.cat((self.tokens_R, tokens_N.index_select(0, stay_N)))
            self.seeds_R = torch.cat((self.seeds_R, seeds_N.index_select(0, stay_N)))
            self.numbers_RK = self.numbers_RK[:, :0]
        self._close(rows)

    def _read(self, prompts: Sequence[SharedPrompt]) -> None:
        """Read the prompts that are not read yet; a reader that is not open has forgotten all it read before."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt.slot is None or not self.reader.is_open]
        if new:
            slots, logits_PV = self.reader.read([prompt.token_ids for prompt in new])
            for prompt, slot, logits_V in zip(new, slots, logits_PV, strict=True):
                prompt.slot, prompt.logits_V = slot, logits_V

    def _step(self) -> None:
        logits_RV = self.reader.step(self.tokens_R)
        self.tokens_R, staying = self._draw(self.rows, logits_RV, self._numbers())
        if len(staying) < len(self.rows):
            rows, order = self.rows, _fill_holes(staying, len(self.rows))
            self.rows = [rows[index] for index in order]
            order_R = torch.tensor(order, dtype=torch.long, device=self.device)
            self.tokens_R = self.tokens_R.index_select(0, order_R)
            self.seeds_R = self.seeds_R.index_select(0, order_R)
            self.numbers_RK = self.numbers_RK.index_select(0, order_R)
            self.reader.reorder(order, order_R)
            self._close(rows)

    def _numbers(self) -> Tensor:
        """What decides each row's next token."""
        if self.num_used >= self.numbers_RK.shape[1]:
            counts = [[len(row.token_ids)] for row in self.rows]
            positions_RK = torch.tensor(counts, device=self.device) + torch.arange(AHEAD, device=self.device)
            self.numbers_RK, self.num_used = uniforms(self.seeds_R.unsqueeze(-1), positions_RK), 0
        self.num_used += 1
        return self.numbers_RK.select(1, self.num_used - 1)

    def _draw(self, rows: Sequence[Row], logits: Tensor, uniforms_R: Tensor) -> tuple[Tensor, list[int]]:
        """A token for each row; returns them and the rows that go on."""
        tokens_R, logprobs_R = draw(logits, uniforms_R, self.sampling)
        logprobs = logprobs_R.tolist()
        if not math.isfinite(sum(logprobs)):
            _refuse_non_finite(rows, logprobs)
        pairs = zip(rows, tokens_R.tolist(), logprobs, strict=True)
        return tokens_R, [index for index, (row, token, logprob) in enumerate(pairs) if not row.add(token, logprob)]

    def _close(self, rows: Iterable[Row]) -> None:
        """Forget the prompts whose siblings are all done."""
        for row in rows:
            if row.finish_reason is not None:
                row.prompt.num_open -= 1
                if row.prompt.num_open == 0 and row.prompt.slot is not None:
                    self.reader.forget(row.prompt.slot)


def _fill_holes(staying: Sequence[int], num_rows: int) -> list[int]:
    """An order of the staying rows in which as few as possible change their place: the last ones fill the holes."""
    num = len(staying)
    stays = set(staying)
    movers = iter([index for index in staying if index >= num])
    return [index if index in stays else next(movers) for index in range(num)]


def _refuse_non_finite(rows: Sequence[Row], logprobs: Sequence[float]) -> None:
    for row, logprob in zip(rows, logprobs, strict=True):
        if not math.isfinite(logprob):
            raise RunFailed(
                f"the model's logits are not finite after {len(row.token_ids)} tokens of a completion",
                where=f"prompt {row.prompt_id}",
                hint="The weights are damaged or training diverged: go back to an earlier checkpoint, lower the "
                "learning rate, or use precision fp32.",
            )
