"""Tune language models on preferences: DPO and its family, fast, small, and checked."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "SFT": "prefopt.config",
    "Train": "prefopt.config",
    "UserError": "prefopt.errors",
    "LogProbs": "prefopt.types",
    "LossOutput": "prefopt.types",
    "Preferences": "prefopt.types",
    "make_loss": "prefopt.losses",
}


def __getattr__(name: str) -> Any:
    """Public names and parts are imported when they are asked for: ``import prefopt`` takes no time."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    try:
        return importlib.import_module(f"prefopt.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"prefopt.{name}":
            raise
        raise AttributeError(f"module 'prefopt' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
