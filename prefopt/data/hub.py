"""A data set on the hub. `datasets` downloads it once, into a cache of its own, from where its rows are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from prefopt.errors import UserError
from prefopt.progress import Advance

if TYPE_CHECKING:
    import datasets

NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")
"""owner/name/config:split"""


class NotThere(Exception):
    """The hub does not give it, for the reason that is the argument."""


@dataclass(frozen=True)
class Split:
    """One split of a data set."""

    data: datasets.Dataset

    @property
    def size(self) -> int:
        """Bytes."""
        return self.data.data.nbytes

    @property
    def fingerprint(self) -> str:
        """Of its revision, its configuration and its split."""
        return self.data._fingerprint

    def rows(self, advance: Advance) -> Iterator[dict[str, Any]]:
        each = self.size / max(1, len(self.data))  # summed over all chunks, so not once a row
        for row in self.data:
            advance(each)
            yield dict(row)


def split(spec: str) -> Split:
    """The split that is named, else "train", else the only one. NotThere; UserError where there is no such split."""
    found = NAME.fullmatch(spec)
    assert found, "find_files lets only such names through"
    splits = _splits(found["name"], found["config"])
    wanted = found["split"] or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if wanted not in splits:
        raise UserError(f'{spec} has no split "{wanted}"; say {found["name"]}:SPLIT with one of {", ".join(splits)}')
    return Split(splits[wanted])


@cache
def _splits(name: str, config: str | None) -> dict[str, datasets.Dataset]:
    import datasets

    try:
        try:
            return dict(datasets.load_dataset(name, config))
        except datasets.exceptions.DatasetGenerationError:  # splits need not have the same columns: each by itself
            files = datasets.load_dataset_builder(name, config).config.data_files
            return {split: datasets.load_dataset(name, data_files={split: files[split]})[split] for split in files}
    except Exception as error:  # its kinds are many: no such name, no network, no access, a script
        why = error.__cause__ or error if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        raise NotThere((str(why).splitlines() or [type(why).__name__])[0]) from error
