"""AdamW whose moments take 8 bits (bitsandbytes, arXiv:2110.02861): a code per entry and a scale per 256 of them.

Blocks of 256 run through this rank's part of a tensor, across rows. In files every row has the scales of the blocks it
lies in and its place in the first, so that any rank can read any rows: exactly where blocks begin where they began, and
rounded once more where weights lie otherwise over the ranks.
"""

from typing import Any

import torch
from lightrft_core.sections import LearningSection
from torch import Tensor

from lightrft_engines.extras import load_extra
from lightrft_engines.training.resting import Shelves
from lightrft_engines.training.rules import Named, decay_groups, set_rate

BLOCK = 256
PARTS = {"exp_avg": "1", "exp_avg_sq": "2"}  # bitsandbytes' numbers for the two moments
MAPS = {"exp_avg": "dynamic", "exp_avg_sq": "udynamic"}  # ... and its names for their codes


class EightBitAdamW:
    """`rules.Rule` for large tensors."""

    def __init__(self, masters: Named, optim: LearningSection) -> None:
        library = load_extra("bitsandbytes", "bitsandbytes", purpose="8-bit moments", where="optim.optimizer")
        self._masters, self._quantise = dict(masters), library.functional.quantize_blockwise
        groups = decay_groups(list(masters.values()), optim.weight_decay)
        self._adamw = library.optim.AdamW8bit(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, min_8bit_size=0)

    def step(self, lr: float) -> None:
        """One update."""
        for master in self._masters.values():
            if not master.numel():
                master.grad = None  # a rank without rows; kernels take no empty tensors
        set_rate(self._adamw, lr)
        self._adamw.step()

    def state(self) -> dict[str, Tensor]:
        """Codes, the scales of each row, and its place in the first block."""
        found: dict[str, Tensor] = {}
        for name, master in self._masters.items():
            state = self._adamw.state.get(master, {})
            rows = Rows(len(master), master.shape[1:].numel(), state["absmax1"].device if state else master.device)
            found[f"place.{name}"] = rows.place_R1
            for moment, number in PARTS.items():
                codes = state.get(f"state{number}", torch.zeros_like(master, dtype=torch.uint8, requires_grad=False))
                scales_N = state.get(f"absmax{number}", torch.zeros(rows.num_blocks, device=master.device))
                found[f"{moment}_codes.{name}"], found[f"{moment}_scales.{name}"] = codes, rows.spread(scales_N)
        return found

    def shelves(self) -> Shelves:
        """Codes and scales of each parameter, once there was a step."""
        return {name: self._adamw.state[master] for name, master in self._masters.items()}

    def load(self, state: Named, num_steps: int) -> None:
        """Take them back."""
        self._adamw.state.clear()
        for name, master in self._masters.items() if num_steps else ():
            rows = Rows(len(master), master.shape[1:].numel(), master.device)
            own: dict[str, Any] = {"step": num_steps}  # Any: bitsandbytes keeps tensors and a number
            for moment, number in PARTS.items():
                code = self._adamw.name2qmap[MAPS[moment]].to(master.device)
                codes, scales_RK = (state[f"{moment}_{part}.{name}"].to(master.device) for part in ("codes", "scales"))
                place_R1 = state[f"place.{name}"].to(master.device)
                scales_N = rows.joined(scales_RK)
                if not torch.equal(place_R1, rows.place_R1):
                    values = dequantised(codes, scales_RK, place_R1, code)
                    codes, quantised = self._quantise(values, code=code, blocksize=BLOCK)
                    scales_N = quantised.absmax
                own |= {f"state{number}": codes.clone(), f"qmap{number}": code, f"absmax{number}": scales_N}
            self._adamw.state[master] = own


class Rows:
    """R rows of C entries, end to end in N blocks; a row lies in at most K of them."""

    def __init__(self, num_rows: int, width: int, device: torch.device) -> None:
        start_R1 = (torch.arange(num_rows, device=device) * width)[:, None]
        self.num_blocks = -(-num_rows * width // BLOCK)
        self.place_R1 = start_R1 % BLOCK
        most = (BLOCK - 1 + width - 1) // BLOCK + 1
        self._block_RK = start_R1 // BLOCK + torch.arange(most, device=device)
        self._is_in_RK = self._block_RK <= (start_R1 + width - 1) // BLOCK

    def spread(self, scales_N: Tensor) -> Tensor:
        """Each row's scales [R, K]; 0 past its last block."""
        scales_RK = scales_N.new_zeros(self._block_RK.shape)
        scales_RK[self._is_in_RK] = scales_N[self._block_RK[self._is_in_RK]]
        return scales_RK

    def joined(self, scales_RK: Tensor) -> Tensor:
        """The blocks' scales again; rows in one block agree on it."""
        scales_N = scales_RK.new_zeros(self.num_blocks)
        scales_N[self._block_RK[self._is_in_RK]] = scales_RK[self._is_in_RK]
        return scales_N


def dequantised(codes: Tensor, scales_RK: Tensor, place_R1: Tensor, code: Tensor) -> Tensor:
    """The moments that rows of some layout stand for, in fp32."""
    flat_RC = codes.flatten(1)
    block_RC = (place_R1 + torch.arange(flat_RC.shape[1], device=codes.device)) // BLOCK
    values_RC = code[flat_RC.int()] * scales_RK.gather(1, block_RC)
    return values_RC.view(codes.shape)
