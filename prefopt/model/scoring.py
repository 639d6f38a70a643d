"""What a frozen model thinks of responses: computed, or found in the reference store where it was computed before."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from prefopt.ahead import ahead
from prefopt.errors import RunFailed
from prefopt.model.figures import Figures
from prefopt.model.fingerprint import model_fingerprint
from prefopt.model.footprint import MOST_TOKENS
from prefopt.model.language_model import LanguageModel
from prefopt.model.reference import ReferenceStore, Row, Scope, Sums, default_path, fill, response_keys
from prefopt.progress import UNSEEN, Advance, Shown
from prefopt.types import Encoded, LogProbs

log = logging.getLogger(__name__)
T = TypeVar("T")
Logps = tuple[list[float], list[int]]
"""of one example's responses: log π(y|x) in nats, and tokens"""
AT_ONCE = 4096
"""examples: packing has something to choose from, progress is seen, and not all are in memory"""


def scored(lm: LanguageModel, examples: Sequence[Encoded], budget: int | None = None) -> list[Logps]:
    """Per example: log π(y|x) of its responses, in nats, and their lengths; ``budget`` tokens are computed at once."""
    found: Sums = {}
    for rows in _rows(lm, lm.microbatches(examples, budget or MOST_TOKENS[lm.device.type])):
        found.update((key, (total, length)) for key, total, length in rows)
    of_each = ([found[key] for key in response_keys(example)] for example in examples)
    return [([total for total, _ in known], [length for _, length in known]) for known in of_each]


def scope_of(lm: LanguageModel) -> Scope:
    """What the store knows a model by."""
    return Scope(model_fingerprint(lm.module), "", str(lm.dtype).removeprefix("torch."))


def figures_of(
    lm: LanguageModel,
    scope: Scope,
    asked: Callable[[], Iterator[Encoded]],
    budget: int | None = None,
    shown: Shown = UNSEEN,
    title: str = "log-probs",
) -> Figures:
    """The figures of all responses that ``asked`` tells of, each time anew: from the store, or computed and put there.

    What was computed when it is ended stays in the store, and the next call goes on from there.
    """
    with _store(scope) as store:
        figures = Figures(key for example in asked() for key in response_keys(example))
        for keys in _at_once(figures.missing()):
            figures.put(store.get(keys))
        missing = sum(1 for _ in figures.missing())
        if missing:
            with shown.pass_(title, missing) as advance:
                for some in _at_once(asked()):
                    _compute(lm, some, budget or MOST_TOKENS[lm.device.type], figures, store, advance)
    return figures


@contextmanager
def _store(scope: Scope) -> Iterator[ReferenceStore]:
    """That of all runs; where it cannot be opened, one that is gone afterwards, as with encoded data.

    RunFailed where that one is interrupted, of which nothing is kept.
    """
    try:
        store = ReferenceStore(default_path(), scope)
    except RunFailed as error:
        log.warning("%s; until then every run computes its log-probs anew", error)
        with TemporaryDirectory() as folder, ReferenceStore(Path(folder) / "reference.sqlite", scope) as own:
            try:
                yield own
            except KeyboardInterrupt:
                raise RunFailed("stopped; without a cache nothing was kept: the same command begins anew") from None
    else:
        with store:
            yield store


def _compute(
    lm: LanguageModel, examples: list[Encoded], budget: int, figures: Figures, store: ReferenceStore, advance: Advance
) -> None:
    """What ``figures`` and the store lack of these examples."""
    each = [(key, (example, r)) for example in examples for r, key in enumerate(response_keys(example))]
    wanted = {key: response for key, response in each if key not in figures}

    def scorer(missing: list[str]) -> Iterator[Row]:
        for rows in _rows(lm, lm.microbatches(_together([wanted[key] for key in missing]), budget)):
            yield from rows
            advance(len(rows))

    figures.put(fill(store, scorer, wanted))


def _together(responses: list[tuple[Encoded, int]]) -> list[Encoded]:
    """Responses of one example as one again, so that they share its prompt."""
    of: dict[int, tuple[Encoded, list[int]]] = {}
    for example, r in responses:
        of.setdefault(id(example), (example, []))[1].append(r)
    return [
        replace(
            example,
            responses=tuple(example.responses[r] for r in chosen),
            scored=tuple(example.scored[r] for r in chosen),
            scores=tuple(example.scores[r] for r in chosen),
        )
        for example, chosen in of.values()
    ]


def _rows(lm: LanguageModel, groups: list[list[Encoded]]) -> Iterator[list[Row]]:
    """Of each group; a GPU is at work on the next one when it is asked for one's figures."""
    asked: list[tuple[list[Encoded], LogProbs]] = []
    late = int(lm.device.type == "cuda")
    with closing(ahead(lm.pack, groups)) as packed:
        for group, batch in zip(groups, packed, strict=True):
            asked.append((group, lm.score(batch)))
            if len(asked) > late:
                yield _read(*asked.pop(0))
    yield from itertools.starmap(_read, asked)


def _read(group: list[Encoded], logps: LogProbs) -> list[Row]:
    keys = [key for example in group for key in response_keys(example)]
    return list(zip(keys, logps.sum.tolist(), map(int, logps.length.tolist()), strict=True))


def _at_once(things: Iterator[T]) -> Iterator[list[T]]:
    while some := list(itertools.islice(things, AT_ONCE)):
        yield some
