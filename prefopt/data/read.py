"""Rows from files and from the hub, one at a time, each knowing where it came from.

    read_rows("prefs.jsonl") -> Row({"prompt": ..., ...}, "prefs.jsonl:1"), ...

Nothing is held but the row in hand: a line or an array element beyond MAX_ROW is refused before it
is loaded. What a row means is not decided here but in ``formats``. A file that is broken as a file
(JSON syntax, UTF-8, gzip, cells) raises UserError with its line; a row that merely does not fit a
layout is that module's Finding.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import xxhash

from prefopt.data import hub
from prefopt.data.files import KINDS, find_files, kind_of, nearest
from prefopt.errors import UserError
from prefopt.progress import Advance, untold

MAX_ROW = 64 * 2**20  # bytes of a line, characters of an array element
CHUNK = 2**20
AHEAD = 100_000  # lines that are looked at behind a broken one
LFS = b"version https://git-lfs.github.com/spec/"  # how the stand-in of a large file in a git repository begins


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose last value of a key would hide the others."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f'the key "{twice}" stands twice in one object')
    return found


def _constant(word: str) -> float | None:
    """NaN is what pandas writes where there is no value."""
    return None if word == "NaN" else float(word)


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


class Row(NamedTuple):
    """One row as it was written, and its place.

    >>> Row({"text": "Hi"}, "prefs.jsonl:12").source
    'prefs.jsonl:12'
    """

    fields: dict[str, Any]
    source: str


def read_rows(spec: str, advance: Advance = untold) -> Iterator[Row]:
    """The rows of a file, a glob, a folder (``folder:split``) or a hub data set (``owner/name/config:split``).

    Streams: JSONL, JSON (an array of objects, or an object around one), CSV, TSV, Parquet, and gzip of
    those. ``advance`` is told how many more bytes, of ``size``, are read. UserError, before or while reading,
    when there is nothing to read or it is broken.
    """
    files = find_files(spec)
    if files is None:
        return (Row(fields, f"{spec}:row {number}") for number, fields in enumerate(_on_hub(spec).rows(advance), 1))
    return itertools.chain.from_iterable(_file_rows(path, advance) for path in files)


def size(spec: str) -> int:
    """Bytes of all that ``read_rows`` reads."""
    files = find_files(spec)
    return _on_hub(spec).size if files is None else sum(path.stat().st_size for path in files)


def fingerprint(spec: str) -> str:
    """A hash of names and content of all that ``read_rows`` reads."""
    files = find_files(spec)
    if files is None:
        return f"{spec} {_on_hub(spec).fingerprint}"
    content = xxhash.xxh3_128()
    for path in files:
        try:
            content.update(f"{path}\0{path.stat().st_size}\0".encode(errors="surrogatepass"))
            with open(path, "rb") as file:
                for chunk in iter(partial(file.read, CHUNK), b""):
                    content.update(chunk)
        except OSError as error:
            raise _unreadable(path, error) from error
    return content.hexdigest()


def _on_hub(spec: str) -> hub.Split:
    try:
        return hub.split(spec)
    except hub.NotThere as error:
        near = nearest(Path(spec))
        raise UserError(f"{spec} is no file here{near}, and the hub does not give it: {error}") from error


# ---------------------------------------------------------------- one file


class _Told(io.FileIO):
    """A file that tells how much of it is read, what is read twice once."""

    def __init__(self, path: Path, advance: Advance):
        super().__init__(path)
        self._advance, self._furthest = advance, 0

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        if (more := self.tell() - self._furthest) > 0:
            self._furthest += more
            self._advance(more)
        return count


def _file_rows(path: Path, advance: Advance) -> Iterator[Row]:
    kind = kind_of(path)
    if kind is None:
        raise UserError(
            f"cannot tell from its name what {path} holds: it should end in {', '.join(KINDS)}, or in .gz after those"
        )
    count = 0
    try:
        with io.BufferedReader(_Told(path, advance), CHUNK) as file:
            if file.peek(len(LFS)).startswith(LFS):
                raise UserError(f"{path} holds no data but points to them: fetch them with git lfs pull")
            zipped = file.peek(2)[:2] == b"\x1f\x8b"
            stream: IO[bytes] = gzip.open(file) if zipped else file  # type: ignore[assignment]  # noqa: SIM115
            for row in READERS[kind](stream, str(path)):
                count += 1
                yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the gzip file is damaged after row {count} ({error})") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if not count:
        raise UserError(f"{path} is empty: it holds no rows")


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or error}")


def _lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    for number in itertools.count(1):
        raw = stream.readline(MAX_ROW + 1)
        if not raw:
            return
        if len(raw) > MAX_ROW:
            raise UserError(f"{name}:{number}: the line is longer than {_size(MAX_ROW)}; is this one row per line?")
        yield number, raw


def _decoded(raw: bytes, name: str, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        _not_utf8(name, number, error)


def _not_utf8(name: str, line: int, error: UnicodeDecodeError) -> NoReturn:
    byte = error.object[error.start]
    raise UserError(f"{name}:{line}: this is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from error


def _size(count: int) -> str:
    return f"{count >> 20} MB" if count >= 2**20 else f"{count:,} bytes"


def _json_lines(stream: IO[bytes], name: str) -> Iterator[Row]:
    lines = _lines(stream, name)
    for number, raw in lines:
        try:
            fields = _json_line(raw, name, number)
        except UserError as error:
            raise UserError(f"{error}{_broken(lines, name)}") from error
        if fields is not None:
            yield Row(fields, f"{name}:{number}")


def _json_line(raw: bytes, name: str, number: int) -> dict[str, Any] | None:
    """None of a line without anything."""
    line = _decoded(raw, name, number)
    try:
        return _object(DECODER.decode(line.rstrip()), f"{name}:{number}") if line.strip() else None
    except json.JSONDecodeError as error:
        raise UserError(f"{name}:{number}:{error.pos + 1}: bad JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
        raise UserError(f"{name}:{number}: bad JSON: {error}") from error


def _broken(lines: Iterator[tuple[int, bytes]], name: str) -> str:
    """Which of the next ``lines`` are no rows either, so that all can be mended at once."""
    found: list[int] = []
    with suppress(UserError, OSError, EOFError, zlib.error):  # a line that is too long, a damaged file
        for number, raw in itertools.islice(lines, AHEAD):
            try:
                _json_line(raw, name, number)
            except UserError:
                found.append(number)
    if not found:
        return ""
    places = ", ".join(map(str, found[:5])) + (f" and {len(found) - 5:,} more" if len(found) > 5 else "")
    return f"; {'line' if len(found) == 1 else 'lines'} {places} {'is' if len(found) == 1 else 'are'} broken, too"


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: a row must be a JSON object, not {json.dumps(value)[:40]}")
    return value


def _jsonl(stream: IO[bytes], name: str) -> Iterator[Row]:
    """One object per line, or an array that is named as if it were that."""
    return (_json_array if _head(stream).startswith(b"[") else _json_lines)(stream, name)


def _json(stream: IO[bytes], name: str) -> Iterator[Row]:
    """An array, an object around one, or, as in many a .json, one object per line."""
    head = _head(stream)
    if head.startswith(b"["):
        return _json_array(stream, name)
    first, second = stream.readline(MAX_ROW + 1), stream.readline(MAX_ROW + 1)
    stream.seek(0)
    lines = second.strip() and _is_json(first)
    return (_json_object if head.startswith(b"{") and not lines else _json_lines)(stream, name)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _head(stream: IO[bytes]) -> bytes:
    return stream.peek(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()  # type: ignore[attr-defined]


def _json_object(stream: IO[bytes], name: str) -> Iterator[Row]:
    text = _Window(stream, name)
    text.peek()
    value = text.value()
    text.expect_end()
    lists = [v for v in value.values() if isinstance(v, list) and v and all(map(_is_row, v))]
    if len(lists) != 1 or "prompt" in value:
        yield Row(value, f"{name}:1")
        return
    for number, fields in enumerate(lists[0], 1):
        yield Row(fields, f"{name}:row {number}")


def _is_row(item: Any) -> bool:
    """Of a list in an object, whether it may be a row, and not a message."""
    return isinstance(item, dict) and not any(item.keys() >= turn for turn in ({"role", "content"}, {"from", "value"}))


def _json_array(stream: IO[bytes], name: str) -> Iterator[Row]:
    text = _Window(stream, name)
    text.take("[")
    if text.peek() != "]":
        for number in itertools.count(1):
            text.peek()
            place = f"{name}:row {number}"
            yield Row(_object(text.value(), place), place)
            if text.peek() != ",":
                break
            text.take(",")
    text.take("]")
    text.expect_end()


class _Window:
    """A bounded view on a long JSON text: decoded when needed, forgotten when read.

    ``text[at:]`` waits to be read; ``line`` and ``column``, from 1, are those of ``text[0]``.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.stream, self.name = stream, name
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.line, self.column = "", 0, 1, 1

    def more(self) -> bool:
        """Read as much again as is waiting, to keep the work linear, up to the limit; False at the end."""
        self.line, self.column = self.place(self.at)
        self.text, self.at = self.text[self.at :], 0
        raw = self.stream.read(max(CHUNK, min(len(self.text), MAX_ROW - len(self.text))))
        try:
            self.text += self.decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self.place(len(self.text))[0] + error.object.count(b"\n", 0, error.start)
            _not_utf8(self.name, line, error)
        return bool(raw)

    def place(self, at: int) -> tuple[int, int]:
        newlines = self.text.count("\n", 0, at)
        column = at - self.text.rfind("\n", 0, at) if newlines else self.column + at
        return self.line + newlines, column

    def fail(self, at: int, what: str) -> NoReturn:
        line, column = self.place(at)
        raise UserError(f"{self.name}:{line}:{column}: bad JSON: {what}")

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\n\r":
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def take(self, mark: str) -> None:
        if self.peek() != mark:
            self.fail(self.at, f"expected '{mark}'")
        self.at += 1

    def expect_end(self) -> None:
        if self.peek():
            self.fail(self.at, "something follows the end")

    def value(self) -> Any:
        while True:
            try:
                value, self.at = DECODER.raw_decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                # a value cut off by the window's edge fails there, or as a string left open; else it is wrong
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - 32
                if cut and len(self.text) - self.at > MAX_ROW:
                    line, _ = self.place(self.at)
                    raise UserError(f"{self.name}:{line}: a row is longer than {_size(MAX_ROW)}") from error
                offset = error.pos - self.at
                if not (cut and self.more()):
                    self.fail(self.at + offset, error.msg)
            except (ValueError, RecursionError) as error:
                self.fail(self.at, str(error))


def _csv(stream: IO[bytes], name: str) -> Iterator[Row]:
    return _cells(stream, name, ",;\t")  # what spreadsheets write where a comma stands in numbers


def _tsv(stream: IO[bytes], name: str) -> Iterator[Row]:
    return _cells(stream, name, "\t")


def _cells(stream: IO[bytes], name: str, delimiters: str) -> Iterator[Row]:
    """Between the first of ``delimiters`` that the header holds."""
    csv.field_size_limit(MAX_ROW)  # of the module, whose default of 128 KB is below a long answer
    lines = (_decoded(raw, name, number) for number, raw in _lines(stream, name))
    first = next(lines, "")
    unquoted = re.sub(r'"[^"]*"', "", first)
    delimiter = next((d for d in delimiters if d in unquoted), delimiters[0])
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if header is None:
                header = [name.strip() for name in cells]
                if len(set(header)) < len(header):
                    raise UserError(f"{name}:{line}: two columns have the same name")
            elif cells:
                if len(cells) != len(header):
                    raise UserError(f"{name}:{line}: {len(cells)} cells, but the header has {len(header)}")
                yield Row(dict(zip(header, cells, strict=True)), f"{name}:{line}")
            line = reader.line_num + 1
    except csv.Error as error:
        what = str(error)
        if what.startswith("new-line character"):  # the module goes on with advice on how to call it
            what = "a carriage return without a line feed; save the file with line feeds"
        raise UserError(f"{name}:{line}: bad cells: {what}") from error


def _parquet(stream: IO[bytes], name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(stream).iter_batches(batch_size=64)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, fields in enumerate(rows, 1):
            yield Row(fields, f"{name}:row {number}")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{name} is not a sound Parquet file: {_first_line(error)}") from error


READERS: dict[str, Callable[[IO[bytes], str], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
