"""What long work tells of its progress; `prefopt.train.display` shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[float], object]
"""told how much more is done"""

Passing = Callable[[str, float, str], AbstractContextManager[Advance]]
"""a pass over so much of something: its name, how much, in which unit"""


def untold(more: float) -> None:
    """Where nobody looks."""


@contextmanager
def unseen(name: str, total: float, unit: str = "") -> Iterator[Advance]:
    """A pass that nobody looks at."""
    yield untold
