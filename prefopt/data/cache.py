"""Encoded data on disk, keyed by everything that it follows from: a folder of flat arrays and one file of JSON.

A folder that is damaged costs time, one that cannot be written memory too, and neither changes a number.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

import prefopt
from prefopt.data.shelf import COLUMNS, Unwritable, Writer, read, writing
from prefopt.types import Finding

if TYPE_CHECKING:
    from prefopt.data.encode import EncodedData

log = logging.getLogger(__name__)

DAY = 24 * 3600
OURS = (re.compile(r"\.writing-\w+"), DAY), (re.compile(r"encoded-[0-9a-f]{32}(\.safetensors)?"), 90 * DAY)
"""what may be deleted, and seconds after which no process can be at it any more, or none has read it"""
CHUNK = 2**20

Fill = Callable[[Writer], "EncodedData"]
"""writes examples, and gives what there is to tell of them; may be called twice"""


def folder() -> Path:
    """PREFOPT_CACHE, or prefopt in the user's cache folder."""
    return Path(os.environ.get("PREFOPT_CACHE") or Path.home() / ".cache" / "prefopt").expanduser()


def key(tokenizer: Any, template: str, options: Sequence[object], content: Sequence[object]) -> str:
    """xxh3-128 over what makes ids of text, the options and hashes of the data."""
    specials = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    about = [_code(), tokenizer.backend_tokenizer.to_str(), template, specials, *options, *content]
    return xxhash.xxh3_128_hexdigest(json.dumps(about).encode())


@cache
def _code() -> list[str]:
    """What reading and encoding mean: after any change of it, nothing that was kept before is taken for the same."""
    code = xxhash.xxh3_128()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    return [code.hexdigest(), prefopt.__version__, version("transformers"), version("tokenizers")]


def keep(key: str, fill: Fill) -> EncodedData:
    """What ``fill`` makes, kept under the key; in memory alone where it cannot be kept."""
    try:
        with writing():
            folder().mkdir(parents=True, exist_ok=True)
            _sweep()
            aside = tempfile.TemporaryDirectory(dir=folder(), prefix=".writing-", ignore_cleanup_errors=True)
        with aside, ExitStack() as files:
            return _kept(Path(aside.name), key, fill, files)
    except Unwritable as error:
        log.warning("encoded data is not cached in %s: %s", folder(), error)
    writer = Writer(lambda column: BytesIO())
    data = fill(writer)
    data.examples = writer.in_memory()
    return data


def _kept(aside: Path, key: str, fill: Fill, files: ExitStack) -> EncodedData:
    """Written aside and renamed, so that a reader sees all of it or nothing; what another process kept is as good."""
    new, old = aside / "new", aside / "old"
    with writing():
        new.mkdir()
        writer = Writer(lambda column: files.enter_context((new / column).open("wb")))
    data = fill(writer)
    writer.close()
    told = {"counts": data.counts, "findings": [asdict(finding) for finding in data.findings], "of_each": data.of_each}
    said = json.dumps(told | {"survey": asdict(data.survey) | {"private": sorted(data.survey.private)}})
    with writing():
        (new / "said.json").write_text(json.dumps({"sum": _sum(new, said), "said": said}))
        try:
            os.rename(new, _path(key))
        except OSError:  # something is there
            with suppress(*DAMAGE):
                return _read(_path(key))
            os.rename(_path(key), old)
            os.rename(new, _path(key))
        data.examples = read(_path(key))
    return data


def _sweep() -> None:
    """What processes that were killed had begun to write, more than a day ago, and what no run has read for long."""
    for old in folder().iterdir():
        after = next((after for name, after in OURS if name.fullmatch(old.name)), math.inf)
        with suppress(OSError):  # another process sweeps too, or it is another user's
            if time.time() - old.stat().st_mtime > after:
                old.unlink() if old.is_file() else shutil.rmtree(old)


def load(key: str) -> EncodedData | None:
    """What was kept under the key, without notes; None if nothing was, or if it is damaged."""
    path = _path(key)
    if not path.exists():
        return None
    try:
        return _read(path)
    except DAMAGE as error:
        log.warning("%s is damaged (%s): encoding again", path, error)
        return None


DAMAGE = (ValueError, KeyError, TypeError, OSError)


def _read(path: Path) -> EncodedData:
    """One of DAMAGE where it is not what was written."""
    from prefopt.data.encode import EncodedData, Survey

    file = json.loads((path / "said.json").read_text())
    if file["sum"] != _sum(path, file["said"]):
        raise ValueError("the checksum is wrong")
    said = json.loads(file["said"])
    with suppress(OSError):  # another user's
        os.utime(path)
    survey = Survey(**said["survey"] | {"private": frozenset(said["survey"]["private"])})
    findings = [Finding(**finding) for finding in said["findings"]]
    return EncodedData(read(path), Counter(said["counts"]), findings, [], survey, said["of_each"])


def _path(key: str) -> Path:
    return folder() / f"encoded-{key}"


def _sum(path: Path, said: str) -> str:
    sums = xxhash.xxh3_128(said.encode())
    for column in COLUMNS:
        with (path / column).open("rb") as file:
            for chunk in iter(partial(file.read, CHUNK), b""):
                sums.update(chunk)
        sums.update(column.encode())
    return sums.hexdigest()
