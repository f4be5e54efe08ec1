"""How the memory of one forward and backward pass goes up and down, measured on a model without memory.

The pass is seen in stretches: the output layer, each block on the way back from the last to the first, and the rest.
Blocks that are alike need no more than three: what the third one adds, all further ones add. (The first one's input is
alive anyway.)
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lightrft_engines.estimate.meter import Meter, Weightless
from lightrft_engines.training.checkpointing import Checkpointing

Compute = Callable[[nn.Module], Tensor]
Place = Literal["head", "block", "rest"]
ENOUGH = 3  # blocks that stand for any number


@dataclass(frozen=True, slots=True)
class Moment:
    """The worst moment of a stretch, in bytes. Gradients of weights are no activations once they are complete.

    `of_blocks` and `of_others` are the gradients that were complete when the stretch began: of the blocks' weights and
    of all others.
    """

    place: Place
    activations: int
    of_blocks: int
    of_others: int


@dataclass(frozen=True, slots=True)
class Course:
    """`saved` is what the forward pass keeps on the device, `offloaded` what it keeps on the CPU instead.

    `block_saved` is a block's part of it, `block_gradients` a block's gradients.
    """

    saved: int
    offloaded: int
    block_saved: int
    block_gradients: int
    moments: tuple[Moment, ...]


def training_course(
    model: Weightless,
    blocks: Sequence[nn.Module],
    compute: Compute,
    *,
    checkpointing: bool = False,
    reentrant: bool = False,
    offload: bool = False,
) -> Course:
    """Of one pass with gradient; `compute` takes the module to a loss. Cuts blocks that are alike from the module.

    Re-entrant checkpoints take what others do, and while a block's backward pass runs the gradient of its input twice.
    """
    num, kept = len(blocks), _shortened(model.module, blocks)
    away = _Away()
    saving = away.hooks() if offload else nullcontext()
    with model.metered() as meter, Checkpointing(model.module, checkpointing), saving:
        seen = _Seen(meter, away, model.module, kept)
        loss = compute(model.module)
        seen.end_forward()
        loss.backward()
        course = seen.course(num - len(kept))
        more = course.block_saved if reentrant else 0
        moments = [
            replace(item, activations=item.activations + more * (item.place == "block")) for item in course.moments
        ]
        return replace(course, moments=tuple(moments))


def forward_peak(model: Weightless, blocks: Sequence[nn.Module], compute: Compute) -> int:
    """The most bytes of activations in a pass without gradient. Cuts blocks that are alike from the module."""
    _shortened(model.module, blocks)
    with model.metered() as meter, torch.no_grad():
        compute(model.module)
        return meter.most


class _Away:
    """Saved tensors go to the CPU, each by itself, as `torch.autograd.graph.save_on_cpu` has it."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def hooks(self) -> AbstractContextManager[None]:
        """Around a pass."""
        hooks: AbstractContextManager[None] = saved_tensors_hooks(
            self._pack, lambda packed: torch.empty_strided(**packed)
        )
        return hooks

    def _pack(self, tensor: Tensor) -> dict[str, Any]:  # Any: shape, strides and type
        self.num_bytes += tensor.nbytes
        return {"size": tensor.shape, "stride": tensor.stride(), "dtype": tensor.dtype, "device": tensor.device}


class _Seen:
    """Hooks that divide a pass into stretches."""

    def __init__(self, meter: Meter, away: _Away, module: nn.Module, blocks: Sequence[nn.Module]) -> None:
        self._meter, self._away, self._is_forward = meter, away, True
        self._inside = {id(weight) for block in blocks for weight in block.parameters()}
        learning = [[weight.nbytes for weight in block.parameters() if weight.requires_grad] for block in blocks]
        self._block_gradients = max(sum(sizes) for sizes in learning)  # others may be frozen, in part or whole
        self._place: Place = "head"
        self._after: list[tuple[int, int]] = []  # bytes here and away when a block is done
        self._complete = self._before = (0, 0)  # gradients of blocks and of others, now and when the stretch began
        self._saved, self._moments = 0, list[Moment]()
        blocks[0].register_forward_pre_hook(self._enter_first, with_kwargs=True)
        for block in blocks:
            block.register_forward_hook(self._leave)
        for weight in module.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(self._take)

    def end_forward(self) -> None:
        """The backward pass begins."""
        self._is_forward, self._saved = False, self._meter.alive

    def course(self, num_more: int) -> Course:
        """What was seen, with so many blocks more."""
        if self._place != "rest":  # where nothing before the blocks learns
            self._turn("rest")
        self._turn("rest")
        first = self._after[-2] if len(self._after) > 1 else (0, 0)
        here, away = (now - then for now, then in zip(self._after[-1], first, strict=True))
        gradients = self._block_gradients
        offloaded = self._away.num_bytes + num_more * away
        moments = self._moments if num_more == 0 else _lengthened(self._moments, num_more, here, gradients)
        return Course(self._saved + num_more * here, offloaded, here, gradients, tuple(moments))

    def _enter_first(self, block: nn.Module, args: Any, kwargs: Any) -> None:  # Any: torch's own protocol
        states = args[0] if args else kwargs["hidden_states"]
        if self._is_forward and states.requires_grad:
            states.register_hook(lambda _: self._turn("rest"))

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:  # Any: the same
        if not self._is_forward:
            return  # computed once more in the backward pass
        states = output[0] if isinstance(output, tuple) else output
        self._after.append((self._meter.alive, self._away.num_bytes))
        self._meter.restart()
        if states.requires_grad:
            states.register_hook(lambda _: self._turn("block"))

    def _turn(self, place: Place) -> None:
        """One stretch is over, and another begins."""
        self._moments.append(Moment(self._place, self._meter.most, *self._before))
        self._place, self._before = place, self._complete
        self._meter.restart()

    def _take(self, weight: Tensor) -> None:
        """A gradient is complete: whoever holds it from now on is counted elsewhere."""
        num_bytes = 0 if weight.grad is None else weight.grad.nbytes
        weight.grad = None
        of_blocks, of_others = self._complete
        is_inside = id(weight) in self._inside
        self._complete = (of_blocks + num_bytes * is_inside, of_others + num_bytes * (not is_inside))


def _shortened(module: nn.Module, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The blocks that stay: where all are alike and stand in a list of their own, the first few."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    home = next((part for part in lists if list(part) == list(blocks)), None)
    if home is None or len(blocks) <= ENOUGH or len({_form(block) for block in blocks}) > 1:
        return list(blocks)
    del home[ENOUGH:]
    return list(home)


def _form(block: nn.Module) -> tuple[object, ...]:
    return (type(block), *((name, weight.shape, weight.requires_grad) for name, weight in block.named_parameters()))


def _lengthened(moments: Sequence[Moment], num: int, saved: int, gradients: int) -> list[Moment]:
    """The moments with `num` blocks more: what is linear between the last block and the first is left out."""
    if all(item.place != "block" for item in moments):
        return list(moments)  # all blocks are frozen and nothing before them learns: no pass goes back through them
    head, top, *_, bottom, rest = moments
    return [
        replace(head, activations=head.activations + num * saved),
        replace(top, activations=top.activations + num * saved),
        replace(bottom, of_blocks=bottom.of_blocks + num * gradients),
        replace(rest, of_blocks=rest.of_blocks + num * gradients),
    ]
