"""Many encoded examples in little memory: a few flat arrays, from which one is made whenever it is asked for.

The token ids, which are nearly all of it, stay in a file; of the rest some 150 bytes a pair are held.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise, starmap
from pathlib import Path
from struct import Struct
from typing import IO, Any, Literal, overload

import numpy as np

from prefopt.types import Encoded

COLUMNS: dict[str, Any] = {
    "ids": np.int32,  # prompt, then responses, of one example after another; ~id where a token is not scored
    "bounds": np.int64,  # where each of these parts begins, and the end
    "scores": np.float64,  # of each part: a prompt has none, which is nan
    "first": np.int64,  # which part each example begins with, and the end
    "keys": np.uint8,  # 16 bytes each
    "prompt_keys": np.uint8,
    "sources": np.uint8,  # UTF-8
    "source_bounds": np.int64,
    "given": np.int64,  # which of the examples that were given it is
}

NUMBER, SCORE = Struct("=q"), Struct("=d")  # as COLUMNS has them
AT_ONCE = 2**20
"""bytes of ids that are written together"""
ANY_NAME = "surrogatepass"  # a file's name need not be text


class Unwritable(Exception):
    """Where encoded data are to be written they cannot be."""


@contextmanager
def writing() -> Iterator[None]:
    """What the system refuses within this block is Unwritable."""
    try:
        yield
    except OSError as error:
        raise Unwritable(error.strerror or str(error)) from error


Fact = Literal["key", "prompt_key", "scores", "source", "lengths"]
"""what is asked of all examples, and can be told of each without its token ids"""


def each(examples: Sequence[Encoded], fact: Fact) -> list[Any]:
    """[n] one attribute of every example.

    >>> ids = np.array([5, 6], np.int32)
    >>> each([Encoded(ids, (ids, ids[:1]), (), (1.0, 0.0), "prefs.jsonl:1", "", "")], "lengths")
    [(2, 2, 1)]
    """
    return examples.each(fact) if isinstance(examples, Lazy) else [getattr(example, fact) for example in examples]


def longest(examples: Sequence[Encoded]) -> int:
    """Tokens of the longest prompt with a response; 0 where there is none."""
    return max((prompt + max(responses) for prompt, *responses in each(examples, "lengths")), default=0)


class Lazy(Sequence[Encoded]):
    """Examples, each made anew when it is asked for; a slice of them is a list."""

    def made(self, i: int) -> Encoded:
        """The one with the number ``i``, from 0 on."""
        raise NotImplementedError

    def each(self, fact: Fact) -> list[Any]:
        """[n] one attribute of every one, none of which is made."""
        raise NotImplementedError

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> list[Encoded]: ...
    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return self.made(range(len(self))[at])  # negative ones too, and IndexError


class Shelf(Lazy):
    """Examples by their number; read-only.

    >>> from io import BytesIO
    >>> writer = Writer(lambda column: BytesIO())
    >>> ids, both = np.array([5, 6], np.int32), np.array([True, False])
    >>> writer.add(Encoded(ids, (ids + 2,), (both,), (1.0,), "prefs.jsonl:1", "0a" * 16, "0b" * 16), given=0)
    >>> writer.in_memory()[0]  # doctest: +NORMALIZE_WHITESPACE
    Encoded(prompt=array([5, 6], dtype=int32), responses=(array([7, 8], dtype=int32),),
            scored=(array([ True, False]),), scores=(1.0,), source='prefs.jsonl:1',
            key='0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a', prompt_key='0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b')
    """

    def __init__(self, columns: Mapping[str, Any]):
        self._of = columns

    def __len__(self) -> int:
        return len(self._of["given"])

    @property
    def given(self) -> np.ndarray:
        """[n] which of the examples that were given each one is."""
        return self._of["given"]

    def made(self, i: int) -> Encoded:
        of = self._of
        first, end = of["first"][i : i + 2].tolist()
        bounds = of["bounds"][first : end + 1]
        signed = of["ids"][int(bounds[0]) : int(bounds[-1])]
        ids, scored = signed ^ (signed >> 31), signed >= 0  # ~id where negative
        prompt, *parts = starmap(slice, pairwise((bounds - bounds[0]).tolist()))
        source, end_of_source = of["source_bounds"][i : i + 2].tolist()
        return Encoded(
            ids[prompt],
            tuple([ids[part] for part in parts]),
            tuple([scored[part] for part in parts]),
            tuple([None if math.isnan(score) else score for score in of["scores"][first + 1 : end].tolist()]),
            of["sources"][source:end_of_source].tobytes().decode("utf-8", ANY_NAME),
            of["keys"][16 * i : 16 * i + 16].tobytes().hex(),
            of["prompt_keys"][16 * i : 16 * i + 16].tobytes().hex(),
        )

    def each(self, fact: Fact) -> list[Any]:
        of = self._of
        if fact in ("key", "prompt_key"):
            text = of[f"{fact}s"].tobytes().hex()
            return [text[at : at + 32] for at in range(0, len(text), 32)]
        if fact == "source":
            written = of["sources"].tobytes()
            return [written[a:b].decode("utf-8", ANY_NAME) for a, b in pairwise(of["source_bounds"].tolist())]
        parts = pairwise(of["first"].tolist())
        if fact == "lengths":
            lengths = np.diff(of["bounds"]).tolist()
            return [tuple(lengths[a:b]) for a, b in parts]
        scores = [None if math.isnan(score) else score for score in of["scores"].tolist()]
        return [tuple(scores[a + 1 : b]) for a, b in parts]


class Writer:
    """Takes one example after another. ``opened`` gives what each column is written to.

    Unwritable, not OSError, where that has no room: who adds an example may be reading another file.
    """

    def __init__(self, opened: Callable[[str], IO[bytes]]):
        self._files = {name: opened(name) for name in COLUMNS}
        self._waiting = {name: bytearray() for name in COLUMNS}
        self._tokens = self._parts = self._characters = 0
        for name in ("bounds", "first", "source_bounds"):
            self._waiting[name] += NUMBER.pack(0)

    def add(self, example: Encoded, given: int) -> None:
        parts = [example.prompt]
        for ids, scored in zip(example.responses, example.scored, strict=True):
            parts.append(ids if scored.all() else np.where(scored, ids, ~ids))
        source = example.source.encode("utf-8", ANY_NAME)
        self._parts += len(parts)
        self._characters += len(source)
        waiting = self._waiting
        for part in parts:
            self._tokens += len(part)
            waiting["ids"] += part.astype(COLUMNS["ids"], copy=False).tobytes()
            waiting["bounds"] += NUMBER.pack(self._tokens)
        for score in (None, *example.scores):
            waiting["scores"] += SCORE.pack(math.nan if score is None else score)
        waiting["first"] += NUMBER.pack(self._parts)
        waiting["keys"] += bytes.fromhex(example.key)
        waiting["prompt_keys"] += bytes.fromhex(example.prompt_key)
        waiting["sources"] += source
        waiting["source_bounds"] += NUMBER.pack(self._characters)
        waiting["given"] += NUMBER.pack(given)
        if len(waiting["ids"]) > AT_ONCE:
            self._flush()

    def in_memory(self) -> Shelf:
        """What was written, where the columns are in memory."""
        self._flush()
        files: dict[str, Any] = self._files
        return Shelf({name: np.frombuffer(file.getbuffer(), COLUMNS[name]) for name, file in files.items()})

    def close(self) -> None:
        """Writes what is left to write."""
        self._flush()
        with writing():
            for file in self._files.values():
                file.close()

    def _flush(self) -> None:
        with writing():
            for name, some in self._waiting.items():
                self._files[name].write(some)
                some.clear()


def read(folder: Path) -> Shelf:
    """What was written to files of the columns' names in ``folder``; the ids stay there."""
    of: dict[str, Any] = {name: np.fromfile(folder / name, kind) for name, kind in COLUMNS.items() if name != "ids"}
    return Shelf(of | {"ids": OnDisk((folder / "ids").open("rb"), COLUMNS["ids"])})


class OnDisk:
    """Numbers in a file, of which a slice is read when it is asked for, by any thread.

    Not mapped: pages that were looked at would count as the process's memory.
    """

    def __init__(self, file: IO[bytes], kind: Any):
        self._file, self._kind = file, np.dtype(kind)

    def __getitem__(self, at: slice) -> np.ndarray:
        size, count = self._kind.itemsize, at.stop - at.start
        return np.frombuffer(os.pread(self._file.fileno(), size * count, size * at.start), self._kind, count)


class Chosen(Lazy):
    """Some of ``examples``, in an order of their own.

    >>> list(Chosen("abc", np.array([2, 0]))), Chosen("abc", np.array([2, 0]))[1:]
    (['c', 'a'], ['a'])
    """

    def __init__(self, examples: Sequence[Any], at: np.ndarray):
        self.examples, self.at = examples, at

    def __len__(self) -> int:
        return len(self.at)

    def made(self, i: int) -> Encoded:
        return self.examples[int(self.at[i])]

    def each(self, fact: Fact) -> list[Any]:
        told = each(self.examples, fact)
        return [told[i] for i in self.at.tolist()]
