"""The reference's figures of all responses of a run, in 28 bytes each: what the loop looks up for every batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np


class Figures(Mapping[str, tuple[float, int]]):
    """Response key -> (log π(y|x) in nats, number of scored tokens), as far as it is known, for a fixed set of keys.

    >>> figures = Figures(["0a" * 16, "0b" * 16, "0a" * 16])
    >>> figures.put({"0b" * 16: (-12.5, 7)})
    >>> figures["0b" * 16], "0a" * 16 in figures, len(figures), list(figures.missing())
    ((-12.5, 7), False, 1, ['0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a'])
    """

    def __init__(self, keys: Iterable[str]):
        self._keys = np.unique(np.fromiter(map(bytes.fromhex, keys), "S16"))  # shown without the zeros at their end
        self._sums = np.zeros(len(self._keys))
        self._lengths = np.full(len(self._keys), -1, np.int32)

    def put(self, found: Mapping[str, tuple[float, int]]) -> None:
        """KeyError for a key that is none of the set."""
        for key, (total, length) in found.items():
            at = self._place(key)
            self._sums[at], self._lengths[at] = total, length

    def missing(self) -> Iterator[str]:
        """The keys of which nothing is known yet."""
        return map(self._key, np.flatnonzero(self._lengths < 0).tolist())

    def __getitem__(self, key: str) -> tuple[float, int]:
        at = self._place(key)
        if self._lengths[at] < 0:
            raise KeyError(key)
        return float(self._sums[at]), int(self._lengths[at])

    def __iter__(self) -> Iterator[str]:
        return map(self._key, np.flatnonzero(self._lengths >= 0).tolist())

    def __len__(self) -> int:
        return int((self._lengths >= 0).sum())

    def _place(self, key: str) -> int:
        name = bytes.fromhex(key)
        at = int(np.searchsorted(self._keys, np.bytes_(name)))
        if at == len(self._keys) or self._keys[at] != name.rstrip(b"\0"):
            raise KeyError(key)
        return at

    def _key(self, at: int) -> str:
        return self._keys[at].ljust(16, b"\0").hex()
