"""What long work tells of itself as it goes on; `prefopt.display` shows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Advance = Callable[[float], object]
"""told how much more is done"""


def untold(*_: object) -> None:
    """Where nobody looks."""


class Shown(Protocol):
    """Where a person looks."""

    def note(self, text: str) -> object:
        """A line that stays."""

    def pass_(self, name: str, total: float, unit: str = "") -> AbstractContextManager[Advance]:
        """A pass over so many of something, or so many bytes, with "B" as their ``unit``."""


class Unseen:
    """Where nobody looks."""

    def note(self, text: str) -> None:
        pass

    def pass_(self, name: str, total: float, unit: str = "") -> AbstractContextManager[Advance]:
        return nullcontext(untold)


UNSEEN: Shown = Unseen()
