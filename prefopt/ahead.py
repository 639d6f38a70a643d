"""What the host has to do for a batch is done while the device is at work on the one before."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ahead(build: Callable[[A], B], items: Iterable[A]) -> Generator[B, None, None]:
    """``build(item)`` for each item, in their order; a thread builds the next one while one is in use.

    What goes wrong in the thread is raised where its batch would have come. Close it where not all are taken.

    >>> list(ahead(str, [1, 2, 3]))
    ['1', '2', '3']
    """
    with ThreadPoolExecutor(1, "ahead") as pool:
        coming: Future[B] | None = None
        for item in items:
            before, coming = coming, pool.submit(build, item)
            if before is not None:
                yield before.result()
        if coming is not None:
            yield coming.result()
