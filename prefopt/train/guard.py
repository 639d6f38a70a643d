"""The failure sentinel: when a run whose losses are no numbers is given up. The loop leaves their updates out."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from prefopt.errors import RunFailed

log = logging.getLogger(__name__)


@dataclass
class Guard:
    """Counts the updates that were left out, and gives up. ``asdict`` is its state for a checkpoint.

    One NaN that reaches the optimizer turns every weight and both its moments into NaN, for good;
    one batch left out costs nothing.

    >>> guard = Guard(patience=2)
    >>> guard.saw(1, True, loss=0.69, grad_norm=1.5)
    >>> guard.saw(2, False, loss=0.69, grad_norm=float("inf"))
    >>> guard.skipped
    1
    """

    patience: int = 5
    """skipped steps in a row after which the run is given up"""
    in_a_row: int = 0
    skipped: int = 0

    def saw(self, step: int, made: bool, loss: float, grad_norm: float) -> None:
        """``made``: whether there was an update. RunFailed after ``patience`` in a row without."""
        if made:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.skipped += 1
        log.warning("step %d skipped: loss %g, gradient norm %g (%d in a row)", step, loss, grad_norm, self.in_a_row)
        if self.in_a_row >= self.patience:
            raise RunFailed(
                f"step {step}: loss {loss:g}, gradient norm {grad_norm:g}, not finite {self.in_a_row} times in a row; "
                "the newest checkpoint has the weights from before the first: lower --learning-rate, lengthen "
                "--warmup-steps, or check the model and its dtype"
            )
