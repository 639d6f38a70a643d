"""What ends a command from outside: SIGINT (Ctrl-C), SIGTERM and SIGHUP, to which the loops answer by saving all.

And a worker process ends with the one that started it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import parent_process
from types import FrameType

from prefopt.errors import Stopped

ENDING = signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])
"""what a person, a scheduler and a terminal that is closed send"""


def _nohup(number: int) -> bool:
    """Whether it is the one that nohup had ignored, for a run that outlives its terminal."""
    return number not in ENDING[:2] and signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def _handled(by: Callable[[int, FrameType | None], object], *signals: int) -> Iterator[None]:
    """Python lets only the main thread handle signals: in any other, nothing changes. What nohup ignores stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, by) for number in signals if not _nohup(number)}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: the handler was not set from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def term_interrupts() -> AbstractContextManager[None]:
    """Within the block the others are a KeyboardInterrupt too, as SIGINT is."""
    return _handled(signal.default_int_handler, *ENDING[1:])


@contextmanager
def deferred() -> Iterator[None]:
    """A first signal within the block interrupts at its end: an import that is broken off leaves half a module."""
    got: list[int] = []

    def later(signum: int, frame: FrameType | None) -> None:
        if got:
            raise KeyboardInterrupt
        got.append(signum)

    with _handled(later, *ENDING):
        yield
    if got:
        raise KeyboardInterrupt


@contextmanager
def resumable(how: str = "the same command and --resume") -> Iterator[None]:
    """What is interrupted within the block has kept what it did: Stopped, which says how to go on.

    >>> with resumable("the same command"):
    ...     raise KeyboardInterrupt
    Traceback (most recent call last):
    prefopt.errors.Stopped: stopped; what was done is kept: continue with the same command
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"stopped; what was done is kept: continue with {how}") from None


class Stop:
    """``requested`` turns true with the first signal, and ``reason`` names it."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @property
    def requested(self) -> bool:
        return self.signum is not None

    @property
    def reason(self) -> str:
        return "" if self.signum is None else signal.Signals(self.signum).name


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Within the block, the first of them asks to stop, and the second kills at once.

    >>> with stop_on_signal() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.requested, stop.reason
    (True, 'SIGTERM')
    """
    stop = Stop()

    def first(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        for number in ENDING:
            if not _nohup(number):
                signal.signal(number, signal.SIG_DFL)

    with _handled(first, *ENDING):
        yield stop


def end_with_parent() -> None:
    """In a worker process: end when the process that started it has ended, however it did.

    A pool's worker would finish what it is at, and write it beside whoever goes on with the work.
    """
    if parent := parent_process():

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()
