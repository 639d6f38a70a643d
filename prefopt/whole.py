"""A file that is there whole or not at all, whatever ends the process that writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole(file: Path, errors: str = "strict") -> Iterator[IO[str]]:
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
        with open(aside, "w", encoding="utf-8", errors=errors) as opened:
            yield opened
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
