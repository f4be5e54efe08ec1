"""A module's twin whose parts are found and called directly: for decode steps, where a part computes for microseconds.

torch looks for hooks at every call of a module, and for each child or parameter in three dictionaries after the
module's own. The twin keeps them in its own and calls `forward`. It shares all tensors and lasts for one session, so
nothing is put into or taken out of the module meanwhile; modules that have hooks or were patched are called as ever.
"""

import copy
from collections.abc import Callable
from functools import lru_cache

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

PLAIN_CALLS = (nn.Module.__call__, GradientCheckpointingLayer.__call__)


def direct_twin(module: nn.Module) -> nn.Module:
    """The twin, in evaluation mode."""
    return _twin(module, {})


def _twin(module: nn.Module, twins: dict[int, nn.Module]) -> nn.Module:
    if id(module) not in twins:
        twin = twins[id(module)] = copy.copy(module)
        children = {name: child if child is None else _twin(child, twins) for name, child in module._modules.items()}
        twin.__dict__.update(module._parameters)
        twin.__dict__.update(children)
        twin.__dict__.update(_modules=children, training=False)
        if _is_plain(module):
            cls = type(module)
            twin.__class__ = _called_directly(cls, cls.forward)  # type: ignore[arg-type]  # mypy does not follow torch
    return twins[id(module)]


def _is_plain(module: nn.Module) -> bool:
    has_hooks = module._forward_hooks or module._forward_pre_hooks
    is_patched = "forward" in module.__dict__ or module._compiled_call_impl is not None
    return not (has_hooks or is_patched or isinstance(module, PreTrainedModel)) and type(module).__call__ in PLAIN_CALLS


@lru_cache
def _called_directly(cls: type[nn.Module], forward: Callable[..., object]) -> type[nn.Module]:
    """A subclass of the same name; `PreTrainedModel`s have none, since theirs are registered."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__call__": forward}
    return type(cls.__name__, (cls,), names)
