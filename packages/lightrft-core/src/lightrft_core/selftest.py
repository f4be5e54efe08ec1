"""Checks before the first step, on the user's own data: what must hold, or the run would train on wrong numbers.

At the start of a run the policy is the one that generates, so engine and trainer must agree on every log-probability,
the ratio is 1, nothing is clipped, and the KL to the reference is 0. A failure names the row and the token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightrft_core.data import Batch, Group, LossInputs, Tensor
from lightrft_core.errors import RunFailed
from lightrft_core.objective import LossFunction
from lightrft_core.protocols import ModelAdapter, Strategy

HALF_PRECISION = 30.0  # how much more deviation half precision is allowed, on average over tokens ...
HALF_PRECISION_TOKEN = 1000.0  # ... and at one token: logits of 16 lie 1/8 apart in bf16, whatever was computed right


@dataclass(frozen=True)
class Finding:
    """One check's outcome: the largest deviation seen, and what to tell the user where it is too large."""

    name: str
    deviation: float
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class SelfTest:
    """The checks and what they need. `tolerance` is in nats per token; `is_truncated` says that top-k/p/min-p cut."""

    model: ModelAdapter
    strategy: Strategy
    loss: LossFunction
    has_reference: bool
    tolerance: float
    is_truncated: bool

    def run(self, groups: Sequence[Group]) -> list[Finding]:
        """Every check; raises `RunFailed` naming each that failed."""
        batch = self.model.collate(groups)
        padded = self.strategy.logprobs(batch, layout="padded")
        padded_BT = padded.logprobs_BT
        reference_BT = self.strategy.logprobs(batch, role="reference").logprobs_BT if self.has_reference else None
        batch.ref_logprobs_BT, batch.entropy_BT = reference_BT, padded.entropy_BT
        findings = [
            self._end_tokens(groups, batch),
            self._compare("engine = trainer", groups, batch, padded_BT, batch.engine_logprobs_BT, self.is_truncated),
            self._compare("packed = padded", groups, batch, padded_BT, self._packed(batch)),
            *self._first_ratio(groups, batch, padded_BT),
        ]
        if reference_BT is not None:
            findings.append(self._compare("policy = reference (KL 0)", groups, batch, padded_BT, reference_BT))
        self._raise_failed(findings)
        return findings

    def _is_close(self, size_BT: Tensor, mask_BT: Tensor) -> bool:
        """Every token in full precision; in half precision the mean, and each token by a wide margin."""
        worst, num_tokens = float(size_BT.max()) if size_BT.numel() else 0.0, max(int(mask_BT.sum()), 1)
        if self.strategy.is_exact:
            return worst <= self.tolerance
        mean = float(size_BT.sum()) / num_tokens
        return mean <= self.tolerance * HALF_PRECISION and worst <= self.tolerance * HALF_PRECISION_TOKEN

    @property
    def _allowed(self) -> str:
        if self.strategy.is_exact:
            return f"{self.tolerance:g} nats"
        mean, worst = self.tolerance * HALF_PRECISION, self.tolerance * HALF_PRECISION_TOKEN
        return f"{mean:g} nats on average and {worst:g} at one token"

    def _packed(self, batch: Batch) -> Tensor:
        """Under the layout that training uses: packed where the model supports it."""
        return self.strategy.logprobs(batch, layout="auto").logprobs_BT

    def _first_ratio(self, groups: Sequence[Group], batch: Batch, logprobs_BT: Tensor) -> list[Finding]:
        again_BT = self.strategy.logprobs(batch, layout="padded").logprobs_BT
        ratio = self._compare("ratio 1", groups, batch, again_BT, logprobs_BT)
        ones_BT = logprobs_BT * 0.0 + 1.0
        inputs = LossInputs(again_BT, logprobs_BT, ones_BT, batch.mask_BT, batch.ref_logprobs_BT, batch.entropy_BT)
        output = self.loss(inputs)
        clipped = output.metrics.get("clip_fraction")
        if clipped is None:
            return [ratio]
        mask = batch.mask_BT if clipped.ndim == 2 else batch.mask_BT.any(-1)
        share = float(clipped.masked_fill(~mask, 0).sum()) / max(float(mask.sum()), 1.0)
        return [ratio, Finding("clip fraction 0", share, share == 0.0, f"{share:.1%} of the tokens are clipped")]

    def _end_tokens(self, groups: Sequence[Group], batch: Batch) -> Finding:
        """A completion that ended by itself must train the token that ended it."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        for row, rollout in enumerate(rollouts):
            length = len(rollout.token_ids)
            if not length or rollout.reward is None or not rollout.loss_mask[-1]:
                continue
            is_trained = bool(batch.mask_BT[row, length - 1])
            if int(batch.completion_ids_BT[row, length - 1]) != rollout.token_ids[-1] or not is_trained:
                where = self._place(groups, row, length - 1)
                return Finding("end of text is trained", 1.0, False, f"the last token is not in the mask: {where}")
        return Finding("end of text is trained", 0.0, True)

    def _compare(
        self,
        name: str,
        groups: Sequence[Group],
        batch: Batch,
        left_BT: Tensor,
        right_BT: Tensor,
        only_lower: bool = False,
    ) -> Finding:
        """Largest |left - right| over trained tokens; with `only_lower` right may be higher (a truncated engine's)."""
        gap_BT = left_BT.cpu() - right_BT.cpu()
        size_BT = gap_BT.clamp(min=0) if only_lower else gap_BT.abs()
        size_BT = size_BT.nan_to_num(nan=float("inf")).masked_fill(~batch.mask_BT.cpu(), 0.0)
        worst = float(size_BT.max()) if size_BT.numel() else 0.0
        if self._is_close(size_BT, batch.mask_BT):
            return Finding(name, worst, True)
        row, token = divmod(int(size_BT.argmax()), size_BT.shape[1])
        place = self._place(groups, row, token)
        left, right = float(left_BT[row, token]), float(right_BT[row, token])
        return Finding(name, worst, False, f"{left:.5f} against {right:.5f} nats at {place}")

    def _place(self, groups: Sequence[Group], row: int, token: int) -> str:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        rollout = rollouts[row]
        piece = self.model.pieces(rollout.token_ids)[token] if token < len(rollout.token_ids) else "padding"
        return f"row {rollout.prompt_id}#{rollout.index}, token {token} {piece!r}"

    def _raise_failed(self, findings: Sequence[Finding]) -> None:
        failed = [finding for finding in findings if not finding.ok]
        if failed:
            raise RunFailed(
                "; ".join(f"{finding.name}: off by {finding.deviation:.3g}, {finding.detail}" for finding in failed),
                where="self-test",
                hint=f"The tolerance is {self._allowed} (selftest.tolerance). Nothing was trained; "
                "`--set selftest.enabled=false` trains all the same.",
            )


def describe(findings: Sequence[Finding], write: Callable[[str], None]) -> None:
    """One line of all checks, for people."""
    checks = ", ".join(f"{finding.name} ({finding.deviation:.1e})" for finding in findings)
    write(f"self-test passed: {checks}")
