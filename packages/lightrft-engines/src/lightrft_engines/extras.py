"""Packages that only some runs need: imported where they are used, with advice where they are not installed."""

import importlib
import logging
from typing import Any

from lightrft_core.errors import UserError


def load_extra(package: str, extra: str, *, purpose: str, where: str) -> Any:  # Any: an untyped package
    """The imported package; `UserError` says how to install it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of CPU kernels that it could download
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{purpose} need the package {package}, which cannot be imported: {error}.",
            where=where,
            hint=f"Install lightrft-engines[{extra}].",
        ) from error
