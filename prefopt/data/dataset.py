"""From names of data to encoded examples: read, inspect, encode, with every finding on the way.

Data are read twice, so that they need not be held: to see what can be used, and to encode that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from prefopt.data.encode import Encoder
from prefopt.data.findings import inspected
from prefopt.data.mix import Source, brief, open_sources, read_all
from prefopt.data.shelf import Shelf
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
    assert isinstance(data.examples, Shelf)
    return Dataset(
        data.examples,
        np.repeat([source.weight for source in sources], usable.of_each)[data.examples.given],
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
        self._bad: set[int] = set()

    def first(self) -> Iterator[Example]:
        seen: dict[bytes, str] = {}
        place = count()
        for number, source in enumerate(self.sources):
            for example, findings in inspected(read_all([source], self.unread), seen):
                at = next(place)
                self.odd += findings
                if any(finding.drops for finding in findings):
                    self._bad.add(at)
                else:
                    self.of_each[number] += 1
                    yield example
        self.rows = next(place) + len(self.unread)

    def __iter__(self) -> Iterator[Example]:
        return (example for at, example in enumerate(read_all(self.sources, [])) if at not in self._bad)
