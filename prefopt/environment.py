"""What torch and the C library read of the environment when they are loaded."""

from __future__ import annotations

import os

TURNS = 10_000
"""of waiting, 0.2 ms at the 17 ns that one was measured to take. Left alone it is 300,000, and a thread whose partner
has to share its core with another process turns in vain for milliseconds, in every operation: on two cores a step
beside one busy process took 14 times as long as alone, and takes 2.6 times with this, for 2 to 3 % when nothing else
runs (30M parameters; a tenth with 0.1M)."""


def prepare() -> None:
    """To be called before torch is imported. What the environment says goes before."""
    share_the_cores()
    stretch_the_memory()


def share_the_cores() -> None:
    """How long the threads of one computation wait for each other before they let another process run: for libgomp."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(TURNS))


def stretch_the_memory() -> None:
    """A GPU's memory is given out in pieces that can grow, since the next batch has another length than the last."""
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
