"""Several sources, each with its layout and its weight, as one stream of examples.

    read_all(open_sources(["prefs.jsonl", "more/*.parquet=2"]), findings) -> Example, Example, ...

``open_source`` reads no more than the first rows; ``read`` of a Source streams all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefopt.data.formats import ALONE, Layout, asks_only, detect, named
from prefopt.data.read import read_rows
from prefopt.errors import UserError
from prefopt.progress import Advance, untold
from prefopt.types import Content, Example, Finding

HEAD = 100  # rows that the layout is guessed from
MOST = 1000
"""how often a source may count in an epoch"""


@dataclass(frozen=True)
class Source:
    """One ``--data``: what it is named, how its rows are laid out, and how often they count per epoch.

    ``guessed``: the layout was told from the rows, not by the user. ``sample``: the first row that could
    be read, None if there is none among the first. ``unread``: columns that the layout does not look at.
    """

    name: str
    weight: float
    layout: Layout
    guessed: bool
    sample: Example | None
    unread: tuple[str, ...]

    @property
    def unread_note(self) -> str:
        names = ", ".join(name or "(unnamed)" for name in self.unread)
        return f"{self.name}: these columns are not read: {names}"

    def __iter__(self) -> Iterator[Example | Finding]:
        return self.read()

    def read(self, advance: Advance = untold) -> Iterator[Example | Finding]:
        """Streams an Example, or the Finding that there is in its place, for every row."""
        return map(self.layout.read, read_rows(self.name, advance))


def load(specs: Sequence[str], format: str | None = None) -> list[Example]:
    """Every example of every source, all held; rows that are none are left out."""
    return list(read_all(open_sources(specs, format), []))


def open_sources(specs: Sequence[str], format: str | None = None, alone: bool = False) -> tuple[Source, ...]:
    """Each with its layout, which with ``alone`` may be that of prompts alone; UserError where one is named twice."""
    sources = tuple(open_source(spec, format, alone) for spec in specs)
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:  # its rows could not be told apart
            raise UserError(f"--data {name} is given twice; write --data {name}=2 if it shall count twice")
    return sources


def read_all(sources: Sequence[Source], findings: list[Finding], advance: Advance = untold) -> Iterator[Example]:
    """Every example as it streams by; to ``findings`` goes what is none. UserError where a source has no example."""
    for source in sources:
        empty, why = True, "it holds no rows"
        for item in source.read(advance):
            if isinstance(item, Finding):
                findings.append(item)
                why = str(item)
            else:
                empty = False
                yield item
        if empty:
            raise UserError(f"no row of {source.name} can be read as {source.layout.name}: {why}")


def open_source(spec: str, format: str | None = None, alone: bool = False) -> Source:
    """Look at the first rows of ``NAME`` or ``NAME=WEIGHT``, and settle the layout."""
    name, weight = split_weight(spec)
    head = list(itertools.islice(read_rows(name), HEAD))
    layout = named(format) if format else ALONE if alone and asks_only(head) else detect(head, name)
    read = map(layout.read, head)
    sample = next((item for item in read if isinstance(item, Example)), None)
    unread = dict.fromkeys(column for row in head for column in layout.unread(row.fields))
    return Source(name, weight, layout, format is None, sample, tuple(unread))


def split_weight(spec: str) -> tuple[str, float]:
    """
    >>> split_weight("prefs.jsonl=0.5"), split_weight("prefs.jsonl")
    (('prefs.jsonl', 0.5), ('prefs.jsonl', 1.0))
    """
    name, equals, number = spec.rpartition("=")
    if not equals or "/" in number or Path(spec).exists():  # date=2024/part.parquet is a name
        return spec, 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= MOST:
        raise UserError(f"--data {spec}: the weight must be a number above 0 and up to {MOST:,}, as in {name}=2")
    return name, weight


def brief(example: Example, width: int = 100) -> list[str]:
    """An example in a few lines: the end of its prompt, the beginning of each response.

    >>> from prefopt.types import Response
    >>> brief(Example("What is 2+2?", (Response("4", 1.0), Response("5", 0.0)), "prefs.jsonl:12"))
    ['  prompt      What is 2+2?', '  response 1  4', '  response 2  5']
    """

    def text(content: Content) -> str:
        return " ".join((content if isinstance(content, str) else content[-1].content if content else "").split())

    prompt = text(example.prompt)
    lines = [f"  prompt      {prompt if len(prompt) <= width else '…' + prompt[-width:]}"]
    for number, response in enumerate(example.responses, 1):
        said = text(response.content)
        lines.append(f"  response {number}  {said if len(said) <= width else said[:width] + '…'}")
    return lines
