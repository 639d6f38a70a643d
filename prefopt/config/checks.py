"""What is asked of a setting by itself, and how it is told that it is wrong."""

from __future__ import annotations

import dataclasses
import math
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

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


def of_their_kind(config: Any) -> None:
    """Choices are among those there are, switches on or off, counts whole: a command line sees to it, Python does not.

    >>> from prefopt.config import Train
    >>> Train(model="m", data=("d",), out=None, optimizer="sgd")
    Traceback (most recent call last):
    prefopt.config.checks.SettingError: --optimizer must be one of adamw, rmsprop, not 'sgd'
    """
    for key, hint in get_type_hints(type(config)).items():
        value, kinds = getattr(config, key), (*get_args(hint),) if get_origin(hint) is UnionType else (hint,)
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        if choices and value not in (*choices, *([None] if NoneType in kinds else [])):
            raise SettingError(key, f"must be one of {', '.join(map(str, choices))}, not {value!r}")
        if kinds == (bool,) and not isinstance(value, bool):
            raise SettingError(key, f"must be True or False, not {value!r}")
        if int in kinds and float not in kinds and isinstance(value, float):
            raise SettingError(key, f"must be a whole number, not {value!r}")


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
