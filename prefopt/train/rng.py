"""The random states of a process as tensors, so that a checkpoint holds them without pickle."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


def capture() -> dict[str, Tensor]:
    """The states of torch (CPU and every CUDA device), NumPy's legacy generator and Python's.

    >>> before = capture()
    >>> drawn = torch.rand(2), np.random.rand(), random.random()
    >>> restore(before)
    >>> torch.equal(torch.rand(2), drawn[0]), np.random.rand() == drawn[1], random.random() == drawn[2]
    (True, True, True)
    """
    numpy = cast(dict[str, Any], np.random.get_state(legacy=False))
    version, internal, python_gauss = random.getstate()
    assert version == 3
    return {
        "torch.cpu": torch.get_rng_state(),
        **{f"torch.cuda.{i}": state for i, state in enumerate(_cuda_states())},
        "numpy.words": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "numpy.position": torch.tensor([numpy["state"]["pos"], numpy["has_gauss"]]),
        "numpy.gauss": torch.tensor([numpy["gauss"]], dtype=torch.float64),
        "python.words": torch.tensor(internal),
        # Python and NumPy keep the second of two normal draws for the next call; Python's may be absent.
        "python.gauss": torch.tensor([] if python_gauss is None else [python_gauss], dtype=torch.float64),
    }


def restore(states: Mapping[str, Tensor]) -> None:
    """Undo everything drawn since ``capture``. CUDA devices beyond those captured are left alone."""
    torch.set_rng_state(states["torch.cpu"])
    for i in range(len(_cuda_states())):
        if (state := states.get(f"torch.cuda.{i}")) is not None:
            torch.cuda.set_rng_state(state, i)
    position, has_gauss = states["numpy.position"].tolist()
    words = states["numpy.words"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, states["numpy.gauss"].item()))
    python_gauss = states["python.gauss"].tolist()
    random.setstate((3, tuple(states["python.words"].tolist()), python_gauss[0] if python_gauss else None))


def _cuda_states() -> list[Tensor]:
    """Empty unless CUDA is in use: asking must not start it."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
