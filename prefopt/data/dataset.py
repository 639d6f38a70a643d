"""From names of data to encoded examples: read, inspect, encode, with every finding on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prefopt.data.encode import Encoder
from prefopt.data.findings import inspect_examples
from prefopt.data.mix import brief, load
from prefopt.types import Encoded, Finding


@dataclass(frozen=True)
class Dataset:
    """``weights``: how often each of ``examples`` counts per epoch. The rest is the account of what was read."""

    examples: list[Encoded]
    weights: list[float]
    counts: Counter[str]
    findings: list[Finding]
    notes: list[str]


def encoded(specs: Sequence[str], format: str | None, encoder: Encoder) -> Dataset:
    """All that can be used of these files or hub names; what cannot is among the findings, with ``drops``."""
    loaded = load(specs, format)
    notes = []
    for source in loaded.sources:
        if source.guessed and source.sample is not None:
            notes += [f"{source.name}: read as {source.layout.name}; the first one:", *brief(source.sample)]
    findings = [*loaded.findings, *inspect_examples(loaded.examples)]
    bad = {finding.source for finding in findings if finding.drops}
    data = encoder.encode([example for example in loaded.examples if example.source not in bad])
    weight = {example.source: w for example, w in zip(loaded.examples, loaded.weights, strict=True)}
    return Dataset(
        data.examples,
        [weight[example.source] for example in data.examples],
        data.counts + Counter(rows=loaded.rows),
        [*findings, *data.findings],
        [*notes, *data.notes],
    )
