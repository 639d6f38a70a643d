"""Which prompts a model was trained on: kept with it, so that held-out figures are not flattered unnoticed.

A reference that was fine-tuned on the chosen answers of the held-out prompts makes them easier: what it has
learned by heart looks like what is preferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from prefopt.data.shelf import each
from prefopt.errors import UserError
from prefopt.types import Encoded

FILE = "trained_prompts.npy"
"""sorted uint64, one hash for each prompt, beside the model's weights"""


def hashes(units: Sequence[Encoded]) -> np.ndarray:
    """[n] uint64, sorted, of the different prompts.

    >>> none = Encoded(np.empty(0), (), (), (), "", "", prompt_key="5d41")
    >>> hashes([none, none])
    array([12427021322692027327], dtype=uint64)
    """
    keys = each(units, "prompt_key")
    return np.unique(np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), np.uint64))


def read(model: str | Path) -> np.ndarray:
    """What is known of the model in a folder: nothing, if it was not trained here."""
    file = Path(model).expanduser() / FILE
    if not file.is_file():
        return np.empty(0, np.uint64)
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{file} is damaged ({error}): remove it, and held-out prompts are no longer compared"
        ) from None


def write(folder: Path, start: str, units: Sequence[Encoded]) -> None:
    """For a model that was trained on ``units`` from the model ``start``."""
    np.save(folder / FILE, np.union1d(read(start), hashes(units)))


def among(model: str | Path, held_out: Sequence[Encoded]) -> int:
    """How many of the held-out prompts the model was trained on."""
    return len(np.intersect1d(read(model), hashes(held_out)))
