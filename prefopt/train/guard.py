"""The failure sentinel: a loss that is no number. It only tells the loop, which skips."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

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
        made = math.isfinite(loss) and math.isfinite(grad_norm)
        self.saw(step, made, loss, grad_norm)
        return made

    def saw(self, step: int, made: bool, loss: float, grad_norm: float) -> None:
        """Takes note of a step whose update was ``made``, or was left out where that was decided, on the device."""
        if made:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.skipped += 1
        log.warning("step %d skipped: loss %g, gradient norm %g (%d in a row)", step, loss, grad_norm, self.in_a_row)
        if self.in_a_row >= self.patience:
            raise RunFailed(
                f"step {step}: loss {loss:g}, gradient norm {grad_norm:g}, not finite {self.in_a_row} times in a row; "
                "the weights are as before the first: lower --learning-rate, lengthen --warmup-steps, or check the "
                "model and its dtype"
            )
