"""Token ids as strings: what two sequences begin with in common, and how many tokens many share.

As strings of big-endian bytes token ids sort by their numbers, so sequences that begin alike stand together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np


def string(ids: np.ndarray) -> bytes:
    """``ids`` [L] as bytes that sort as they do.

    >>> string(np.array([1, 300])) < string(np.array([2]))
    True
    """
    return ids.astype(">i4").tobytes()


def ids_of(text: bytes) -> np.ndarray:
    """The ids [L] behind a ``string``."""
    return np.frombuffer(text, ">i4")


def common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two sequences begin with in common.

    >>> common(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def grown(tree: Sequence[bytes], sequences: Iterable[bytes]) -> tuple[list[bytes], int]:
    """``tree``, the strings of its sequences in order, with more of them; and how many tokens those add.

    >>> a, b, c = (string(np.array(ids)) for ids in ([1, 2, 3], [1, 2, 4, 5], [1, 2]))
    >>> [tokens for _, tokens in (grown([], [a]), grown([a], [b]), grown([a], [c]), grown([], [c, b, a]))]
    [3, 2, 0, 5]
    """
    known, added = list(tree), 0
    for sequence in sequences:
        at, ids = bisect_left(known, sequence), ids_of(sequence)
        # Of all that is known, its two neighbours begin most alike.
        added += len(ids) - max((common(ids, ids_of(other)) for other in known[max(0, at - 1) : at + 1]), default=0)
        known.insert(at, sequence)
    return known, added
