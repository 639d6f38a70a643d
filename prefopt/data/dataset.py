"""From names of data to encoded examples: read, inspect, encode, with every finding on the way.

Data are read twice, so that they need not be held: to see what can be used, and to encode that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefopt.data.encode import Encoder
from prefopt.data.findings import inspected
from prefopt.data.mix import Source, brief, open_sources, read_all
from prefopt.data.read import find_files
from prefopt.errors import UserError
from prefopt.types import Encoded, Example, Finding


@dataclass(frozen=True)
class Dataset:
    """``weights`` [n]: how often each of ``examples`` counts per epoch. The rest is the account of what was read."""

    examples: Sequence[Encoded]
    weights: np.ndarray
    counts: Counter[str]
    findings: list[Finding]
    notes: list[str]


def encoded(specs: Sequence[str], format: str | None, encoder: Encoder) -> Dataset:
    """All that can be used of these files or hub names; what cannot is among the findings, with ``drops``."""
    sources = open_sources(specs, format)
    notes = []
    for source in sources:
        if source.guessed and source.sample is not None:
            notes += [f"{source.name}: read as {source.layout.name}; the first one:", *brief(source.sample)]
    usable = Usable(sources)
    survey = encoder.survey(usable.first())
    data = encoder.encode(usable, survey)
    given = getattr(data.examples, "given", np.empty(0, int))
    return Dataset(
        data.examples,
        np.repeat([source.weight for source in sources], usable.of_each)[given],
        data.counts + Counter(rows=usable.rows),
        [*usable.unread, *usable.odd, *data.findings],
        [*notes, *data.notes],
    )


class Usable:
    """The examples that can be used, read from their files every time; ``first`` finds out which they are."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = sources
        self.unread: list[Finding] = []
        self.odd: list[Finding] = []
        self.of_each = [0] * len(sources)
        """how many of each source"""
        self.rows = 0
        self._bad: set[str] = set()
        self._stamps = self._stamped()

    def first(self) -> Iterator[Example]:
        seen: dict[bytes, str] = {}
        for number, source in enumerate(self.sources):
            for example, findings in inspected(read_all([source], self.unread), seen):
                self.rows += 1
                self.odd += findings
                if any(finding.drops for finding in findings):
                    self._bad.add(example.source)
                else:
                    self.of_each[number] += 1
                    yield example
        self.rows += len(self.unread)

    def __iter__(self) -> Iterator[Example]:
        """UserError where a file is not the one that was read first."""
        yield from (example for example in read_all(self.sources, []) if example.source not in self._bad)
        for file, stamp in self._stamped().items():
            if stamp != self._stamps.get(file):
                raise UserError(f"{file} was changed while it was read: start again when it is complete")

    def _stamped(self) -> dict[Path, tuple[int, int]]:
        """When each file was changed, and its size."""
        files = [file for source in self.sources for file in find_files(source.name) or []]
        return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in files}
