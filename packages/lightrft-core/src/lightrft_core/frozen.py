"""Engines that serve weights of their own, such as another's server: they measure, and cannot follow a trainer.

Their component provides `frozen_weights`.
"""

from lightrft_core.chosen import Chosen
from lightrft_core.errors import UserError
from lightrft_core.runfile import RunFile

FROZEN = "frozen_weights"


def is_frozen(engine: Chosen) -> bool:
    """Whether it says that it takes no weights."""
    return FROZEN in engine.component.provides


def require_trainable(run_file: RunFile) -> None:
    """`UserError` where the engine would go on generating with the weights that it has."""
    if is_frozen(run_file.engine):
        raise UserError(
            f"engine {run_file.engine.name} takes no weights: it would never generate with what was trained.",
            where="engine.use",
            hint="Train with `embedded` or `vllm` (`lightrft plugins list engine` shows all); this one is for "
            "`lightrft eval`.",
        )
