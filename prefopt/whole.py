"""Files and folders that are there whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from prefopt.errors import UserError


@contextmanager
def whole(file: Path, mode: str = "w", errors: str = "strict") -> Iterator[IO[Any]]:
    """Written aside, and put in its place at the end of the block. OSError as of any file.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "results.json"
    >>> with whole(file) as opened:
    ...     _ = opened.write("{}"), file.exists()
    >>> file.read_text(), len(list(file.parent.iterdir()))
    ('{}', 1)
    """
    aside = file.with_name(f".tmp-{os.getpid()}-{file.name}")
    try:
        with open(aside, mode) if "b" in mode else open(aside, mode, encoding="utf-8", errors=errors) as opened:
            yield opened
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """The same of a folder, which only one process may write: the one before it is gone when it is in its place."""
    aside, old = (folder.with_name(f".tmp-{what}-{folder.name}") for what in ("new", "old"))
    try:
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        if folder.exists():
            os.rename(folder, old)
        os.rename(aside, folder)
        sync(folder.parent)  # before the one that it replaces is gone
    finally:
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """What cannot be written within the block is a mistake in ``--out``: UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error
