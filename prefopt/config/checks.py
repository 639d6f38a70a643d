"""What is asked of a setting by itself, and how it is told that it is wrong."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from prefopt.errors import UserError


def flag(key: str) -> str:
    """
    >>> flag("learning_rate")
    '--learning-rate'
    """
    return "--" + key.replace("_", "-")


class SettingError(UserError):
    """One setting is wrong; ``key`` is the field, so that the message can say where it was set."""

    def __init__(self, key: str, problem: str):
        self.key, self.problem = key, problem
        super().__init__(f"{flag(key)} {problem}")


def some_data(config: Any) -> None:
    if not config.data:
        raise SettingError("data", "is empty: name at least one file, glob or hub name")


def positive(config: object, *keys: str) -> None:
    for key in keys:
        value = _number(config, key)
        if value is not None and not 0 < value < math.inf:
            raise SettingError(key, f"must be above 0, not {value}")


def not_negative(config: object, *keys: str) -> None:
    for key in keys:
        value = _number(config, key)
        if value is not None and not 0 <= value < math.inf:
            raise SettingError(key, f"must be at least 0, not {value}")


def _number(config: object, key: str) -> float | None:
    """From Python it may be anything."""
    value = getattr(config, key)
    if value is not None and not isinstance(value, int | float):
        raise SettingError(key, f"must be a number, not {value!r}")
    return value


def right_seed(config: Any) -> None:
    if not 0 <= config.seed < 2**32:
        raise SettingError("seed", f"must be from 0 to {2**32 - 1}, not {config.seed}")


def needs(config: Any, key: str, problem: str) -> None:
    """Refuses a setting that is not the default where only the default makes sense."""
    if getattr(config, key) != defaults(type(config))[key]:
        raise SettingError(key, problem)


def defaults(cls: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(cls)}
