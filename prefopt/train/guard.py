"""The failure sentinel: a loss that is no number, and a signal to stop.

Both only tell the loop; the loop skips, saves and exits.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from prefopt.errors import RunFailed

log = logging.getLogger(__name__)


@dataclass
class Guard:
    """Says before each update whether it may be made. ``asdict`` is its state for a checkpoint.

    One NaN that reaches the optimizer turns every weight and both its moments into NaN, for good;
    one batch left out costs nothing.

    >>> guard = Guard(patience=2)
    >>> guard.admits(1, loss=0.69, grad_norm=1.5)
    True
    >>> guard.admits(2, loss=0.69, grad_norm=float("inf")), guard.skipped
    (False, 1)
    """

    patience: int = 5
    """skipped steps in a row after which the run is given up"""
    in_a_row: int = 0
    skipped: int = 0

    def admits(self, step: int, loss: float, grad_norm: float) -> bool:
        """False: leave this update out. RunFailed after ``patience`` of them in a row."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        self.skipped += 1
        log.warning("step %d skipped: loss %g, gradient norm %g (%d in a row)", step, loss, grad_norm, self.in_a_row)
        if self.in_a_row >= self.patience:
            raise RunFailed(
                f"step {step}: loss {loss:g}, gradient norm {grad_norm:g}, not finite {self.in_a_row} times in a row; "
                "the weights are as before the first: lower --learning-rate, lengthen --warmup-steps, or check the "
                "model and its dtype"
            )
        return False


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
    """Within the block, the first SIGTERM or SIGINT asks to stop, and the second kills at once.

    Python lets only the main thread handle signals: in any other, nothing changes and nothing is
    ever requested.

    >>> with stop_on_signal() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.requested, stop.reason
    (True, 'SIGTERM')
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def first(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        for number in before:
            signal.signal(number, signal.SIG_DFL)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, first)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            # None: the handler was not set from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
