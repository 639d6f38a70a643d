"""Film reviews: read and cleaned, without what stands in train and test, and cut to openings of whole sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefopt.errors import UserError


class Review(NamedTuple):
    """``positive`` is None where nobody labelled it."""

    text: str
    positive: bool | None


class Reviews(NamedTuple):
    train: list[Review]
    test: list[Review]
    unlabelled: list[Review]


def read(folder: Path) -> Reviews:
    """An unpacked aclImdb, each text once: of a text in train and test, only the test's; unlabelled ones are optional.

    UserError where the folder holds something else.
    """
    for split in ("train", "test"):
        if not (folder / split / "pos").is_dir():
            raise UserError(f"--imdb {folder} holds no {split}/pos: name the folder aclImdb of the unpacked archive")
    seen: set[str] = set()
    test = list(_new(_labelled(folder / "test"), seen))
    train = list(_new(_labelled(folder / "train"), seen))
    unlabelled = _new((Review(text, None) for text in _texts(folder / "train" / "unsup")), seen)
    return Reviews(train, test, list(unlabelled))


def _labelled(folder: Path) -> Iterator[Review]:
    for kind in ("neg", "pos"):
        yield from (Review(text, kind == "pos") for text in _texts(folder / kind))


def _texts(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.txt")):
        yield " ".join(file.read_text(encoding="utf-8").replace("<br />", " ").split())


def _new(reviews: Iterable[Review], seen: set[str]) -> Iterator[Review]:
    for review in reviews:
        if review.text not in seen:
            seen.add(review.text)
            yield review


def rotten_tomatoes(folder: Path) -> list[Review]:
    """Single sentences, from rt-polarity.pos and rt-polarity.neg."""
    try:
        return [
            Review(line.strip(), kind == "pos")
            for kind in ("neg", "pos")
            for line in _decoded((folder / f"rt-polarity.{kind}").read_bytes()).split("\n")
            if line.strip()
        ]
    except OSError as error:
        raise UserError(f"--rotten-tomatoes {folder}: rt-polarity.pos and .neg cannot be read ({error})") from None


def _decoded(content: bytes) -> str:
    """The original files are Latin-1, some copies UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


END = re.compile(r"""(?<!\bMr)(?<!\bMrs)(?<!\bDr)[.!?]['")\]]*\s+(?=["'(]?[A-Z0-9])""")
"""of a sentence: some are missed, which only makes a passage shorter"""


def passages(text: str, most: int) -> Iterator[str]:
    """A text in pieces of whole sentences, each of at most so many words; a longer sentence is left out.

    >>> list(passages('Great "film." I loved it! Nobody who has ever seen it will forget it. Go.', most=5))
    ['Great "film." I loved it!', 'Go.']
    """
    ends = [match.end() for match in END.finditer(text)]
    piece = ""
    for start, end in zip([0, *ends], [*ends, len(text)], strict=True):
        sentence = text[start:end]
        if len((piece + sentence).split()) > most:
            yield from [piece.strip()] if piece else []
            piece = ""
        if len(sentence.split()) <= most:
            piece += sentence
    yield from [piece.strip()] if piece else []


def opening(text: str, least: int, most: int) -> str | None:
    """What a text begins with: whole sentences of ``least`` to ``most`` words; None where its first one is longer."""
    first = next(passages(text, most), "")
    return first if text.startswith(first) and len(first.split()) >= least else None


def split(text: str, tokenizer: Any, random: np.random.Generator) -> tuple[str, str] | None:
    """A prefix of 2 to 8 tokens and the rest, cut between words; None where there is no such place.

    The rest begins with its space, so that both together have the tokens of the whole.
    """
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = [end for (_, end), (start, _) in pairwise(spans[1:9]) if text[start].isspace()]
    if not ends:
        return None
    end = ends[random.integers(len(ends))]
    return text[:end], text[end:]
