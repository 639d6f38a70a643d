"""The types of columns: how to tell one, and how to say it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class BadRow(Exception):
    """This row cannot be read; turned into a Finding by ``Layout.read``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Kind:
    """The type of a column: how to say it, and how to tell it."""

    name: str
    holds: Callable[[Any], bool]

    def __or__(self, other: Kind) -> Kind:
        return Kind(f"{self.name} or {other.name}", lambda value: self.holds(value) or other.holds(value))


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def is_list_of(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(holds, value))


def records(*keys: str) -> Kind:
    """A list of objects that have these keys."""

    def holds(value: Any) -> bool:
        return is_list_of(value, lambda item: isinstance(item, dict) and set(keys) <= set(item))

    return Kind(f"a list of {{{', '.join(keys)}}}", holds)


def one_of(*numbers: int) -> Kind:
    """One of these numbers."""
    return Kind(" or ".join(map(str, numbers)), lambda value: number(value) in numbers)


TURN = re.compile(r"\n\n(Human|Assistant):")

TEXT = Kind("text", lambda value: isinstance(value, str))
TRANSCRIPT = Kind(
    'a "\\n\\nHuman: … \\n\\nAssistant: …" transcript', lambda v: isinstance(v, str) and bool(TURN.match(v))
)
PLAIN = Kind("text", lambda value: isinstance(value, str) and not TURN.match(value))
MESSAGE = Kind("a message", is_message)
MESSAGES = Kind("a list of messages", lambda v: is_list_of(v, is_message))
ANSWER = TEXT | MESSAGE | MESSAGES
NUMBER = Kind("a number", lambda value: number(value) is not None)
SIDE = Kind("a number from 1 to 2", lambda value: 1 <= (number(value) or 0.0) <= 2)
LABEL = Kind("a true or false label", lambda value: truth(value) is not None)
TEXTS = Kind("a list of texts", lambda v: is_list_of(v, TEXT.holds))
NUMBERS = Kind("a list of numbers", lambda v: is_list_of(v, NUMBER.holds))
INPUT = Kind("an object with messages", lambda v: isinstance(v, dict) and MESSAGES.holds(v.get("messages")))


def number(value: Any) -> float | None:
    """A finite number, also one written as text (every CSV cell is text)."""
    try:
        found = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found is not None and math.isfinite(found) else None


TRUTHS = {word: True for word in ("true", "yes", "1", "1.0")} | {word: False for word in ("false", "no", "0", "0.0")}


def truth(value: Any) -> bool | None:
    """True or false, also as 1 and 0, or written as text."""
    return TRUTHS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None


def shown(value: Any) -> str:
    """A number or a word as it is written, which may be of the right type and wrong; of all else the type."""
    short = isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 20)
    return repr(value) if short else type_of(value)


def type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return LABEL.name
    for kind in (TRANSCRIPT, TEXT, MESSAGE, MESSAGES):
        if kind.holds(value):
            return kind.name
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__
