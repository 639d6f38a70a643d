"""From names of data to encoded examples: read, inspect, encode, with every finding on the way.

Data are gone through once, and held nowhere. What came of them is kept under their files' contents, so that a run
that finds it there hashes the files and parses no more than the first rows, to tell their layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from prefopt.data import cache
from prefopt.data.encode import AT_ONCE, CHANGED, EncodedData, Encoder, Surprise, Survey
from prefopt.data.findings import Said, inspected
from prefopt.data.mix import Source, brief, open_sources, read_all
from prefopt.data.read import fingerprint, size
from prefopt.data.shelf import Shelf, Writer
from prefopt.errors import UserError
from prefopt.progress import UNSEEN, Advance, Shown, untold
from prefopt.types import Encoded, Example, Finding


@dataclass(frozen=True)
class Dataset:
    """``weights`` [n]: how often each of ``examples`` counts per epoch. The rest is the account of what was read."""

    examples: Sequence[Encoded]
    weights: np.ndarray
    counts: Counter[str]
    findings: list[Finding]
    notes: list[str]


def encoded(specs: Sequence[str], format: str | None, encoder: Encoder, show: Shown = UNSEEN) -> Dataset:
    """All that can be used of these files or hub names; what cannot is among the findings, with ``drops``.

    What a layout was guessed to be, and what it leaves unread, is shown before what may take minutes.
    """
    sources = opened(specs, format, show)
    data = kept(sources, encoder, show)
    assert isinstance(data.examples, Shelf)
    weights = np.repeat([source.weight for source in sources], data.of_each)[data.examples.given]
    return Dataset(data.examples, weights, data.counts, data.findings, encoder.prepare(data.survey))


def opened(specs: Sequence[str], format: str | None, show: Shown) -> tuple[Source, ...]:
    """Each with its layout, of which is told what was guessed and what it leaves unread."""
    sources = open_sources(specs, format)
    for source in sources:
        if source.guessed and source.sample is not None:
            for line in (f"{source.name}: read as {source.layout.name}; the first one:", *brief(source.sample)):
                show.note(line)
        if source.unread:
            show.note(source.unread_note)
    return sources


def kept(sources: Sequence[Source], encoder: Encoder, show: Shown) -> EncodedData:
    """From the cache, or new."""
    content = contents(sources)
    options = (encoder.max_length, encoder.overlong, encoder.train_on)
    key = cache.key(encoder.tokenizer, encoder.template, options, content)

    def fill(writer: Writer, survey: Survey) -> EncodedData:
        with show.pass_("encoding", volume(sources), "B") as advance:
            data = encoder.encode(usable := Usable(sources, advance), writer, survey)
        if contents(sources) != content:
            raise UserError(CHANGED)
        data.findings = [*usable.unread, *usable.odd, *data.findings]
        data.counts["rows"], data.of_each = usable.rows, usable.of_each
        return data

    def new(survey: Survey) -> EncodedData:
        return cache.keep(key, lambda writer: fill(writer, survey))

    if data := cache.load(key):
        return data
    try:  # what holds for the first ones holds for all, as a rule
        return new(encoder.survey(islice(Usable(sources), AT_ONCE)))
    except Surprise:
        return new(encoder.survey(Usable(sources)))


def volume(sources: Sequence[Source]) -> int:
    """Bytes of all that is read."""
    return sum(size(source.name) for source in sources)


def contents(sources: Sequence[Source]) -> list[tuple[str, str]]:
    """What each one's examples follow from."""
    return [(source.layout.name, fingerprint(source.name)) for source in sources]


class Usable:
    """The examples that can be used, read once, and an account of that reading."""

    def __init__(self, sources: Sequence[Source], advance: Advance = untold):
        self.sources, self._advance = sources, advance
        self.unread: list[Finding] = []
        self.odd: list[Finding] = []
        self.of_each = [0] * len(sources)
        """how many of each source"""
        self.rows = 0

    def met(self, example: Example) -> None:
        """Told of each example, usable or not."""

    def __iter__(self) -> Iterator[Example]:
        said = Said()
        for number, source in enumerate(self.sources):
            for example, findings in inspected(read_all([source], self.unread, self._read), said):
                self.rows += 1
                self.odd += findings
                self.met(example)
                if not any(finding.drops for finding in findings):
                    self.of_each[number] += 1
                    yield example
        self.rows += len(self.unread)
        self.odd += said.findings()

    def _read(self, more: float) -> None:
        self._advance(more)
